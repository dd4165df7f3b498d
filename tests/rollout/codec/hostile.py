"""Texts that a tool may fetch, or a user type, to break a prompt or by accident."""

from __future__ import annotations

from hypothesis import strategies as st

MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<|eot_id|>", "<|end|>", "[INST]", "</s>", "<eos>", "<|user|>"),
)
PIECES = (
    *MARKERS,
    *("<|im_", "_end|>", "<", "|>", "</thi", "nk>", "<|", "<tool", "_call>", "[IN", "ST]", "<|im_start|>assistant\n"),
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2028", "\x00", "\x1b[0m"),
    *("é", "e\u0301", "世界", "👩‍👩‍👧", "\u202eabc", "\U0001f600", "\U00010348", "ﷺ", "\u0f00", "\ufffd"),
    *("0", "12 345", "3.14", '{"a": [1, null]}', "null", "True", "{{ x }}", "{% raw %}", "{# no #}", "`", "\\n", "\\"),
    *("/no_think", "/think", "Quartz", "muffin", "user\n", "assistant", "a" * 3_000, "word " * 400, "x\n" * 300),
)

#: Mostly of pieces that mean something, and of anything.
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), min_size=1, max_size=6).map("".join)
