"""Sampled text -> the assistant's message: one reader for each way in which models write reasoning and calls.

Read here on both routes, whatever the server parsed, so that a server's tool parser, or its absence, changes nothing.
Which reader serves is a question of the model, not of who renders its prompts.

    choose      the reader of a model: by its template's own calls, its template's text, its tokens, its name
    catalogue   all readers by name
    base        what a reader is
    pieces      a text cut into pieces, and the message that they make
    reasoning   `<think>` and its kin
    values      calls as JSON
    schema      values without quotes, which have the type that their tool declares
    literals    Python's literals

    blocks      calls between tags: Hermes, Granite, Phi, Nemotron, MiniMax-M1, Cohere and others, in JSON
    xml         calls as tags: Qwen3-Coder, GLM, MiniMax-M2, DeepSeek-V3.2 and others
    sections    calls between tokens, in a section: DeepSeek, Kimi
    bare        calls without a marker: Llama, xLAM
    pythonic    calls as Python: Llama 4, LFM2, Olmo, Gemma
    mistral     Mistral's calls, in the formats of its tokenizers
    harmony     turns made of messages of their own, each with a header: gpt-oss
    atem        messages with recipients, and calls as tags: Muse
    gemma       Gemma's notation
    response_template  the format that a tokenizer documents for transformers, read by transformers
    plain       answers without calls, where no reader fits

Others take `Reader`, `Sampled`, `choose_reader` and `read`.
"""

from rollout.codec.readers.base import Reader, number_calls, read
from rollout.codec.readers.choose import choose_reader, named_reader, reader_names
from rollout.codec.readers.pieces import Sampled

__all__ = ["Reader", "Sampled", "choose_reader", "named_reader", "number_calls", "read", "reader_names"]
