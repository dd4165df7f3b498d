"""A codec picks its bridges by proof, works off the loop when it is long, and turns bugs into reasons."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec import tokenizer as tokenizers
from rollout.codec.families import choose_family
from rollout.codec.local import LONG_CHARS, Lane, load_codec
from rollout.codec.server import ServerCodec
from rollout.codec.tokenizer import configured_stop_ids, template_text
from rollout.codec.types import Bridged, Declined, Previous, make_context
from rollout.errors import ConfigError
from transports.embedded import MODEL_DIR
from transports.scripted import STOP, ScriptedTransport

PLAIN = make_context([], {})
ADD = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def test_a_family_is_taken_only_where_it_renders_the_template(tokenizer: Any) -> None:
    """`auto` finds Qwen3 by its rendering, and no family where the template says something else."""
    import copy

    assert choose_family(tokenizer, "auto") == "qwen3"
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = changed.chat_template.replace("<|im_start|>assistant\\n", "<|im_start|>model\\n")
    assert choose_family(changed, "auto") is None


def test_a_wrong_renderer_is_named(tokenizer: Any) -> None:
    """An unknown family, or one that does not fit, is an error that names the choices."""
    with pytest.raises(ConfigError, match="qwen3"):
        choose_family(tokenizer, "qwen33")
    with pytest.raises(ConfigError, match="gpt-oss"):
        choose_family(tokenizer, "gpt-oss")


def test_a_missing_tokenizer_is_named(tmp_path: Any) -> None:
    """A folder without a tokenizer is an error that names it and the remedy."""
    with pytest.raises(ConfigError, match="--tokenizer"):
        load_codec(str(tmp_path))


async def test_many_at_once_load_one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads ask at once, a tokenizer is loaded once."""
    loads: list[str] = []
    original = tokenizers._load

    def counting(name: str) -> Any:
        loads.append(name)
        return original(name)

    monkeypatch.setattr(tokenizers, "_LOADED", {})
    monkeypatch.setattr(tokenizers, "_load", counting)
    async with anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(anyio.to_thread.run_sync, tokenizers.load_tokenizer, str(MODEL_DIR))
    assert loads == [str(MODEL_DIR)]


async def test_long_work_leaves_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long tail is bridged in another thread, a short one here, and both give the same ids."""
    codec = load_codec(str(MODEL_DIR))
    threads: list[int] = []

    class Spying(Lane):
        def extend(self, *args: Any) -> Bridged | Declined:
            threads.append(threading.get_ident())
            return super().extend(*args)

    for lane in (codec._here, codec._there):
        lane.__class__ = Spying
    turn = Previous(prompt_ids=[1], completion_ids=codec.stop_token_ids[:1], message=None)
    assert isinstance(await codec.extend(turn, [user("x")], PLAIN), Bridged)
    assert threads == [threading.get_ident()]
    assert isinstance(await codec.extend(turn, [user("x" * (LONG_CHARS + 1))], PLAIN), Bridged)
    assert len(threads) == 2
    assert threads[1] != threading.get_ident()


async def test_concurrent_use_of_one_codec_is_safe() -> None:
    """Short and long work at once give what they give alone."""
    codec = load_codec(str(MODEL_DIR))
    tails = [[user(f"{i} " * (5 if i % 2 else LONG_CHARS))] for i in range(12)]
    turn = Previous(prompt_ids=[1], completion_ids=codec.stop_token_ids[:1], message=None)
    alone = [await codec.extend(turn, tail, PLAIN) for tail in tails]
    together: list[Any] = [None] * len(tails)

    async def one(index: int) -> None:
        together[index] = await codec.extend(turn, tails[index], PLAIN)

    async with anyio.create_task_group() as group:
        for index in range(len(tails)):
            group.start_soon(one, index)
    assert together == alone


async def test_a_bridge_that_raises_declines_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer's bug costs a fallback to the next bridge; when all fail the reasons are all named."""
    codec = load_codec(str(MODEL_DIR))
    lane = codec._here
    assert lane.renderer is not None
    assert lane.template is not None

    def broken(*args: Any) -> Any:
        raise RuntimeError("boom")

    turn = Previous(prompt_ids=[1], completion_ids=codec.stop_token_ids[:1], message=None)
    monkeypatch.setattr(lane.renderer, "extend", broken)
    found = await codec.extend(turn, [user("x")], PLAIN)
    assert isinstance(found, Bridged)
    assert found.bridge == "template"
    monkeypatch.setattr(lane.template, "extend", broken)
    declined = await codec.extend(turn, [user("x")], PLAIN)
    assert isinstance(declined, Declined)
    assert declined.reason == "; ".join(f"{name}: RuntimeError: boom" for name in ("renderer", "template"))


def test_a_result_without_a_name_has_one_for_a_family_and_none_for_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Families write the name and raise without it; a server hands its template the message as it came."""
    codec = load_codec(str(MODEL_DIR))
    renderer = codec._here.renderer
    assert renderer is not None
    call = ToolCall(function=Function("add", "{}"), id="call00000")
    turn = Previous(prompt_ids=[1], completion_ids=[2], message=Message("assistant", tool_calls=(call,)))
    result, shown = Message("tool", "3", tool_call_id="call00000"), list[Any]()

    def family(_prompt: Any, _said: Any, tail: Any, _context: Any) -> list[int]:
        shown.extend(tail)
        return [1]

    monkeypatch.setattr(renderer, "_bridge", family)
    renderer._extend(turn, [result], PLAIN)
    assert [message.name for message in shown] == ["add"]
    names = "{% for m in messages %}<|im_start|>{{ m.name or m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = small_tokenizer(("<|im_start|>", "<|im_end|>"), eos="<|im_end|>", chat_template=names)
    lane = Lane(tokenizer, None, "all", [tokenizer.eos_token_id])
    for name in (None, "sum"):
        message = msgspec.structs.replace(result, name=name)
        found = lane.extend(turn, [message], PLAIN)
        assert isinstance(found, Bridged)
        assert f"<|im_start|>{name or 'tool'}\n3" in tokenizer.decode(found.ids)


@pytest.mark.parametrize(("eos", "found"), [(-1, []), (True, []), ([7, -1, None, "8"], [7]), (9, [9]), ({}, [])])
def test_only_ids_are_stop_tokens(tokenizer: Any, tmp_path: Path, eos: Any, found: list[int]) -> None:
    """Some models' files have -1 for none, which servers refuse with each request that names it."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert configured_stop_ids(tokenizer, str(tmp_path)) == [tokenizer.eos_token_id, *found]


def test_a_template_that_refuses_a_result_without_a_name_gets_one(tokenizer: Any) -> None:
    """As gemma's for functions does: what came is tried first."""
    rule = "{% if m.role == 'tool' and not m.name %}{{ raise_exception('no name') }}{% endif %}"
    jinja = "{% for m in messages %}" + rule + "{{ m.role }} {{ m.name }}: {{ m.content }}\n{% endfor %}"
    other = copy.deepcopy(tokenizer)
    other.chat_template = jinja
    call = ToolCall(function=Function("add", "{}"), id="call00000")
    messages = [user("1?"), Message("assistant", tool_calls=(call,)), Message("tool", "3", tool_call_id=call.id)]
    assert "tool add: 3" in template_text(other, messages, [], {}, add_generation_prompt=False)


async def test_a_malformed_call_stays_in_the_message() -> None:
    """A tool call that cannot be read is listed with its raw text, which the content keeps too."""
    codec = load_codec(str(MODEL_DIR))
    tokenizer = tokenizers.load_tokenizer(str(MODEL_DIR))
    ids = tokenizer.encode('so <tool_call>\n{"name": add}\n</tool_call><|im_end|>')
    message = await codec.parse([1], ids, make_context(ADD, {}))
    assert not message.tool_calls
    assert [call.reason for call in message.malformed_tool_calls] == ["invalid_json"]
    assert '<tool_call>\n{"name": add}\n</tool_call>' in message.text
    unasked = await codec.parse([1], ids, PLAIN)
    assert (unasked.text, unasked.malformed_tool_calls) == (message.text, ())  # where no tools were offered


async def test_template_arguments_reach_the_server_bridge() -> None:
    """What the server is asked to tokenize carries tools and chat-template arguments."""
    transport = ScriptedTransport([])
    asked: list[Any] = []
    tokenize = transport.tokenize

    async def spying(prompt: Any, *, add_generation_prompt: bool) -> list[int]:
        asked.append(prompt)
        return await tokenize(prompt, add_generation_prompt=add_generation_prompt)

    transport.tokenize = spying  # type: ignore[method-assign]  # a spy in front of the double
    codec = ServerCodec(transport)
    codec.stop_token_ids.append(STOP)
    turn = Previous(prompt_ids=[1], completion_ids=[STOP], message=None)
    tools = [{"type": "function", "function": {"name": "add"}}]
    found = await codec.extend(turn, [user("x")], make_context(tools, {"enable_thinking": False}))
    assert isinstance(found, Bridged)
    assert {bool(prompt.tools) for prompt in asked} == {True}
    assert all(prompt.template_args == {"enable_thinking": False} for prompt in asked)


@pytest.mark.parametrize("renderer", ["qwen3", "template"])
async def test_a_call_whose_name_is_no_text_is_malformed(tokenizer: Any, renderer: str) -> None:
    """Seen on a real vLLM: the model wrote a number there, and the server refused the next message-in prompt."""
    codec = load_codec(str(MODEL_DIR), renderer=renderer)
    raw = '<tool_call>\n{"name": 2, "arguments": {"a": 1}}\n</tool_call>'
    ids = tokenizer.encode(f"<think>\n\n</think>\n\n{raw}<|im_end|>", add_special_tokens=False)
    message = await codec.parse(tokenizer.encode("<|im_start|>assistant\n"), ids, make_context(ADD, {}))
    assert not message.tool_calls
    assert [call.reason for call in message.malformed_tool_calls] == ["missing_name"]
    assert '"name": 2' in message.text
