"""What closes a turn is found only where it closes one: the next message's role in a stop token's place is no close."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import Message, user
from rollout.codec.template import TemplateBridge
from rollout.codec.types import Bridged, Declined, Previous, make_context

NOTHING = make_context([], {})
MARKERS = ("<|user|>", "<|assistant|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|endoftext|>")
ROLES = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
#: Phi-3's kind: the stop token that its files name stands behind the whole.
EOS_BEHIND = ROLES + "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
EOS_ON_LAST = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ONE_MARKER = EOS_ON_LAST.replace("<|{{ m.role }}|>", "<|start|>{{ m.role }}<|message|>").replace(
    "<|assistant|>", "<|start|>assistant<|message|>"
)
#: gpt-oss's kind: a last turn ends with another token than an earlier one.
RETURNS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if LAST and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def bridged(template: str, stop: str, said: str) -> Bridged | Declined | str:
    """What is written behind a turn that ended so, where no other stop token is known."""
    tokenizer = small_tokenizer(MARKERS, eos="<|endoftext|>", chat_template=template)
    bridge = TemplateBridge(tokenizer, [tokenizer.convert_tokens_to_ids(stop)])
    ids = tokenizer.encode(said, add_special_tokens=False)
    turn = Previous(prompt_ids=[1], completion_ids=ids, message=Message("assistant", "yes"), history=[user("q")])
    found = bridge.extend(turn, [user("why?")], NOTHING)
    return str(tokenizer.decode(found.ids)) if isinstance(found, Bridged) else found


@pytest.mark.parametrize("template", [EOS_BEHIND, EOS_ON_LAST, ONE_MARKER])
@pytest.mark.parametrize("said", ["yes<|endoftext|>", "yes<|end|>", "yes"])
def test_the_next_messages_role_is_no_close(template: str, said: str) -> None:
    """A stop token that the template writes only at the very end: nothing of a turn's close is known by it."""
    found = bridged(template, "<|endoftext|>", said)
    assert isinstance(found, Declined)
    assert "no stop token behind an assistant's turn" in found.reason


def test_a_close_that_is_known_is_found_where_a_stop_token_stands_at_the_end() -> None:
    """With the turn's own close among the stop tokens nothing is lost."""
    assert bridged(EOS_BEHIND, "<|end|>", "yes<|end|>") == "\n<|user|>\nwhy?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("last", ["loop.last", "loop.last and not add_generation_prompt"])
def test_another_token_in_a_stop_tokens_place_closes_an_earlier_turn(last: str) -> None:
    """gpt-oss ends a last turn with <|return|> and an earlier one with <|end|>."""
    found = bridged(RETURNS.replace("LAST", last), "<|return|>", "yes<|return|>")
    assert found == "<|start|>user<|message|>why?<|end|><|start|>assistant"
