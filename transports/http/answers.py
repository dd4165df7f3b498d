"""What an answer means that is no success: its status, its words, and how long to wait."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape

import msgspec

from rollout.address import shown_url
from rollout.errors import (
    AuthenticationFailed,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    ServerBusy,
    TransportError,
)

#: Answers that may differ next time. Other 4xx would be the same again.
RETRY_STATUSES = frozenset({408, 409, 425, 429})

#: A server that asks for more is asked again all the same.
RETRY_AFTER_MAX_S = 120.0

#: How vLLM (seen on 0.31 and 0.32, completions and chat) and SGLang (0.5.23) say that a prompt does not fit.
_TOO_LONG = (
    *("maximum model length", "maximum context length", "longer than the maximum", "context length of"),
    *("longer than the model's context length", "exceeds the maximum allowed length"),
)

#: What msgspec raises for bytes that are no JSON, or JSON that is nested too deep.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def error_of(status: int, body: bytes, path: str, headers: Mapping[str, str] | None = None) -> TransportError:
    """The error that a status of 300 and above and its body are."""
    text = server_message(body)
    if status < 400:
        location = shown_url((headers or {}).get("location") or "nowhere")
        text = f"it redirects to {location}, which is not followed: give that address itself"
    message = f"{path}: {status}: {text}" if text else f"{path}: {status}"
    kind: type[TransportError] = RequestRefused
    if status in RETRY_STATUSES or status >= 500:
        kind = ServerBusy
    elif status in (401, 403):
        kind = AuthenticationFailed
    elif status == 404 and "model" in text.lower():
        kind = ModelNotFound
    elif status in (400, 413, 422) and any(phrase in text.lower() for phrase in _TOO_LONG):
        kind = PromptTooLong
    return kind(message, status=status, body=body[:500].decode("utf-8", "replace"))


def hidden_status(body: bytes) -> int | None:
    """The status of an error object that came as a success, as gateways send it; None where there is none.

    500 where it names no status: whoever made it did not know either.
    """
    if b'"error"' not in body[:100]:
        return None
    try:
        value = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    if not isinstance(value, dict) or "choices" in value:
        return None
    found = value.get("error")
    if not found and value.get("object") != "error":  # a text may be this word
        return None
    codes = (found.get("code"), value.get("code")) if isinstance(found, dict) else (value.get("code"),)
    return next((code for code in codes if isinstance(code, int) and 400 <= code < 600), 500)


def server_message(body: bytes) -> str:
    """What the server says went wrong, in the forms that vLLM, Dynamo and FastAPI have, in one short line.

    Of a web page, as a gateway sends it, its title.
    """
    if _PAGE.match(body[:200]):
        title = _TITLE.search(body[:20_000])
        named = " ".join(unescape(title[1].decode("utf-8", "replace")).split()) if title else ""
        return f"a web page{f' ({named[:200]})' if named else ''}, as a gateway or another program sends it"
    try:
        value = msgspec.json.decode(body)
        while isinstance(value, dict):
            value = next((value[key] for key in ("error", "message", "detail") if value.get(key)), "")
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    except UNREADABLE:
        text = body[:4_000].decode("utf-8", "replace")
    return " ".join(text.split())[:400]


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, at most `RETRY_AFTER_MAX_S`; 0 where it asks for nothing that can be read.

    `retry-after-ms` is milliseconds; `retry-after` is seconds, or a date, which without a zone is UTC.
    """
    if (value := headers.get("retry-after-ms")) is not None and (found := _number(value)) is not None:
        return _bounded(found / 1000)
    if (value := headers.get("retry-after")) is None:
        return 0.0
    if (found := _number(value)) is not None:
        return _bounded(found)
    try:
        at = parsedate_to_datetime(value)
        return _bounded((at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bounded(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), RETRY_AFTER_MAX_S)
