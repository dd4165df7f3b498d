"""Other packages' environments, each by one argument: `rollout run gymnasium:Taxi-v4`.

A file an adapter, found by the entry-point group `rollout.env_schemes`. Each takes from `rollout` only the contracts of
environments and agents, and imports its package when an object is made: none of them is needed to install or to list.

    hf               prompts of a data set, with a reward function
    reasoning        reasoning-gym's data sets and scorers
    gym              Gymnasium's toy_text environments; others through two functions
    games            TextArena's games: alone, against itself, against a fixed opponent
    tools            tools of MCP servers, for a file's tasks
    sessions         with MCP servers: a rollout's own, or shared
    spaces           OpenEnv servers: actions, or tools
    space            what one says of itself, and a session with it
    actions          an action from an answer's text, and an observation as text
    places           a queue where a server has only so many sessions
    resources        NeMo Gym's resources servers: seed, tools, verify
    nemo             what one says of itself, and a session with it
    headers          for servers over HTTP, from variables
    verifiers        tasksets of verifiers, each episode played by the package itself
    common           what they share: the package's import, a user's function by its name
"""
