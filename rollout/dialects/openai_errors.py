"""Errors as both of OpenAI's dialects write them."""

from __future__ import annotations

import msgspec

from rollout.dialects import sse
from rollout.dialects.types import DialectError

#: OpenAI's type of error by HTTP status; 400 and others below 500 are `invalid_request_error`.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class OpenAIErrors:
    """What chat completions and Responses share."""

    def error(self, error: DialectError) -> bytes:
        return msgspec.json.encode({"error": error_fields(error)})

    def error_event(self, error: DialectError) -> bytes:
        return sse.frame({"error": error_fields(error)})


def error_fields(error: DialectError) -> dict[str, str | None]:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}
