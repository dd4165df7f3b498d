"""Playing in other processes: the same rollouts, with an event loop, connections and a tokenizer for each process.

    pool      the processes together
    handle    one process, as the engine sees it
    ending    how one is ended
    remote    one rollout that a process plays
    wire      what is said, both ways
    channel   what carries it: a protocol
    socket_channel  one over a socket
    launch    how processes are started: the contract, and that of this machine
    ray       the same by a Ray cluster, on other hosts
    ray_driver    what speaks to Ray, beside the engine
    ray_link      the connection to that
    ray_messages  what is said over it
    ray_reasons   what Ray raises, in one line
    ray_actor     a worker that is an actor
    rendezvous    where workers of other hosts connect
    handshake     how they are known
    process   what a process is before and after it plays
    worker    what it does meanwhile
    silence   how long one has said nothing
    where     the place at which one hung or crashed

Scheduling, groups, results and weights stay with the engine.
"""
