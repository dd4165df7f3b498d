"""Whether a trainer could take a run's logprobs for what they are not, said once when an engine is opened.

A trainer's importance ratio is over the probability with which a token was drawn. vLLM reports by default the model's
own probability, which is that one only where tokens are drawn at temperature 1 with no filter and no penalty. Whoever
samples otherwise learns on wrong ratios, and nothing else says so.
"""

from __future__ import annotations

from typing import NamedTuple

from rollout.config import EngineConfig
from rollout.log import get_logger
from rollout.request import Sampling
from rollout.transport import ServerInfo

_log = get_logger(__name__)

_FLAG = "--logprobs-mode processed_logprobs"

#: How each server is started so that its logprobs are of after temperature and filters.
REMEDIES = {
    "vllm": f"start vLLM with {_FLAG}",
    "sglang": "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB",
    "dynamo": f"start Dynamo's vLLM worker with {_FLAG}",
    "embedded": f"play on `rollout serve {_FLAG}`, named by --base-url",
}


#: What models' own settings say, as generation_config.json has them, and what changes nothing.
_NAMED = {"temperature": 1, "top_p": 1, "top_k": -1}


#: What SGLang leaves out of its logprobs, which are of after penalties and temperature.
_CUT = frozenset({"top_k", "top_p", "min_p"})


class Doubt(NamedTuple):
    """Why logprobs may mislead, and what to do."""

    event: str
    why: str
    remedy: str


def doubt(info: ServerInfo, config: EngineConfig) -> Doubt | None:
    """What a trainer should know before it uses a run's logprobs; None where they are what it takes them for."""
    return doubt_of(info, Sampling.of(config.sampling, info.sampling_defaults))


def doubt_of(info: ServerInfo, drawn: Sampling) -> Doubt | None:
    """The same of what was drawn so."""
    changed = drawn.given
    if drawn.temperature == 0:
        return None  # nobody learns from what was not drawn
    said = told(drawn)
    server = REMEDIES.get(info.dialect, f"have the server report them after temperature and filters (vLLM: {_FLAG})")
    if unknown := [name for name in _NAMED if getattr(drawn, name) is None]:
        names = ", ".join(unknown)
        why = f"the server does not say how it samples by itself ({names}): vLLM takes a model's own settings"
        flags = " ".join(f"-s {name}={_NAMED[name]}" for name in unknown)
        return Doubt("sampling_unknown", why, f"give them: {flags}")
    if info.logprobs_mode == "processed_logprobs":
        filters = {name: value for name, value in changed.items() if name != "temperature"}
        if info.dialect == "sglang" and filters.keys() & _CUT:
            why = f"logprobs are of before top_k, top_p and min_p; tokens are drawn after them ({said})"
            return Doubt("logprobs_before_filters", why, "sample without them")
        if not filters:
            return None
        why = f"logprobs are of the distribution after filters and penalties ({said}), which a trainer must apply, too"
        return Doubt("logprobs_after_filters", why, "sample without them, or have the trainer apply the same")
    if not changed:
        return None
    if info.logprobs_mode == "raw_logprobs":
        why = f"logprobs are the model's own, before temperature and filters; tokens are drawn after them ({said})"
        return Doubt("logprobs_before_sampling", why, f"{server}, or sample at temperature 1 without filters")
    why = f"the probe could not tell whether logprobs are of before or of after temperature and filters ({said})"
    return Doubt("logprobs_meaning_unknown", why, f"{server}, or sample at temperature 1 without filters")


def told(sampling: Sampling) -> str:
    """What changes something, for people."""
    return ", ".join(f"{name} {value:g}" for name, value in sampling.given.items()) or "as the model is"


def warn_of_logprobs(info: ServerInfo, config: EngineConfig) -> None:
    """Says it, where there is something to say."""
    warn(doubt(info, config))


def warn(found: Doubt | None) -> None:
    """Says what there is to say."""
    if found is not None:
        _log.warning(found.event, why=found.why, remedy=found.remedy)
