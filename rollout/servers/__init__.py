"""Several servers as one: who gets a request, who is in and out, which weights they have.

    fleet        a transport over all of them
    alike        what all of them have in common, or may not join
    server       one, with what it answered to its last check
    tally        what was asked of one: how much, how well, how long it took
    life         what each is to do next: pure
    reconciler   does it
    placement    which one a trajectory stays on
    weights      versions, and updates while requests are in flight
    control      pauses and updates, for the servers and for every process of the engine
    completion   a completion that was cut off goes on from what was sampled

The engine always holds a `Fleet`, of one server where there is one.
"""

from rollout.moved import forward

forward("rollout.servers")
