"""A rollout's model over HTTP, for programs that bring a client of their own: agents as they are.

    agent's SDK ---> app ---> Served (its key's) ---> Turns ---> Asking ---> Session
                     |          |                      |
                     guard      a Memory, in which     one turn at a time is begun, joined by a
                                dialects know what     marked retry, or given up 10 s after its
                                comes back             last client has left

A request names its rollout by its key, or by its path (`/r/KEY/v1/...`). A turn is committed before the first byte of
its answer is sent.

    endpoints    what an engine, or a process that plays, serves its rollouts by
    listen       the socket, its address, and the server on it
    app          the routes
    guard        whose requests are answered: no web page's
    sessions     the rollouts that are served, by their keys
    turns        a rollout's turns under way, and those that a retry may ask for again
    asks         what a request asks, as what the rollout's session is asked
    respond      an answer on its way: keepalives, streams, clients that leave
    faults       what went wrong, as the error that a client is told

Nothing here imports starlette or uvicorn (extra `proxy`) before a first endpoint is opened.
"""
