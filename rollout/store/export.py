"""`rollout export`: a run's training samples as a file that a trainer reads.

Nothing grows with the run but the index of its rollouts: they are read group by group, and every writer writes as
samples come. The file is whole or not there: it is a draft until its last byte is written.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rollout.errors import RolloutError, UsageError
from rollout.store.apart import FIELDS
from rollout.store.index import RunIndex
from rollout.store.lock import writer_of
from rollout.store.sample_files import format_names, write
from rollout.tokens.advantages import ADVANTAGES, Advantage
from rollout.tokens.samples import TrainingSample


class Exported(msgspec.Struct):
    """What was written."""

    path: str
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    unknown_rewards: int = 0
    """Samples of rollouts that nobody gave a reward: they have none, and no advantage."""

    def counted(self, samples: Iterator[TrainingSample]) -> Iterator[TrainingSample]:
        """The samples, counted as they go by."""
        for sample in samples:
            self.samples += 1
            self.tokens += len(sample.token_ids)
            self.trained_tokens += sum(sample.loss_mask)
            self.unknown_rewards += not sample.reward_known
            yield sample


def export(run: Path, output: Path | None, format_name: str, advantage: str) -> Exported:
    """Writes a run's samples.

    Raises UsageError for an unknown name, a folder that is no run, a missing package; RolloutError for a run that has
    nothing to export.
    """
    if format_name not in (known := format_names()):
        raise UsageError(f"no format {format_name!r}; there are: {', '.join(known)}")
    if advantage not in (*ADVANTAGES, "none"):
        raise UsageError(f"no advantage {advantage!r}; there are: {', '.join(ADVANTAGES)}, none")
    path = output or run / f"samples.{format_name}"
    done = Exported(str(path))
    with RunIndex(run) as index:
        _check_any(index)
        samples = done.counted(_samples(index, ADVANTAGES.get(advantage)))
        try:
            with _draft(path) as draft:
                write(format_name, draft, samples, with_fields=(run / FIELDS).exists())
                if not done.samples:
                    raise RolloutError(
                        f"nothing to export: none of the rollouts of {str(run)!r} has token ids that the server "
                        "reported; `rollout probe` tells what it reports"
                    )
        except OSError as error:
            raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        except ValueError as error:
            raise UsageError(f"cannot export {str(run)!r} as {format_name}: {error}") from error
    return done


def samples_of_run(run: Path, advantage: Advantage | None = None) -> Iterator[TrainingSample]:
    """A run's samples, group by group. A rollout that was played again after a stop counts once, as it ended."""
    with RunIndex(run) as index:
        yield from _samples(index, advantage)


def _samples(index: RunIndex, advantage: Advantage | None) -> Iterator[TrainingSample]:
    for group in index.groups():
        yield from group.samples(advantage)


def _check_any(index: RunIndex) -> None:
    """Raises RolloutError for a run without a rollout that did not fail."""
    failures = Counter(located.failure for located in index.last.values())
    if failures[""]:
        return
    if not failures:
        writer = writer_of(index.folder)
        by = f" It was begun by {writer}." if writer else ""
        raise RolloutError(f"nothing to export: no rollout of {str(index.folder)!r} has ended yet.{by}")
    kinds = ", ".join(f"{kind} {count}" for kind, count in failures.most_common())
    raise RolloutError(
        f"nothing to export: all {len(index)} rollouts of {str(index.folder)!r} failed ({kinds}): see "
        f"`rollout show {index.folder} --failed`"
    )


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file beside the wanted one, which takes its place once it is whole. A pipe or a device is written as it is."""
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder; give -o FILE")
    if path.exists() and not path.is_file():
        yield path
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
