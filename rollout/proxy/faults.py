"""What went wrong with a turn, as the error that its client is told. Never a traceback: that is logged, under an id."""

from __future__ import annotations

import uuid

from rollout.dialects.types import CONTEXT_LENGTH, DialectError
from rollout.door import error_text
from rollout.errors import (
    AuthenticationFailed,
    LimitReached,
    MessageError,
    ModelNotFound,
    RequestRefused,
    RolloutError,
    ServerBusy,
    TransportError,
)
from rollout.log import get_logger
from rollout.play.model import RolloutEnded
from rollout.play.route import FallbackRefused
from rollout.play.served import ContextFull
from rollout.play.session import SessionClosed
from rollout.tokens.verify import InvariantBroken

_log = get_logger(__name__)

#: Statuses for which another try of the same may help: SDKs are told so, whatever they would do by themselves.
RETRYABLE = frozenset({408, 429, 503})


class ClientGone(RolloutError):
    """Nobody waits for this turn any more."""


def unknown_key() -> DialectError:
    """No rollout has this key."""
    why = "no rollout has this key: use the endpoint's api_key, or its path /r/KEY"
    return DialectError(401, why, code="invalid_api_key")


def ended(why: str = "") -> DialectError:
    """The key's rollout has ended."""
    so = f" ({why})" if why else ""
    return DialectError(409, f"this key's rollout has ended{so}: nothing is asked of its model any more", code="ended")


def stopping() -> DialectError:
    """The recorder ends, and goes on with its sessions where it is started anew."""
    return DialectError(503, "the recorder is stopping: ask again, where it is started anew", code="stopping")


def no_room(why: str) -> DialectError:
    """It may be tried again later."""
    return DialectError(429, why, code="no_room")


def too_large(most: int) -> DialectError:
    """The body is over the limit."""
    return DialectError(413, f"the request is larger than {most:,} bytes (proxy_body_bytes)", code="request_too_large")


def refusal_of(error: BaseException) -> DialectError:
    """The error that a client is told."""
    text = error_text(error)
    match error:
        case DialectError():
            return error
        case LimitReached():
            full = isinstance(error.__cause__, ContextFull | RequestRefused)
            # The words by which programs know that they must compact, beside the code.
            return DialectError(400, f"prompt is too long: {text}", code=CONTEXT_LENGTH) if full else _limit(text)
        case RolloutEnded() | SessionClosed():
            return ended()
        case MessageError():
            return DialectError(400, text)
        case FallbackRefused():
            return DialectError(400, text, code="fallback_refused")
        case AuthenticationFailed() | ModelNotFound():
            return DialectError(503, f"the model's server refuses the run: {text}", code="server_refused")
        case RequestRefused():
            return DialectError(400, text)
        case ServerBusy(status=429):
            return no_room(f"the model's server is busy: {text}")
        case TransportError():
            return DialectError(503, f"the model's server cannot answer: {text}", code="server_unavailable")
        case ClientGone():
            return DialectError(408, text, code="client_gone")
    return _internal(error)


def _limit(text: str) -> DialectError:
    return DialectError(400, text, code="limit_reached")


def _internal(error: BaseException) -> DialectError:
    number = uuid.uuid4().hex[:12]
    _log.error("proxy_error", id=number, exc_info=error)
    what = "an invariant of the rollout broke" if isinstance(error, InvariantBroken) else "this turn failed"
    return DialectError(500, f"{what}; the engine's log tells why, under {number}", code="internal_error")
