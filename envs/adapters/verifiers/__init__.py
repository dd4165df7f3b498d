"""Tasksets and environments of verifiers 0.4, played by the package itself: `rollout run verifiers:my_taskset`.

verifiers plays an episode (its harness, its tools, its rewards), and asks the model of the rollout's endpoint, so that
the turns lie in the rollout's tree and go out token-in. What it asks is caught by its own interception server, and sent
on to the endpoint with the rollout's key:

    harness  ->  verifiers' interception server  ->  the rollout's endpoint  ->  the rollout's trajectory

verifiers has an event loop in a thread of its own: a reward function that computes holds up no turn of the engine's.

    agent      the scheme's agent: tasks, and one episode as a rollout
    settings   what `-a` says, as the package's configuration; what loading a taskset may say
    play       the environment that a process serves, and its episodes
    chat       a harness in this process: its chat loop, with the tools of the task, and no program to start
    apart      the event loop in a thread

`agent` and `apart` import the package only when an object is made; the others need it.
"""
