"""One rollout, an environment's or an agent's, played in this process.

    connect      an engine's settings -> its fleet and its codec
    player       plays rollouts, as many at once as it is told
    episode      one: made, played, closed, with its deadlines
    driven       an environment's: reset, step on each of the model's messages, score
    driving      an agent's: it is handed the model
    held         a rollout whose agent its caller runs
    model        the model as a rollout asks it
    form         what is asked of an answer's form, as both routes do it
    host         the environment's calls, each contained
    answers      what an environment answered, read and checked
    faults       what user code did wrong, as one exception
    logprobs     whether a trainer could take the logprobs for what they are not
    session      one turn: plan, bridge, send, check, commit
    fields       a trajectory's routed experts and sampling masks: asked for, checked, put on its tree
    images       its images: sent with ids, and what the server made of them
    route        which way its prompt goes out, and its ids where they are made here
    setups       what rollouts share, entered once in each process
    late_system  system messages in the middle of a conversation
    served       a model as sessions use it: where it is served, and how much fits

Others take `Player` from `rollout.play.player`, and hand it a `Job` of `rollout.records`.
"""

from rollout.moved import forward

forward("rollout.play")
