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

By itself, in front of any server, it records whatever agent is pointed at it (`rollout proxy`):

    recording        a recorder on a port
    recorder         its sessions, by their keys: opened, rewarded, ended
    recorded         one session
    sessions_api     its own requests, under /sessions
    openapi          the document that describes all of them
    journal          files in which each turn is before it is answered
    journal_lines    a session as their lines
    restore          those lines as the session again, after a crash
    record_folder    the run folder around them

Nothing here imports starlette or uvicorn (extra `proxy`) before a first endpoint is opened.
"""
