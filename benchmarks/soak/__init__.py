"""A real job under a storm: real servers, real processes, and everything that goes wrong in a night, in minutes.

    make soak                                # the form of CI: a fixed seed, 1,500 turns and one of each fault
    make soak-full                           # 10,000 turns or more, three of each; its printed result is in ../SOAK.md

Two jobs run side by side until both have played what they were given. The command (`rollout run`) plays plain
environments on Dynamo; it is killed, stopped, frozen out of its disk and gone on with by `--resume`. The trainer (an
embedded engine with two worker processes) plays asynchronous environments on vLLM; its workers are killed and frozen,
its server is killed and restarted, and it pauses and pushes weights all the while. Both are connected through a proxy
that drops, delays and cuts. The environments come from a zoo: each task says what its environment does wrong.

    zoo        environments that misbehave, and the ledger in which they write down what they did
    trainer    the embedded job, a process of its own
    jobs       the two jobs as the storm sees them: started, killed, gone on with
    storm      which fault is thrown when, by a seed
    weights    model folders that differ, and the proof that a token was sampled by the one that its version names
    checks     what must hold at the end
    __main__   servers, jobs and storm together; prints what was thrown and what came of it

A run that ends with exit status 0 has shown: each task has exactly one result or one recorded failure, and a
well-behaved task no failure but one that the storm explains; every id was checked by `--verify`; the logprobs of
sampled turns are those of the weights that their version names; no request is left on a server; no process is left but
those that the zoo leaked on purpose, whose number is said, as is that of the threads that it hung; the folder is read,
exported and resumed; and the engine's memory does not grow.
"""
