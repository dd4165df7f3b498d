"""Who asks: what a request's headers say of its agent, its session, its key, and whether it was sent before.

x-claude-code-agent-id: explore-1           agent "explore-1"
x-codex-turn-metadata: {"agent_name": ...}  the same from Codex
x-rollout-agent: judge                      the same from a loop of one's own
x-rollout-train: false                      what is sampled stays in the record and is not trained on
x-stainless-retry-count: 1                  an SDK of OpenAI's or Anthropic's sends the same again
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from rollout.door import well_formed, within

_AGENT = ("x-rollout-agent", "x-claude-code-agent-id")
_PARENT = ("x-rollout-parent-agent", "x-claude-code-parent-agent-id")
_SESSION = ("x-session-id", "session-id", "session_id", "x-claude-code-session-id", "thread-id", "conversation_id")
_IDEMPOTENCY = ("idempotency-key", "x-idempotency-key")

#: Names and ids of a client's own end up in records.
_MOST_CHARS = 128


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's headers say."""

    keys: tuple[str, ...] = ()
    """API keys, as sent: `x-api-key`, `Authorization: Bearer`, `api-key`. Never logged; left out of `repr`."""
    agent: str | None = None
    """Who asks, where the program names it; None for its main loop."""
    parent: str | None = None
    """The agent that started it."""
    session: str | None = None
    """A session's or a conversation's id: a hint only, which a registered key beats."""
    retry: int = 0
    """How many times the client sent this request before."""
    train: bool = True
    """Whether what is sampled is trained on."""
    idempotency_key: str | None = None
    """The same on every try of one request."""

    @property
    def is_retry(self) -> bool:
        """Whether the client itself says that this request was sent before."""
        return self.retry > 0

    def __repr__(self) -> str:
        return f"<Caller agent={self.agent} session={self.session} retry={self.retry} {len(self.keys)} keys>"


def read_headers(headers: Mapping[str, str]) -> Caller:
    """What headers say; their names in lower case, or in a mapping that does not mind."""
    agent, parent = _codex(headers)
    return Caller(
        keys=_keys(headers),
        agent=_first(headers, _AGENT) or agent,
        parent=_first(headers, _PARENT) or parent,
        session=_first(headers, _SESSION),
        retry=_count(headers.get("x-stainless-retry-count")),
        train=headers.get("x-rollout-train", "").strip().lower() not in ("false", "0", "no"),
        idempotency_key=_first(headers, _IDEMPOTENCY),
    )


class _Codex(msgspec.Struct):
    session_id: str | None = None
    thread_id: str | None = None
    parent_thread_id: str | None = None
    agent_name: str | None = None


_CODEX = msgspec.json.Decoder(_Codex)

#: What Codex calls its main loop; and, in 0.169, each agent that it starts as well.
_ROOT = "/root"


def _codex(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(the agent, the one that started it) as Codex tells them: an agent that is called as the main loop is its thread.

    What it asks beside its turns, such as a summary, has a header of its own.
    """
    if not (text := headers.get("x-codex-turn-metadata")):
        return None, None
    try:
        said = _CODEX.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # of another version: it names nobody
        return None, None
    above = said.parent_thread_id if said.parent_thread_id != said.session_id else None
    named = said.agent_name if said.agent_name != _ROOT else None
    unnamed = said.thread_id if said.parent_thread_id else headers.get("x-openai-subagent")
    return _short(named) or _short(unnamed), _short(above)


def _keys(headers: Mapping[str, str]) -> tuple[str, ...]:
    scheme, _, bearer = headers.get("authorization", "").strip().partition(" ")
    found = (headers.get("x-api-key"), bearer if scheme.lower() == "bearer" else None, headers.get("api-key"))
    return tuple(dict.fromkeys(key.strip() for key in found if key and key.strip()))


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((found for name in names if (found := _short(headers.get(name)))), None)


def _short(text: str | None) -> str | None:
    return within(well_formed(text.strip()), _MOST_CHARS) or None if text else None


def _count(text: str | None) -> int:
    return min(int(text), 1_000) if text and text.isascii() and text.isdigit() and len(text) < 6 else 0
