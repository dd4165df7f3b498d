"""Imports the user's modules, by name or in a file: `rollout run dir/env.py:Mine` finds what `python dir/env.py` does.

The file's folder goes in front of `sys.path`, so that the file imports what lies beside it, also later and in every
process. The module is called as `import env` would call it, so that what it holds can be pickled for another process.
Only where that name is taken, by Python, by an installed package or by another folder's file, it gets one of its own,
and the folder goes to the end of the path: `openai.py` may still import openai.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar

from rollout.door import error_text, type_name
from rollout.errors import ConfigError

T = TypeVar("T")

#: Where this package's own files are.
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")

#: Modules of files, by their absolute paths: a file is run once.
_FILES: dict[str, ModuleType] = {}
_importing = threading.RLock()


def import_module(name: str) -> ModuleType:
    """A module by its name. Raises ConfigError, whatever the module raises."""
    return loaded(f"module {name!r}", lambda: importlib.import_module(name))


def import_file(path: str) -> ModuleType:
    """The module of a file. Raises ConfigError, whatever the file raises."""
    file = absolute_file(path)
    with _importing:
        if file not in _FILES:
            if not os.path.isfile(file):
                raise ConfigError(f"there is no file {path!r}")
            _FILES[file] = loaded(path, lambda: _run(file))
        return _FILES[file]


def absolute_file(path: str) -> str:
    """The file's path from everywhere, whatever the working directory becomes."""
    return os.path.abspath(os.path.expanduser(path))


def loaded(what: str, load: Callable[[], T]) -> T:
    """What loading gives. Raises ConfigError that says in one line what it raised, and where."""
    try:
        return load()
    except (ConfigError, KeyboardInterrupt):  # the latter is a person's: nothing else handles signals yet
        raise
    except BaseException as error:
        name, text = type_name(error), " ".join(error_text(error).split())
        said = name if text == name else f"{name}: {text}"
        raise ConfigError(f"{what} cannot be imported: {said}{place_of(error)}") from error


def place_of(error: BaseException) -> str:
    """Where user code raised it, such as " (env.py, line 7, in step)"; "" where none was under way."""
    if isinstance(error, SyntaxError):
        return ""  # it says so itself
    return place_in(traceback.extract_tb(error.__traceback__))


def place_in(stack: Iterable[traceback.FrameSummary]) -> str:
    """The last of the user's own places on a stack, the oldest frame first."""
    frames = [frame for frame in stack if not _is_ours(frame.filename)]
    own = [frame for frame in frames if "-packages" + os.sep not in frame.filename]  # no library's, where there is one
    for frame in reversed(own or frames):
        return f" ({os.path.basename(frame.filename)}, line {frame.lineno}, in {frame.name})"
    return ""


def stack_of(frames: Iterable[FrameType]) -> traceback.StackSummary:
    """Frames that are under way, as they can be kept."""
    return traceback.StackSummary.extract(((frame, frame.f_lineno) for frame in frames), lookup_lines=False)


def frames_of(frame: FrameType | None) -> list[FrameType]:
    """A frame and those that called it, the oldest first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def awaited_frames(coroutine: Any) -> Iterator[FrameType]:
    """Where a coroutine waits, the oldest frame first."""
    while coroutine is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(coroutine, f"{kind}_frame")), None)
        if kind is None:
            return
        frame = getattr(coroutine, f"{kind}_frame")
        if frame is not None:
            yield frame
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def _is_ours(file: str) -> bool:
    """Whether it is a file of this package or of Python itself."""
    of_python = file.startswith(os.path.dirname(threading.__file__) + os.sep) and "-packages" + os.sep not in file
    return of_python or file.startswith(("<", _PACKAGE))


def settle_path() -> None:
    """Makes what is imported later the same, wherever user code changes the working directory to."""
    for at, entry in enumerate(sys.path):
        if not os.path.isabs(entry):
            sys.path[at] = os.path.abspath(entry)


def _run(file: str) -> ModuleType:
    stem = Path(file).stem
    folder = os.path.dirname(os.path.realpath(file))
    free = stem.isidentifier() and not _is_taken(stem, file)
    if folder not in sys.path:
        sys.path.insert(0 if free else len(sys.path), folder)
    if free and (there := sys.modules.get(stem)) is not None:
        return there
    name = stem if free else f"rollout_env_{stem}_{hashlib.blake2b(file.encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_taken(name: str, file: str) -> bool:
    """Whether a name is another module's than this file's."""
    if name in sys.stdlib_module_names:
        return True
    if (there := sys.modules.get(name)) is not None:
        return not _is_file(getattr(there, "__file__", None), file)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    # A folder without `__init__.py` is found, too, but gives way to a file.
    return spec is not None and spec.origin is not None and not _is_file(spec.origin, file)


def _is_file(path: str | None, file: str) -> bool:
    return path is not None and os.path.realpath(path) == os.path.realpath(file)
