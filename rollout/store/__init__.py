"""What a run leaves on disk, and what it was asked to do.

    folder         the run folder: written as rollouts end, read back without loss
    apart          what its lines name and do not hold: routed experts, sampling masks
    pictures       images of its conversations, each once, beside its lines
    config         its config.toml, and the format's version
    settings       what a run plays: read from flags, TOML and folders alike
    task_list      which tasks, kept with the run
    index          where each rollout lies in its file
    lock           one writer at a time
    export         run folder -> training samples
    sample_files   their formats
    field_spills   routed experts and sampling masks as arrays of a safetensors file

Others take `read_rollouts` from `rollout.store.folder`.
"""

from rollout.moved import forward

forward("rollout.store")
