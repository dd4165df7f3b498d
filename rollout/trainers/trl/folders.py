"""The policy as a folder that the engine's servers load: written whole, then named, and the one before dropped."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rollout.errors import ConfigError
from rollout.log import get_logger

_log = get_logger(__name__)

#: Writes a trainer's policy into a folder: `(trainer, folder)`. Called by every process of a trainer's.
SavePolicy = Callable[[Any, Path], None]

#: Bytes of one file of weights.
SHARD_BYTES = 5_000_000_000

#: A file in each folder that was written here: no other is ever dropped.
_OURS = ".rollout-policy"

#: Files of a model's folder that are weights: the others are copied beside new ones.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


class Folders:
    """Folders of one policy, `version-N` each. The newest stays: a server that comes back is given it."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.newest: Path | None = None

    def __repr__(self) -> str:
        return f"<Folders {self.root}, the newest {self.newest.name if self.newest else None}>"

    def path(self, version: str | int) -> Path:
        """Where a version lies once it is there."""
        return self.root / f"version-{version}"

    def partial(self, version: str | int) -> Path:
        """Where it is written: a server never finds half a policy under its name."""
        return self.root / f".version-{version}.partial"

    def begin(self, version: str | int) -> Path:
        """An empty folder to write a version into."""
        partial = self.partial(version)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish(self, version: str | int) -> Path:
        """Gives what was written its name. Raises ConfigError where it has no weights, or the name is another's."""
        partial, path = self.partial(version), self.path(version)
        if not any(file.suffix in (".safetensors", ".bin") for file in partial.iterdir()):
            raise ConfigError(f"no weights were written into {partial}: give a save= that writes a whole model")
        if path.exists() and not (path / _OURS).is_file():
            raise ConfigError(f"{path} is there, and was not written by a trainer here: give another folder=")
        (partial / _OURS).touch()
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
        return path

    def loaded(self, version: str | int) -> None:
        """The servers have it: those before are dropped, also those that a run which ended left here."""
        self.newest = self.path(version)
        before = [path for path in self.root.glob("version-*") if path != self.newest and (path / _OURS).is_file()]
        for path in (*before, *self.root.glob(".version-*.partial")):
            shutil.rmtree(path, ignore_errors=True)


class Weights:
    """What a policy's weights were. What is loaded into a tensor counts in its `_version`, so that nothing is read."""

    def __init__(self, model: Any) -> None:
        self._were: list[tuple[Callable[[], Any], int]] = [
            (weakref.ref(parameter), parameter._version) for parameter in model.parameters()
        ]

    def __repr__(self) -> str:
        return f"<Weights of {len(self._were)} parameters>"

    def are_still_in(self, model: Any) -> bool:
        """Whether nobody has changed them, or trains others."""
        now = list(model.parameters())
        return len(now) == len(self._were) and all(
            known() is parameter and version == parameter._version
            for (known, version), parameter in zip(self._were, now, strict=True)
        )


def save_policy(trainer: Any, folder: Path) -> None:
    """The policy of a `GRPOTrainer`, gathered from all of its processes. Raises ConfigError for an adapter alone."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        raise ConfigError("servers load whole models, and this one has an adapter: give a save= that merges it first")
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        model.save_pretrained(str(folder), state_dict=weights)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Any]], *, shard_bytes: int = SHARD_BYTES) -> int:
    """Tensors that come one by one, as a folder's safetensors; how many there were.

    At most `shard_bytes` of them, and one tensor more, are held at once. Raises ValueError for a name that comes twice.
    """
    from safetensors.torch import save_file  # here: whoever streams tensors has torch

    shards: dict[str, str] = {}
    held: dict[str, Any] = {}
    total, size = 0, 0

    def write() -> None:
        file = f"model-{len(set(shards.values())) + 1:05}.safetensors"
        save_file(held, str(folder / file), metadata={"format": "pt"})
        shards.update(dict.fromkeys(held, file))
        held.clear()

    for name, tensor in tensors:
        if name in held or name in shards:
            raise ValueError(f"{name} was sent twice")
        # A copy: the sender may go on to change or free what it has sent.
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        nbytes = held[name].numel() * held[name].element_size()
        total, size = total + nbytes, size + nbytes
        if size >= shard_bytes:
            write()
            size = 0
    if held:
        write()
    _name_shards(folder, shards, total)
    return len(shards)


def _name_shards(folder: Path, shards: dict[str, str], total: int) -> None:
    """One file is a model's by its name, several by an index."""
    files = sorted(set(shards.values()))
    if len(files) == 1:
        (folder / files[0]).rename(folder / "model.safetensors")
    elif files:
        index = {"metadata": {"total_size": total}, "weight_map": shards}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def copy_beside(model: Path, folder: Path) -> None:
    """Whatever of a model's folder is no weights: its configuration, its tokenizer. Raises ConfigError."""
    if not (model / "config.json").is_file():
        raise ConfigError(f"{model} has no config.json: name the folder of the model that is trained")
    for file in model.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, folder / file.name)
