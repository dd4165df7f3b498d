"""Messages <-> ids: the bridges that render what an environment added, and the reader of what was sampled.

    protocol    what is asked of a codec
    local       the codec over a tokenizer: asks the bridges in order for a tail's ids, and reads an answer's ids
    server      the codec over a server's /tokenize
    families    which family of `renderers` fits a tokenizer and its template
    types       what a bridge is asked, and what it answers
    renderer    the bridge by a hand-written family of `renderers`
    template    the bridges by stand-ins: a claim is proved against the model's own template, for each shape of tail
    history     what a template sees of earlier messages
    walked      a history, as a proof is remembered by it
    heads       the short conversations that stand for a history
    said        what the model really said, tried in a stand-in's place
    source      what a template's source says: what it looks for in texts, whether it takes parts
    compare     whether the local tokenizer is the server's
    late        whether a template shows a message that comes late, in its place
    stand_in    a short conversation that stands for the real one in such a proof
    pattern     what a renderer writes around a text, learnt once and compared with it
    literal     markers in texts stay texts
    tokenizer   the model's tokenizer, with what we ask of it
    readers     sampled text -> message and tool calls, apart from all of these

Others take `Codec` from `rollout.codec.protocol`.
"""

from rollout.moved import forward

forward("rollout.codec")
