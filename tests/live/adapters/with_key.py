"""An application that answers only those that send a header with a key."""

from __future__ import annotations

from typing import Any


def only_with_key(app: Any, key: str) -> Any:
    """The same application for those that send `X-Key: KEY`."""

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or dict(scope["headers"]).get(b"x-key") == key.encode():
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"no key"})

    return checked
