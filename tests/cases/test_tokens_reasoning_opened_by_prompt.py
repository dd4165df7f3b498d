"""Templates that open reasoning in the prompt (DeepSeek-R1's kind): right in the reader, the bridge and the sample."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import user
from rollout.request import FinishReason, Reply, Request
from tests.cases.prompt_kit import BODY, CHATML, ShowingServer, appended, make_session, play

TEMPLATE = (
    "{% for m in messages %}"
    + BODY.replace("m.content", "m.content.split('</think>')[-1] if m.role == 'assistant' else m.content")
    + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NEXT = "\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n<think>\n"


class CutOff(ShowingServer):
    """Its first answer is cut off."""

    async def generate(self, request: Request) -> Reply:
        reply = await super().generate(request)
        reason: FinishReason = "length" if len(self.prompts) == 1 else "stop"
        return Reply(
            completion_ids=reply.completion_ids,
            logprobs=reply.logprobs,
            prompt_ids=reply.prompt_ids,
            finish_reason=reason,
        )


@pytest.mark.parametrize("bridge", ["template", "server"])
@pytest.mark.parametrize(
    ("kind", "said", "reasoning", "content", "right"),
    [
        (ShowingServer, "Well.</think>It is 3.<|im_end|>", "Well.", "It is 3.", NEXT),
        (CutOff, "Well, let me", "Well, let me", "", "</think><|im_end|>" + NEXT),
        (CutOff, "Well.</think>It is", "Well.", "It is", "<|im_end|>" + NEXT),
    ],
)
async def test_reasoning_that_the_prompt_opened(
    kind: type[ShowingServer], said: str, reasoning: str, content: str, right: str, bridge: str
) -> None:
    """What the model thinks is reasoning; where it is cut off there it is closed; what it sampled stays as it is."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=TEMPLATE)
    # A first turn that ends by a stop token tells the server's bridge which that is.
    told = make_session(ShowingServer(tokenizer, ["a</think>b<|im_end|>"]), bridge)
    await play(told, [user("hi")])
    server = kind(tokenizer, [said, "a</think>b<|im_end|>"])
    session = make_session(server, bridge)
    assert session._model.codec is not None
    assert told._model.codec is not None
    session._model.codec.stop_token_ids = list(told._model.codec.stop_token_ids)
    first, _ = await play(session, [user("hi")], [user("why?")])
    assert ((first.reasoning_content or "").strip(), first.text) == (reasoning, content)
    assert appended(server, said) == right
    ids, sampled = session.trajectory.ids(session.turns[1].node), tokenizer.encode(said, add_special_tokens=False)
    assert ids[len(server.prompts[0]) :][: len(sampled)].tolist() == sampled
