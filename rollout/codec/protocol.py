"""What sessions ask of a codec, whichever has the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.chat.messages import Message
from rollout.codec.readers import Reader, Sampled, read, reader_names
from rollout.codec.readers.plain import PLAIN
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.log import get_logger

_log = get_logger(__name__)


class Codec:
    """A model's messages and ids. `LocalCodec` has a tokenizer, `ServerCodec` asks the server."""

    stop_token_ids: list[int]
    """Ids that end a turn; sent with every request."""
    description: str
    """For people: which bridges are in use."""
    reader: Reader | None
    """What reads the answers; None where no reader fits the model."""
    _said = False
    """Whether it was said that none does."""

    def read(self, sampled: Sampled) -> Message:
        """The assistant's message. Where no reader fits it is text, and that is said once, if tools are offered."""
        if self.reader is None and sampled.tools and not self._said:
            self._said = True
            _log.warning(
                "no_reader",
                hint="how this model writes tool calls is not known, so they are text: name its reader by --reader",
                readers=", ".join(reader_names()),
            )
        return read(self.reader or PLAIN, sampled)

    has_tokenizer = False
    """Whether prompts are made here, by the model's own tokenizer, and not by a server."""

    knows_developer: bool = True
    """Whether the template names the role `developer`; where nobody can tell, it may."""
    vocab_size: int | None = None
    """How many ids the tokenizer has; None where it is the server's."""
    tool_fields: Mapping[str, Any] = {}
    """What the server adds to tools: a whole prompt that is made here has it, too."""

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        """The ids that follow the completion, or why there are none. Never raises for what was sampled."""
        raise NotImplementedError

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        """A whole prompt's ids, the generation prompt included."""
        raise NotImplementedError

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message | None:
        """The assistant's message; None where only the server can read it."""
        raise NotImplementedError

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, for people."""
        raise NotImplementedError

    async def saw_stop(self, completion_ids: Sequence[int], sampling: Mapping[str, Any], context: Context) -> None:
        """Hears of a completion that ended with finish reason `stop`, sampled with the caller's parameters."""

    async def shows_late(self, before: str, role: str, behind: str, context: Context) -> bool:
        """Whether the template shows a message of this role behind one of role `before`, in front of `behind`."""
        return True

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        """Whether a text holds what a server would take for special tokens, and is to stay text."""
        return False
