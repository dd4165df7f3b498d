"""The engine inside trainers that other people wrote, a file for each.

Nothing here imports a trainer where it is imported: what a file needs of one is imported where it is used. The one
exception is `verl_loop`, whose class verl imports by its name.

    trl        TRL: a room of its own
    verl       verl: an agent loop's output, and a transport over its servers
    verl_loop  the agent loop itself
    prime_rl   prime-rl's samples
    skyrl      SkyRL's
    slime      slime's
    openrlhf   OpenRLHF's
    rows       our samples, cut as most trainers want them
    shared     an engine for callers who own none
"""
