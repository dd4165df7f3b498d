"""What programs say on the wire: three dialects, each a pure reading of requests and writing of answers.

A dialect reads one request's body into a `Call` (messages, tools, sampling), and writes what the model said, a `Said`,
as a body or as the frames of a stream. It does no I/O and knows no engine, so it serves both sides: the proxy in front
of a rollout's model, and the embedded server.

    dialect    what a Dialect is
    types      Call, Said and DialectError
    chat       OpenAI chat completions
    anthropic  Anthropic Messages
    anthropic_answer  what they are answered with
    responses  OpenAI Responses
    responses_items   what its requests hold
    responses_tools   its tools as functions, and back
    responses_answer  what it is answered with
    headers    who asks: agent, session, retry marks, key
    memory     what a session has seen and said: known by its bytes, and by the ids that were handed out
    beginnings  what a conversation begins with, known by one digest
    stops      which stop text ended an answer, and what is shown of it
    answers    what the model said once, and when what comes back is that
    sampling   how an answer is to be drawn, by OpenAI's and vLLM's names
    tools      tools as OpenAI's function specs
    fields     one request's fields, each read by its type and refused by its name
    sse        frames of a stream
    openai_errors  errors as both of OpenAI's dialects write them

A request of turn t+1 holds nearly all of the request of turn t, so messages are known by their bytes, and an answer
that comes back is the very `Message` that the model said, with what clients drop or rename on the way:

    the model said      reasoning "17 * 3 is 51", call `add` with the id "call00000"
    the client sends    tool_use `add` with the id "toolu_5f0c_0", no thinking
    `Call.messages`     the first again, and its tool result answers "call00000"
"""
