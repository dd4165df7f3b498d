"""The recorder's own requests, under `/sessions`, and the document that describes all there is: `/openapi.json`.

What is answered and what is described come from one table, `OPERATIONS`.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rollout.dialects.headers import Caller, read_headers
from rollout.dialects.types import DialectError
from rollout.errors import UsageError
from rollout.proxy import faults
from rollout.proxy.app import models_routes, read_body
from rollout.proxy.openapi import Fault, Operation, document
from rollout.proxy.recorded import Recorded
from rollout.proxy.recorder import Given, Recorder
from rollout.proxy.sessions import Served
from rollout.store.folder import encode_array
from rollout.tokens.samples import as_fields

_SAMPLES = msgspec.json.Encoder(enc_hook=encode_array)


class Wanted(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A session to open."""

    name: str = ""
    """Sessions of one name are members of one group, whose advantages are taken together; without one it is alone."""
    task: dict[str, Any] = {}
    """Kept with the rollout."""
    key: str | None = None
    """The API key that its agent will send; without one a new key is made."""


class Reward(Given, kw_only=True, forbid_unknown_fields=True):
    """What a session was worth. What is given later wins."""


class SessionState(msgspec.Struct, kw_only=True):
    """A session as it stands."""

    id: str
    name: str
    task: dict[str, Any]
    turns: int
    under_way: int
    """Turns that the model is at."""
    sampled_tokens: int
    fallbacks: dict[str, int]
    """Turns that went as messages, by reason."""
    reward: float | None
    ended: bool


class OpenedSession(SessionState, kw_only=True):
    """A session that was opened, and how its agent reaches the model."""

    key: str
    """Said this once: it is kept as a hash only."""
    base_url: str
    """For ANTHROPIC_BASE_URL."""
    openai_base_url: str
    """For OPENAI_BASE_URL: the same, with /v1."""
    model: str
    """What the served model is called."""


class SessionList(msgspec.Struct, kw_only=True):
    """The sessions that have not ended."""

    sessions: list[SessionState]


class Ended(msgspec.Struct, kw_only=True):
    """A session that has ended: it is a line of rollouts.jsonl."""

    id: str
    turns: int
    reward: float | None
    """Null where nobody gave one."""
    stop: str | None
    failure: str | None


class Samples(msgspec.Struct, kw_only=True):
    """A session's training samples, one a branch: as `rollout export` writes them."""

    session: str
    samples: list[dict[str, Any]]


class Api:
    """Answers the recorder's own requests."""

    def __init__(self, recorder: Recorder, base_url: str, token: str | None, most_bytes: int) -> None:
        """Where there is a `token`, whoever asks must have it. A body has `most_bytes` at most."""
        self.recorder, self.base_url, self._most_bytes = recorder, base_url, most_bytes
        self._token = token

    def __repr__(self) -> str:
        return f"<Api of {self.recorder!r}>"

    def routes(self) -> list[BaseRoute]:
        """To be put before those of the dialects."""
        found: list[BaseRoute] = [
            Route(each.path, self._endpoint(each), methods=[each.method], name=each.summary) for each in OPERATIONS
        ]
        described_as = msgspec.json.encode(document(OPERATIONS))

        async def described(request: Request) -> Response:
            return Response(described_as, media_type="application/json")

        return [*found, Route("/openapi.json", described, methods=["GET"]), *models_routes(_Visitors(self.recorder))]

    def _endpoint(self, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                self._check(request)
                body = await self._body(request, operation)
                found = await operation.do(self, request, body)
            except UsageError as error:  # the folder takes no more
                return _refused(DialectError(503, str(error), code="not_kept"))
            except Exception as error:
                return _refused(faults.refusal_of(error))
            content = found if isinstance(found, bytes) else msgspec.json.encode(found)
            return Response(content, operation.status, media_type="application/json")

        return answer

    def _check(self, request: Request) -> None:
        if self._token is None:
            return
        # Compared as bytes, in a time that says nothing of the token.
        given = [key.encode(errors="replace") for key in read_headers(request.headers).keys]
        if not any(hmac.compare_digest(each, self._token.encode()) for each in given):
            raise DialectError(401, "the recorder's token is needed: Authorization: Bearer TOKEN", code="unauthorized")

    async def _body(self, request: Request, operation: Operation) -> Any:
        if operation.body is None:
            return None
        content = await read_body(request.scope, request.receive, self._most_bytes)
        if not content.strip() and not operation.body_required:
            return None
        try:
            return msgspec.json.decode(content, type=operation.body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise DialectError(400, f"the body: {error}", code="invalid_body") from None


class _Visitors:
    """Whoever asks for the model's name: where any key would do, none is needed, and no session is opened for it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def find(self, keys: Sequence[str], caller: Caller) -> Served:
        """See `rollout.proxy.sessions.Sessions`."""
        anybody = self._recorder.settings.open_unknown
        return self._recorder.visitor if anybody else self._recorder.find(keys, caller)


async def _open(api: Api, request: Request, wanted: Wanted) -> Any:
    if wanted.key is not None and not wanted.key.strip():
        raise DialectError(400, "key: it is empty; leave it out to have one made", code="invalid_body", param="key")
    if wanted.key is not None and not (wanted.key.isascii() and wanted.key.isprintable()):
        raise DialectError(
            400, "key: no header can carry it: printable ASCII on one line only", code="invalid_body", param="key"
        )
    key = wanted.key.strip() if wanted.key is not None else f"rk-{secrets.token_urlsafe(32)}"
    recorded = await api.recorder.open(wanted.name, wanted.task, key)
    return OpenedSession(
        **recorded.state(),
        key=key,
        base_url=api.base_url,
        openai_base_url=f"{api.base_url}/v1",
        model=recorded.served.server.model,
    )


async def _list(api: Api, request: Request, body: None) -> Any:
    return SessionList(sessions=[SessionState(**state) for state in api.recorder.states()])


async def _get(api: Api, request: Request, body: None) -> Any:
    session = request.path_params["id"]
    if session not in api.recorder.folder.ended:
        return _state(api.recorder.get(session))
    rollout = await api.recorder.rollout(session)
    return SessionState(
        id=rollout.id,
        name="" if rollout.task_id == rollout.id else rollout.task_id,
        task=dict(rollout.task),
        turns=len(rollout.turns),
        under_way=0,
        sampled_tokens=sum(turn.completion_tokens for turn in rollout.turns),
        fallbacks={reason.value: count for reason, count in rollout.fallbacks.items()},
        reward=rollout.score,
        ended=True,
    )


async def _reward(api: Api, request: Request, given: Reward) -> Any:
    return _state(await api.recorder.reward(request.path_params["id"], given))


async def _end(api: Api, request: Request, given: Reward | None) -> Any:
    rollout = await api.recorder.end(request.path_params["id"], given)
    return Ended(
        id=rollout.id,
        turns=len(rollout.turns),
        reward=rollout.score,
        stop=rollout.stop.value if rollout.stop is not None else None,
        failure=rollout.failure.message if rollout.failure is not None else None,
    )


async def _samples(api: Api, request: Request, body: None) -> Any:
    session = request.path_params["id"]
    rollout = await api.recorder.rollout(session)

    def made() -> bytes:
        samples = [as_fields(sample) for sample in rollout.samples()]
        return _SAMPLES.encode({"session": session, "samples": samples})

    return await anyio.to_thread.run_sync(made)


def _state(recorded: Recorded) -> SessionState:
    return SessionState(**recorded.state())


def _refused(error: DialectError) -> Response:
    kind = error.code or "invalid_request"
    content = msgspec.json.encode(Fault(error={"message": error.message, "code": kind, "param": error.param}))
    retry = {"retry-after": "1"} if error.status in faults.RETRYABLE else {}
    return Response(content, error.status, retry, "application/json")


OPERATIONS = [
    Operation(
        method="POST",
        path="/sessions",
        summary="Open a session, and register its key.",
        body=Wanted,
        body_required=False,
        answer=OpenedSession,
        status=201,
        do=lambda api, request, body: _open(api, request, body or Wanted()),
    ),
    Operation(
        method="GET", path="/sessions", summary="The sessions that have not ended.", answer=SessionList, do=_list
    ),
    Operation(method="GET", path="/sessions/{id}", summary="A session as it stands.", answer=SessionState, do=_get),
    Operation(
        method="POST",
        path="/sessions/{id}/reward",
        summary="Say what a session was worth, before it ends.",
        body=Reward,
        answer=SessionState,
        do=_reward,
    ),
    Operation(
        method="POST",
        path="/sessions/{id}/end",
        summary="End a session, with a reward if one is given: it becomes a line of rollouts.jsonl.",
        body=Reward,
        body_required=False,
        answer=Ended,
        do=_end,
    ),
    Operation(
        method="GET",
        path="/sessions/{id}/samples",
        summary="A session's training samples, ended or not.",
        answer=Samples,
        do=_samples,
    ),
]
