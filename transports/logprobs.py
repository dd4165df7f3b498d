"""What a server's logprobs are of, found out by asking twice.

Two requests that differ in their temperature alone, 1 and 0.5, and the logprobs of the same ids in both, sampled or
alternatives. The model's own logprobs are the same in both (vLLM's default, `raw_logprobs`). Those of after temperature
(`processed_logprobs`) are another distribution's: between two ids there lies twice as much, since it is the logits'
difference over the temperature. For ids of -0.2 and -1.8 at temperature 1, 1.6 apart, at 0.5 they are 3.2 apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rollout.errors import MalformedReply, TransportError
from rollout.log import get_logger
from rollout.request import LogprobsMode
from transports.http.client import Answer, HttpClient, decode
from transports.openai import probe_call

#: The temperatures that are asked for: powers of 2, so that nothing is rounded.
COLD, WARM = 0.5, 1.0

#: Alternatives that are asked for: no server is known that gives less to whom it gives any.
ALTERNATIVES = 5

#: Logprobs nearer to each other say nothing: two runs of one model in half precision differ as much.
_TOO_NEAR = 0.05

#: What is below this is a filter's doing, or a server's word for minus infinity.
_LEAST = -50.0

_log = get_logger(__name__)


class _Entry(msgspec.Struct):
    token: str | None = None
    logprob: float | None = None
    top_logprobs: list[_Entry] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Entry] | None = None


class _Choice(msgspec.Struct):
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_ANSWER = msgspec.json.Decoder(_Answer)


async def find_mode(client: HttpClient, path: str, body: Mapping[str, Any]) -> LogprobsMode | None:
    """Asks a chat route with this body, which has one token's room. None where the answers do not tell."""
    found = []
    for temperature in (WARM, COLD):
        asked = {**body, "temperature": temperature, "top_p": 1.0, "logprobs": True, "top_logprobs": ALTERNATIVES}
        try:
            found.append(_first_logprobs(await probe_call(client, path, asked), path))
        except TransportError as error:
            _log.debug("logprobs_mode_not_told", path=path, error=str(error))
            return None
    return mode_of(*found)


def mode_of(warm: Mapping[str, float], cold: Mapping[str, float]) -> LogprobsMode | None:
    """What logprobs of one position are of, by token, as they were answered at the two temperatures."""
    both = [name for name in warm if name in cold and min(warm[name], cold[name]) > _LEAST]
    if len(both) < 2:
        # A single id can only be seen to stay as it is.
        same = [name for name in both if warm[name] < -_TOO_NEAR and abs(warm[name] - cold[name]) < _TOO_NEAR / 5]
        return "raw_logprobs" if same else None
    high, low = max(both, key=warm.__getitem__), min(both, key=warm.__getitem__)
    apart, then = warm[high] - warm[low], cold[high] - cold[low]
    if apart < _TOO_NEAR:
        return None
    grown = then / apart
    if abs(grown - 1) < 0.1:
        return "raw_logprobs"
    return "processed_logprobs" if abs(grown - WARM / COLD) < 0.2 else None


def _first_logprobs(answer: Answer, path: str) -> dict[str, float]:
    """The logprobs of the first token and its alternatives, by their texts. Raises MalformedReply."""
    choices: list[_Choice] = decode(_ANSWER, answer, path).choices
    logprobs = choices[0].logprobs if choices else None
    if logprobs is None or not logprobs.content:
        raise MalformedReply(f"{path}: the answer has no logprobs")
    first = logprobs.content[0]
    entries = [*(first.top_logprobs or ()), first]
    return {entry.token: entry.logprob for entry in entries if entry.token is not None and entry.logprob is not None}
