"""What both dialects share: reading bodies, refusing them, running jobs, and the shape of answers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from transports.embedded.chat import ChatFormat
from transports.embedded.engine import Engine
from transports.embedded.jobs import Completion, Job
from transports.embedded.sampling import SamplingParams

#: Answers to one request at most.
MOST_ANSWERS = 128

#: Method, path and handler of one route.
RouteSpec = tuple[str, str, Callable[[Request], Awaitable[Response]]]

Body = TypeVar("Body", bound=msgspec.Struct)
Sampled = TypeVar("Sampled", bound="SamplingBody")


#: What vLLM takes from a model's generation_config, and what of it changes nothing.
NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def generation_defaults(folder: Path) -> dict[str, float]:
    """How a model is sampled where a request does not say: its generation_config, as vLLM reads it by default."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    return {name: config[name] for name in NEUTRAL if isinstance(config.get(name), int | float)}


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param


class GenerateRefused(Refused):
    """The same on Dynamo's generate route, whose errors have another form."""


class Cannot(msgspec.Struct, kw_only=True):
    """What vLLM takes and the embedded server cannot do: it is refused by name, never ignored."""

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logit_bias: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    prompt_logprobs: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    continue_final_message: Any = None
    chat_template: Any = None
    documents: Any = None
    web_search_options: Any = None
    modalities: Any = None


class SamplingBody(Cannot, kw_only=True):
    """The sampling fields that every route takes, by vLLM's names."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    max_tokens: int | None = None
    n: int | None = None


class Served:
    """One model as a server offers it: engine, text, names and limits."""

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        name: str,
        *,
        root: str,
        context: int,
        defaults: Mapping[str, float] | None = None,
    ) -> None:
        self.engine = engine
        self.chat = chat
        self.name = name
        self.root = root
        """The model's folder: where a client on this machine finds the tokenizer."""
        self.context = context
        """Tokens at most, prompt and completion together; the model's own limit or less."""
        self.defaults = defaults or {}
        """How messages and completions are sampled where they do not say: see `generation_defaults`."""
        self.created = int(time.time())

    def check_model(self, model: str | None) -> None:
        """Raises Refused for another model's name; no name is the only model."""
        if model and model != self.name:
            text = f"The model `{model}` does not exist. Available models: {self.name}"
            raise Refused(404, text, "NotFoundError", "model")

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """Raises Refused for ids that the model does not have, or none at all."""
        if not ids:
            raise Refused(400, "The prompt cannot be empty.")
        size = self.engine.model.config.vocab_size
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise Refused(400, f"Token id {wrong[0]} is out of vocabulary")
        return list(ids)

    def job(
        self,
        ids: Sequence[int],
        body: SamplingBody,
        *,
        request_id: str,
        max_tokens: int | None,
        top_logprobs: int = 0,
        cache_salt: str | None = None,
        priority: int = 0,
        defaults: Mapping[str, float] | None = None,
    ) -> Job:
        """A job for the engine. `max_tokens` is already cut or checked against the context; None fills it.

        `defaults` are for what the body leaves out: none on the route of ids, as vLLM has it.
        """
        if body.n not in (None, 1):
            raise Refused(400, "n must be 1 on this route", param="n")
        room = self.context - len(ids)
        own = self.sampling(body, defaults or {})
        _check_sampling(body)
        stops = frozenset(body.stop_token_ids or ())
        if not body.ignore_eos:
            stops |= frozenset(self.engine.model.config.eos_ids)
        params = SamplingParams(
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            temperature=own["temperature"],
            top_p=own["top_p"],
            top_k=int(own["top_k"]),
            min_p=own["min_p"],
            repetition_penalty=own["repetition_penalty"],
            presence_penalty=own["presence_penalty"],
            frequency_penalty=own["frequency_penalty"],
            seed=body.seed,
            stop_ids=stops,
            min_tokens=body.min_tokens,
            top_logprobs=top_logprobs,
        )
        return Job(
            request_id=request_id,
            prompt_ids=list(ids),
            params=params,
            cache_salt=cache_salt,
            priority=priority,
            stops_on_text=self._stops(body),
        )

    def stop_text(self, completion: Completion, body: SamplingBody) -> str | None:
        """The stop string that ended a completion; None where a token did, or its length."""
        if completion.finish_reason != "stop":
            return None
        text = self.chat.decode(completion.ids, skip_special=body.skip_special_tokens)
        found = [(at, word) for word in stop_strings(body) if (at := text.find(word)) >= 0]
        return min(found)[1] if found else None

    def sampling(self, body: SamplingBody, defaults: Mapping[str, float]) -> dict[str, float]:
        """What a body comes to: what it says, else the defaults, else what changes nothing."""
        return {name: _or(getattr(body, name), defaults.get(name, value)) for name, value in NEUTRAL.items()}

    def _stops(self, body: SamplingBody) -> Callable[[list[int]], bool] | None:
        words = stop_strings(body)
        if not words:
            return None
        # A stop string of n characters ends within the last n + 8 tokens or has been found before.
        reach = max(map(len, words)) + 8
        return lambda ids: any(word in self.chat.decode(ids[-reach:]) for word in words)

    def text(self, completion: Completion, body: SamplingBody) -> str:
        """The completion's text, up to a stop string."""
        text = self.chat.decode(completion.ids, skip_special=body.skip_special_tokens)
        ends = [at for word in stop_strings(body) if (at := text.find(word)) >= 0]
        return text[: min(ends)] if ends and completion.finish_reason == "stop" else text


def stop_strings(body: SamplingBody) -> list[str]:
    """The request's stop strings as a list."""
    words = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return [word for word in words if word]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_sampling(body: SamplingBody) -> None:
    checks = [
        (0 <= _or(body.temperature, 1) <= 1e6, "temperature", "temperature must be non-negative"),
        (0 < _or(body.top_p, 1) <= 1, "top_p", "top_p must be in (0, 1]"),
        (_or(body.top_k, 0) >= -1, "top_k", "top_k must be 0 or -1 (disable), or at least 1"),
        (0 <= _or(body.min_p, 0) <= 1, "min_p", "min_p must be in [0, 1]"),
        (0 < _or(body.repetition_penalty, 1) <= 1e6, "repetition_penalty", "repetition_penalty must be above zero"),
        (abs(_or(body.presence_penalty, 0)) <= 2, "presence_penalty", "presence_penalty must be in [-2, 2]"),
        (abs(_or(body.frequency_penalty, 0)) <= 2, "frequency_penalty", "frequency_penalty must be in [-2, 2]"),
        (_or(body.seed, 0) >= 0, "seed", "seed must be non-negative"),
        (body.min_tokens >= 0, "min_tokens", "min_tokens must be greater than or equal to 0"),
    ]
    for holds, param, message in checks:
        if not holds:
            raise Refused(400, message, param=param)
    for name in Cannot.__struct_fields__:
        if (asked := getattr(body, name)) and asked not in ({"type": "text"}, ["text"]):
            raise Refused(400, f"{name}: the embedded server cannot do this", param=name)


def several(body: Sampled) -> list[Sampled]:
    """A request for each of the `n` answers that are asked for, with seeds of their own. Raises Refused."""
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MOST_ANSWERS:
        raise Refused(400, f"n must be at least 1 and at most {MOST_ANSWERS}, got {count}", param="n")
    if count > 1 and body.temperature == 0:
        raise Refused(400, "n must be 1 when using greedy sampling: each answer would be the same", param="n")
    seed = body.seed
    return [msgspec.structs.replace(body, n=None, seed=None if seed is None else seed + at) for at in range(count)]


def check_max_tokens(value: int | None, name: str = "max_tokens") -> None:
    """Raises Refused below 1."""
    if value is not None and value < 1:
        raise Refused(400, f"{name} must be at least 1, got {value}.", param=name)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's body. Raises Refused for what is no JSON object of this shape."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.ValidationError as error:
        # msgspec ends its messages with the place: "... - at `$.max_tokens`".
        place = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else None
        raise Refused(400, str(error), param=place) from error
    except msgspec.DecodeError as error:
        raise Refused(400, f"JSON decode error: {error}") from error


async def run_job(served: Served, job: Job, request: Request) -> Completion:
    """Runs a job to its end; the client's going away, or this task's cancellation, aborts it."""
    return (await run_jobs(served, [job], request))[0]


async def run_jobs(served: Served, jobs: Sequence[Job], request: Request) -> list[Completion]:
    """The same of several at once."""
    waiting = submitted(served, jobs)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Refused(499, "the client closed the connection")
        return waiting.result()
    finally:
        # Cancelling `waiting` cancels the engine's futures, and with them the requests.
        waiting.cancel()
        gone.cancel()


def submitted(served: Served, jobs: Sequence[Job]) -> asyncio.Future[list[Completion]]:
    """What jobs will end with. Cancelling it aborts them."""
    together = asyncio.gather(*(asyncio.wrap_future(served.engine.submit(job)) for job in jobs))
    together.add_done_callback(_seen)
    return together


def _seen(together: asyncio.Future[list[Completion]]) -> None:
    """Nobody asks what became of jobs whose client has left: asyncio is not to say that nobody did."""
    if not together.cancelled():
        together.exception()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answer(content: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def usage(prompt_tokens: int, *completions: Completion) -> dict[str, Any]:
    """Token counts, with what came from the cache for the first of the answers."""
    sampled = sum(len(completion.ids) for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": sampled,
        "total_tokens": prompt_tokens + sampled,
        "prompt_tokens_details": {"cached_tokens": completions[0].cached_tokens},
    }


def chat_logprobs(chat: ChatFormat, completion: Completion, *, ids_as_tokens: bool = False) -> dict[str, Any]:
    """Logprobs in the chat route's form."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = f"token_id:{token_id}" if ids_as_tokens else chat.token(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(token_id, logprob), "top_logprobs": [entry(*pair) for pair in top]}
            for token_id, logprob, top in zip(completion.ids, completion.logprobs, completion.top, strict=True)
        ]
    }


def text_logprobs(chat: ChatFormat, completion: Completion, *, ids_as_tokens: bool = False) -> dict[str, Any]:
    """Logprobs in the completions route's form."""

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if ids_as_tokens else chat.token(token_id)

    tokens = [name(token_id) for token_id in completion.ids]
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    chosen = zip(tokens, completion.logprobs, completion.top, strict=True)
    return {
        "text_offset": offsets[:-1],
        "token_logprobs": completion.logprobs,
        "tokens": tokens,
        "top_logprobs": [{token: logprob, **{name(i): p for i, p in top}} for token, logprob, top in chosen],
    }


def new_id(prefix: str, given: str | None = None) -> str:
    """A response's id, from the caller's request id where there is one."""
    return f"{prefix}-{given or uuid.uuid4().hex}"
