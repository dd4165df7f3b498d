"""What programs ask of the embedded server: OpenAI Responses and Anthropic Messages, and streams of any dialect.

An answer is whole before it is streamed: until then a comment keeps the connection open.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rollout.chat.messages import Message
from rollout.dialects import sse
from rollout.dialects.anthropic import Anthropic
from rollout.dialects.dialect import Dialect
from rollout.dialects.memory import Memory
from rollout.dialects.responses import Responses
from rollout.dialects.types import CONTEXT_LENGTH, Call, DialectError, Said
from transports.embedded.chat import ChatError
from transports.embedded.jobs import Completion, EngineClosedError, Job
from transports.embedded.reply import read_reply
from transports.embedded.wire import Refused, RouteSpec, SamplingBody, Served, run_job, submitted

#: Seconds between two comments of a stream whose answer is not there yet.
KEEPALIVE_S = 5.0

ANTHROPIC = Anthropic()
_RESPONSES = Responses()

#: Said in a request, and done by leaving tools out or in.
_NOT_SAMPLING = ("tool_choice",)


class ProgramRoutes:
    """The handlers; each is a coroutine of one request."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._memory = Memory()
        """Of Responses, whose conversations may go on from an answer's id; the others tell all in each request."""

    def routes(self) -> list[RouteSpec]:
        """Every route: method, path, handler."""
        return [
            ("GET", "/", self.root),
            ("POST", "/v1/responses", self.responses),
            ("POST", "/v1/messages", self.messages),
            ("POST", "/v1/messages/count_tokens", self.count_tokens),
        ]

    async def root(self, request: Request) -> Response:
        """Claude Code asks HEAD of it before anything else."""
        return Response(status_code=200)

    async def responses(self, request: Request) -> Response:
        return await self._answer(request, _RESPONSES, self._memory)

    async def messages(self, request: Request) -> Response:
        return await self._answer(request, ANTHROPIC, Memory())

    async def count_tokens(self, request: Request) -> Response:
        try:
            ids = self._prompt(ANTHROPIC.read(await request.body(), Memory()))
        except (DialectError, Refused) as error:
            return refusal(ANTHROPIC, error)
        return Response(ANTHROPIC.count_body(len(ids)), media_type="application/json")

    async def _answer(self, request: Request, dialect: Dialect, memory: Memory) -> Response:
        try:
            call = dialect.read(await request.body(), memory)
            body = _sampling(call)
            job = self._job(call, body)
            if call.stream:
                return streamed(
                    submitted(self.served, [job]),
                    lambda done: dialect.events(self._said(done[0], job, body), call, memory),
                    dialect,
                )
            said = self._said(await run_job(self.served, job, request), job, body)
        except (DialectError, Refused, EngineClosedError) as error:
            return refusal(dialect, error)
        return Response(dialect.body(said, call, memory), media_type="application/json")

    def _prompt(self, call: Call) -> list[int]:
        """The prompt's ids. Raises Refused."""
        self.served.check_model(call.model)
        tools = [] if call.sampling.get("tool_choice") == "none" else [dict(tool) for tool in call.tools]
        try:
            return self.served.chat.render([_plain(each) for each in call.messages], tools, call.template_args)
        except ChatError as error:
            raise Refused(400, str(error)) from error

    def _job(self, call: Call, body: SamplingBody) -> Job:
        """What a call comes to, its cap cut to the context. Raises Refused, and DialectError where nothing fits."""
        ids = self._prompt(call)
        room = self.served.context - len(ids)
        if room < 1:
            raise DialectError(400, f"{len(ids)} tokens > {self.served.context - 1} maximum", code=CONTEXT_LENGTH)
        cap = room if call.max_tokens is None else min(call.max_tokens, room)
        identifier, defaults = uuid.uuid4().hex, self.served.defaults
        return self.served.job(ids, body, request_id=identifier, max_tokens=cap, defaults=defaults)

    def _said(self, completion: Completion, job: Job, body: SamplingBody) -> Said:
        message = read_reply(self.served.text(completion, body))
        stop = self.served.stop_text(completion, body)
        return said(completion, message, len(job.prompt_ids), job.request_id, stop)


def said(
    completion: Completion, message: Message, prompt_tokens: int, identifier: str, stop: str | None = None
) -> Said:
    """What a dialect answers. Raises DialectError for a completion that was ended from outside."""
    if completion.finish_reason == "abort":
        raise DialectError(503, "the answer was aborted while weights were changed: ask again", code="aborted")
    return Said(
        message=message,
        finish_reason=completion.finish_reason,
        stop_sequence=stop,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(completion.ids),
        cached_tokens=completion.cached_tokens,
        id=identifier,
        created=int(time.time()),
    )


def streamed(
    waiting: asyncio.Future[list[Completion]],
    events: Callable[[Sequence[Completion]], Iterator[bytes]],
    dialect: Dialect,
) -> Response:
    """The events of what is waited for, which is aborted where the client leaves."""

    async def frames() -> AsyncIterator[bytes]:
        try:
            while not (await asyncio.wait((waiting,), timeout=KEEPALIVE_S))[0]:
                yield sse.KEEPALIVE
            for frame in events(waiting.result()):
                yield frame
        except (DialectError, EngineClosedError) as error:
            yield dialect.error_event(_as_error(error))
        finally:
            waiting.cancel()

    return StreamingResponse(frames(), media_type=sse.MEDIA_TYPE)


def refusal(dialect: Dialect, error: Exception) -> Response:
    """An error as the dialect writes it."""
    found = _as_error(error)
    return Response(dialect.error(found), found.status, media_type="application/json")


def _as_error(error: Exception) -> DialectError:
    match error:
        case DialectError():
            return error
        case Refused():
            return DialectError(error.status, error.message, param=error.param)
    return DialectError(503, str(error))


def _plain(message: Message) -> dict[str, object]:
    """A message as the template takes it: it has no role `developer`."""
    plain = message.as_openai()
    return {**plain, "role": "system"} if message.role == "developer" else plain


def _sampling(call: Call) -> SamplingBody:
    """How a call is sampled. Raises DialectError for what is not known here, and for a call that would be forced."""
    if call.sampling.get("tool_choice", "none") != "none":
        raise DialectError.of_field("tool_choice", "the embedded server cannot force a call")
    asked = {name: value for name, value in call.sampling.items() if name not in _NOT_SAMPLING}
    if unknown := asked.keys() - set(SamplingBody.__struct_fields__):
        raise DialectError.of_field(min(unknown), "the embedded server cannot do this")
    try:
        return msgspec.convert(asked, SamplingBody)
    except msgspec.ValidationError as error:
        raise DialectError(400, str(error)) from error
