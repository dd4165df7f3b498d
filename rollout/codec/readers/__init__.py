"""Sampled text -> the assistant's message: one reader for each way in which models write reasoning and calls.

Read here on both routes, whatever the server parsed, so that a server's tool parser, or its absence, changes nothing.
Which reader serves is a question of the model, not of who renders its prompts.

    choose      the reader of a model: by its template's own calls, its template's text, its tokens, its name
    base        a text cut into pieces, and the message that they make
    reasoning   `<think>` and its kin
    values      calls as JSON
    tagged      calls as JSON between tags: Hermes

Others take `Reader`, `Sampled`, `choose_reader` and `read`.
"""

from rollout.codec.readers.base import Reader, Sampled, number_calls, read
from rollout.codec.readers.choose import choose_reader

__all__ = ["Reader", "Sampled", "choose_reader", "number_calls", "read"]
