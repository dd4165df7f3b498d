"""Errors: what a caller did wrong, and what a server or the network did.

A rollout that goes wrong is data (`rollout.records.Failure`), not an error. What is raised is a
wrong call, a wrong setting, or a fault that a layer below hands to the layer that decides.
"""

from __future__ import annotations


class RolloutError(Exception):
    """The base of every error that this package raises on purpose."""


class UsageError(RolloutError):
    """The caller's mistake: an unknown name, a wrong type, an unreadable file. Exit status 2."""


class ConfigError(UsageError):
    """A setting that cannot be used, named with its remedy."""


def not_installed(what: str, missing: str | None, extra: str) -> ConfigError:
    """What says that a package is missing, and which extra of ours brings it."""
    return ConfigError(f"{what} needs {missing}, which is not installed: pip install 'rollout-engine[{extra}]'")


class UserCodeFailed(ConfigError):
    """Code of the user's that was called before anything was played raised; its error is the cause."""


class MessageError(UsageError):
    """A message that cannot be read."""


class ServerError(RolloutError):
    """A server that cannot be reached or refuses what every request would ask. Exit status 3."""


class NoServerLeft(ServerError):
    """Every server is gone, for longer than a run waits. What finished is kept; `--resume` goes on."""


class EngineClosed(RolloutError):
    """The engine was closed: nothing more is played, or comes. What had finished is in `engine.untaken`."""


class EngineStopped(RolloutError):
    """`stop_admitting` was called: the engine begins no further rollouts."""


class LimitReached(RolloutError):
    """A limit of the rollout's: it has taken its turns, or its prompt does not fit the context. Nothing was sent."""


class TooManyFailures(RolloutError):
    """So many rollouts failed that the run was ended (`--fail-fast`, `--max-failures`). Exit status 4."""


class TransportError(RolloutError):
    """One request failed. `retryable` tells whether the same request may succeed later."""

    retryable: bool = False

    def __init__(self, message: str, *, status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, or None where no answer came."""
        self.body = body
        """The beginning of the answer's body, for people."""


class ConnectionFailed(TransportError):
    """The server could not be reached, or the connection broke."""

    retryable = True


class NotSent(ConnectionFailed):
    """The request could not leave this machine (no file descriptor, no address found): no word on the server."""


class RequestTimeout(TransportError):
    """No answer within the request's deadline."""

    retryable = True


class ServerBusy(TransportError):
    """The server answered 408, 409, 425, 429 or 5xx, more often than the retries allow."""

    retryable = True


class CompletionAborted(TransportError):
    """The server ended a completion again and again, and nobody here had asked it to."""

    retryable = True


class RequestRefused(TransportError):
    """The server refused this request (another 4xx). The same request would be refused again."""


class AuthenticationFailed(RequestRefused):
    """401 or 403: the API key is missing or wrong."""


class ModelNotFound(RequestRefused):
    """The server does not serve the model that was asked for."""


class ServerChanged(TransportError):
    """The server is not what it was when it was opened: a shorter context, or another dialect. Open it anew."""


class PromptTooLong(RequestRefused):
    """The prompt does not fit the model's context."""


class MalformedReply(TransportError):
    """The server answered with something that cannot be trusted: ids missing, counts that differ."""
