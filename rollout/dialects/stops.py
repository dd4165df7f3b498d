"""Which stop text ended an answer, and what a client is shown of it.

Sampled ids hold the stop text, and what else its last token says: they stay in the record, and are trained on. A
client is shown what servers of OpenAI's and Anthropic's show, which ends before it.

    stop ["Observation:"]    "I look.\\nObservation: 4"    shown "I look.\\n", stopped by "Observation:"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rollout.chat.messages import Message


def stopped(message: Message, asked: Mapping[str, Any]) -> tuple[str | None, Message | None]:
    """(the stop text that ended an answer, what is shown of it); None for what is not so.

    A call is shown whole: its text is the template's, and no client would read the half of one.
    """
    wanted = asked.get("stop") or ()
    texts = [wanted] if isinstance(wanted, str) else [text for text in wanted if text]
    if not texts or message.tool_calls:
        return None, None
    # Servers look at all that is sampled: what was stopped while it thought has said nothing yet.
    in_text = bool(message.text.strip())
    said = message.text if in_text else message.reasoning_content or ""
    found = [(at, text) for text in texts if (at := _found(said, text, asked)) >= 0]
    if not found:
        return None, None
    at, stop = min(found, key=lambda each: each[0])
    if asked.get("include_stop_str_in_output"):
        return stop, None
    rest = said[:at] or None
    shown = {"content": rest} if in_text else {"reasoning_content": rest}
    return stop, msgspec.structs.replace(message, **shown)


def _found(said: str, text: str, asked: Mapping[str, Any]) -> int:
    """Where a stop text begins. Where so many tokens had to come first, an earlier one has stopped nothing."""
    return said.rfind(text) if asked.get("min_tokens") else said.find(text)
