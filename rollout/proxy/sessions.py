"""The rollouts that are served over HTTP, by their keys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Protocol

import msgspec

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.memory import Memory, MemoryLimits
from rollout.dialects.types import Call
from rollout.log import get_logger
from rollout.memo import Memo
from rollout.play.model import Asking
from rollout.play.session import Ask
from rollout.proxy import faults
from rollout.proxy.asks import ask_of
from rollout.proxy.turns import BeforeLastEvent, Start, Turns
from rollout.transport import ServerInfo

_log = get_logger(__name__)

#: Keys of ended rollouts that are known as such.
_ENDED = 100_000


class Served:
    """One rollout over HTTP: whom to ask, what its dialects remember, and its turns."""

    def __init__(
        self,
        asking: Asking,
        config: EngineConfig,
        *,
        start: Start,
        before_last_event: BeforeLastEvent | None = None,
    ) -> None:
        """`start` starts a turn's task, which ends with the endpoint."""
        self.asking = asking
        self.config = config
        self.memory = Memory(MemoryLimits(answers=config.proxy_answers, bytes=config.proxy_memory_bytes))
        self._left_out = set[str]()
        """What requests named and the model is not shown, said once each."""
        self.turns = Turns(asking, start, config, before_last_event)

    def __repr__(self) -> str:
        return f"<Served {self.asking!r}, {self.turns!r}>"

    @property
    def server(self) -> ServerInfo:
        """What the model's server says of itself."""
        return self.asking.session.server

    def ask_of(self, call: Call, caller: Caller) -> Ask:
        """What a request asks of the session. Raises DialectError for what cannot be done here."""
        if new := set(call.left_out) - self._left_out:
            self._left_out |= new
            _log.info("request_left_out", what=sorted(new), agent=caller.agent)
        return ask_of(call, caller, self.config, self.server)


class Sessions(Protocol):
    """Whose request this is."""

    def find(self, keys: Sequence[str], caller: Caller) -> Served:
        """The rollout of the first key that is known: the path's, where it names one, else those of the headers.

        Raises DialectError: 401 for keys that nobody has, 409 where the rollout has ended, 429 where there is no room.
        """


class Keys:
    """Rollouts by keys that we gave them. A registered key is all that counts: no header can name another rollout."""

    def __init__(self) -> None:
        self._served: dict[bytes, Served] = {}
        self._ended = Memo[bytes, bool](_ENDED)

    def __repr__(self) -> str:
        return f"<Keys of {len(self._served)} rollouts>"

    def __len__(self) -> int:
        return len(self._served)

    def add(self, served: Served) -> str:
        """A new key for a rollout."""
        key = f"rk-{secrets.token_urlsafe(32)}"
        self._served[key_digest(key)] = served
        return key

    def remove(self, key: str) -> Served | None:
        """The rollout has ended, and its key is known as such."""
        digest = key_digest(key)
        self._ended[digest] = True
        return self._served.pop(digest, None)

    def find(self, keys: Sequence[str], caller: Caller) -> Served:
        """See `Sessions`."""
        was = False
        for key in keys:
            digest = key_digest(key)
            if (served := self._served.get(digest)) is not None:
                return served
            was = was or digest in self._ended
        raise faults.ended() if was else faults.unknown_key()


def key_digest(key: str) -> bytes:
    """What a key is looked up by: how long that takes tells nothing of other keys."""
    return hashlib.sha256(key.encode(errors="replace")).digest()


class ModelCard(msgspec.Struct, kw_only=True):
    """A model as `/v1/models` shows it, to OpenAI's clients and Anthropic's alike."""

    id: str
    object: str = "model"
    type: str = "model"
    created: int = 0
    created_at: str = "1970-01-01T00:00:00Z"
    owned_by: str = "rollout"
    display_name: str = ""
