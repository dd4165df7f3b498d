"""verl: its servers as a transport, and rollouts as what its agent loops answer.

    verl's AgentLoopWorker -> RolloutAgentLoop (verl_loop.py) -> Engine -> VerlTransport -> verl's LLMServerClient
                                                                                         -> verl's servers

verl serves the policy that it trains, and balances requests over its replicas; the engine plays. Every prompt goes to
verl's client as ids, the first one too. verl pushes the weights itself: each answer says of which step its weights are.

Written against verl 0.9.1: `verl.workers.rollout.llm_server.LLMServerClient` (which was called AsyncLLMServerManager
before 0.8), `verl.workers.rollout.replica.TokenOutput`, `verl.experimental.agent_loop.AgentLoopOutput`. None is
imported here: verl_loop.py does, which is imported where verl is.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import anyio.to_thread
import msgspec

from rollout.codec.tokenizer import template_ids
from rollout.door import error_text
from rollout.errors import ConnectionFailed, MalformedReply, PromptTooLong, RequestRefused, TransportError
from rollout.records import Rollout
from rollout.request import FinishReason, LogprobsMode, MessagePrompt, Reply, Request, Sampling, TokenPrompt, WeightSpan
from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import Row, row_of, trained
from rollout.transport import ServerInfo, Transport

#: Which branches of a rollout verl gets: see `answered`.
Branches = Literal["last", "all"]

#: Words of verl's servers for a completion that they gave up.
_ABORTED = ("aborted", "abort")


class LengthLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What verl pads a rollout to: `actor_rollout_ref.rollout`'s prompt_length, response_length and max_model_len."""

    prompt: int
    """Tokens of the first prompt at most."""
    response: int
    """All tokens behind it, those of the environment's included."""
    context: int | None = None
    """The server's context; None is prompt and response together."""

    @property
    def most(self) -> int:
        """Tokens of a rollout at most."""
        return min(self.context or self.prompt + self.response, self.prompt + self.response)


class TokenOutput(Protocol):
    """What verl's servers answer: see `verl.workers.rollout.replica.TokenOutput`."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def log_probs(self) -> Sequence[float] | None: ...
    @property
    def stop_reason(self) -> str | None: ...
    @property
    def extra_fields(self) -> Mapping[str, Any]: ...


class ServerClient(Protocol):
    """What is called of verl's LLMServerClient."""

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        """Completes ids on the server that has this request's earlier turns."""
        ...


class VerlTransport(Transport):
    """Carries prompts to verl's servers, in process, by verl's own client.

    A prompt of messages is rendered by verl's tokenizer, as verl does. Cancelling gives a request up here; verl's
    servers have no abort by name, so the one that has it samples on to its end.
    """

    def __init__(
        self,
        client: ServerClient,
        tokenizer: Any,
        limits: LengthLimits,
        *,
        model: str = "policy",
        logprobs_mode: str | None = None,
    ) -> None:
        """`model` names the folder or hub name of the policy, `logprobs_mode` what verl's servers were started with."""
        self._client, self._tokenizer, self._limits = client, tokenizer, limits
        self._ends: dict[str, int] = {}
        """Of each trajectory under way: how many tokens it may have, which its first prompt decides."""
        self._closed = False
        self.info = ServerInfo(
            dialect="verl",
            model=model,
            models=[model],
            tokenizer=getattr(tokenizer, "name_or_path", None),
            max_model_len=limits.most,
            vocab_size=len(tokenizer),
            token_route="verl",
            token_routes=["verl"],
            reports_completion_ids=True,
            reports_weight_versions=True,
            logprobs_mode=_known_mode(logprobs_mode),
            sampling_defaults=Sampling(),
            can_tokenize=True,
        )

    def __repr__(self) -> str:
        return f"<VerlTransport {self.info.model}, {len(self._ends)} trajectories>"

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        if self._closed:
            raise ConnectionFailed("this transport was closed")
        if isinstance(request.prompt, TokenPrompt):
            images, ids = bool(request.prompt.images), request.prompt.ids.tolist()
        else:
            images = request.prompt.has_media
            ids = [] if images else await self.tokenize(request.prompt, add_generation_prompt=True)
        if images:
            raise RequestRefused("images and audio do not go through verl's client from here: play text")
        room = self._room(request.session_id, len(ids))
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        stops = sorted({*request.sampling.get("stop_token_ids", ()), *request.stop_token_ids})
        params = {**request.sampling, "logprobs": True, "max_tokens": most, "stop_token_ids": stops}
        more = {} if request.priority is None else {"priority": request.priority}
        started = time.perf_counter()
        try:
            output = await self._client.generate(request.session_id, prompt_ids=ids, sampling_params=params, **more)
        except (ValueError, TypeError) as error:  # of a server's, too: Ray's errors are instances of what they carry
            raise RequestRefused(f"verl's server refused this request: {error_text(error)}") from error
        except Exception as error:
            raise TransportError(f"verl's servers failed: {error_text(error)}") from error
        reply = reply_of(output, most, frozenset(stops))
        sent = ids if isinstance(request.prompt, MessagePrompt) or request.echo_prompt else None
        return msgspec.structs.replace(
            reply, prompt_ids=sent, prompt_tokens=len(ids), request_s=time.perf_counter() - started
        )

    def _room(self, session_id: str, length: int) -> int:
        """Tokens that may be sampled behind a prompt of this length. Raises PromptTooLong where none may."""
        end = self._ends.get(session_id)
        if end is None:
            if length > self._limits.prompt:
                raise PromptTooLong(
                    f"the first prompt has {length} tokens, and rollout.prompt_length is {self._limits.prompt}"
                )
            end = self._ends[session_id] = min(length + self._limits.response, self._limits.most)
        if length >= end:
            raise PromptTooLong(
                f"the prompt has {length} tokens, and rollout.response_length ends the rollout at {end}"
            )
        return end - length

    async def aclose(self) -> None:
        """See `rollout.transport.Transport`. The client is verl's, and stays."""
        self._closed = True

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """The ids that verl's tokenizer makes of these messages."""
        if self._closed:
            raise ConnectionFailed("this transport was closed")
        tools, args = list(prompt.tools), dict(prompt.template_args)
        return await anyio.to_thread.run_sync(
            lambda: template_ids(
                self._tokenizer, list(prompt.messages), tools, args, add_generation_prompt=add_generation_prompt
            )
        )

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        if self._closed:
            raise ConnectionFailed("this transport was closed")
        return await anyio.to_thread.run_sync(lambda: str(self._tokenizer.decode(list(ids))))

    async def check(self) -> None:
        """See `rollout.transport.Transport`. Whether verl's servers are well is verl's to find out."""
        if self._closed:
            raise ConnectionFailed("this transport was closed")

    def release(self, session_id: str) -> None:
        """See `rollout.transport.Transport`."""
        self._ends.pop(session_id, None)


def _known_mode(name: str | None) -> LogprobsMode | None:
    return next((mode for mode in get_args(LogprobsMode) if mode == name), None)


def reply_of(output: TokenOutput, most: int, stops: frozenset[int]) -> Reply:
    """What verl's servers answered: lists, arrays or tensors. Raises MalformedReply where it has no logprobs.

    vLLM's "stop" and "length" are both "completed" there: an answer that is as long as it may be, and ends with none of
    the ids that end a turn, was cut off.
    """
    try:
        ids = [operator.index(token) for token in output.token_ids]
        logprobs = None if output.log_probs is None else [float(value) for value in output.log_probs]
    except (TypeError, ValueError) as error:
        raise MalformedReply(f"verl's server answered ids or logprobs that are no numbers: {error}") from error
    if logprobs is None and ids:
        raise MalformedReply(f"verl's server answered {len(ids)} ids without the logprobs that were asked for")
    reason: FinishReason = "stop"
    if output.stop_reason in _ABORTED:
        reason = "abort"
    elif output.stop_reason == "length" or (output.stop_reason != "stop" and len(ids) >= most and ids[-1] not in stops):
        reason = "length"
    cached = output.extra_fields.get("num_cached_tokens")
    return Reply(
        completion_ids=ids,
        logprobs=logprobs or [],
        finish_reason=reason,
        cached_tokens=cached if isinstance(cached, int) else None,
        weight_versions=versions_of(output.extra_fields, len(ids)),
    )


def versions_of(fields: Mapping[str, Any], count: int) -> tuple[WeightSpan, ...]:
    """The training steps whose weights sampled so many tokens, as verl names them.

    An answer that verl resumed after an update knows its first and its last step, and not where one ends: the last
    token is of the last, those before it count as of the first, so that none seems newer than it is.
    """
    first, last = (
        fields[name] if fields.get(name) is not None else fields.get("global_steps")
        for name in ("min_global_steps", "max_global_steps")
    )
    if not count or first is None or last is None:
        return ()
    if first == last or count == 1:
        return (WeightSpan(str(first), 0, count),)
    return (WeightSpan(str(first), 0, count - 1), WeightSpan(str(last), count - 1, count))


def answered(rollout: Rollout, limits: LengthLimits, branches: Branches = "last") -> list[Row]:
    """The rows of a rollout that verl gets; none where nothing was sampled.

    `last` is for workers that want one answer for a prompt: the branch that was sampled last. It trains on all that was
    sampled in it; what only other branches have is dropped. `all` is for those that take several (verl's v1 trainer):
    each token trains once, as in `Rollout.samples`.

    Where a branch's own prompt is longer than verl pads prompts to, the rest of it goes to the response, masked. What
    is longer than prompt and response together loses its end.
    """
    samples = rollout.samples()
    if branches == "last":
        samples = [max(samples, key=_last_turn)] if samples else []
    found = []
    for sample in samples:
        mask = trained(sample, _sampled_mask(sample, rollout) if branches == "last" else None)
        if 1 not in mask:
            continue
        found.append(_fitted(row_of(sample, min(mask.index(1), limits.prompt), mask), limits.response))
    return found


def _last_turn(sample: TrainingSample) -> int:
    return sample.turns[-1].turn if sample.turns else -1


def _sampled_mask(sample: TrainingSample, rollout: Rollout) -> list[int]:
    """1 for whatever was sampled in a branch and is not left out, whichever branch trains on it else."""
    mask = [0] * len(sample.token_ids)
    for turn in sample.turns:
        if rollout.turns[turn.turn].train:
            mask[turn.start : turn.end] = [1] * (turn.end - turn.start)
    return mask


def _fitted(row: Row, most: int) -> Row:
    if len(row.response_ids) <= most:
        return row
    return msgspec.structs.replace(
        row,
        response_ids=row.response_ids[:most],
        mask=row.mask[:most],
        logprobs=row.logprobs[:most],
        weight_versions=row.weight_versions[:most],
    )
