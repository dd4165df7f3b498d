"""Makes a package from the templates beside this file: `templates/env` and `templates/agent`.

A template's `$name`, `$package`, `$Class` and `$version` are filled in, and `package` in its path. A package is made
whole in a folder beside its own and then given its name, so that what is refused or fails leaves nothing.
"""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

import msgspec

from rollout import __version__
from rollout.errors import UsageError
from rollout.registry import env_names, scheme_names

#: What a name may be: that of a distribution, and with _ for - that of a module.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
_LONGEST = 60

#: Names that no file has on Windows, where whoever gets the package may be.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))})

#: How a template's file ends, so that no tool takes it for Python.
_ENDING = ".in"


class Made(msgspec.Struct, frozen=True):
    """A package that was made."""

    name: str
    """By which it is played, once it is installed."""
    folder: Path
    files: list[str]
    """Below the folder."""

    @property
    def shown(self) -> str:
        """The folder as a shell takes it."""
        text = shlex.quote(str(self.folder))
        return text if text.startswith(("/", "'", ".")) else f"./{text}"


def make(kind: str, name: str, parent: Path) -> Made:
    """Makes one. Raises UsageError, and leaves nothing then."""
    package = _package_of(name)
    if not parent.is_dir():
        raise UsageError(f"--path {parent} is no folder: make it first")
    folder = parent / name
    if os.path.lexists(folder):
        raise UsageError(f"{folder} is there already: choose another name, another --path, or remove it")
    templates = files("rollout.cli") / "templates" / kind
    values = {"name": name, "package": package, "version": __version__, "Class": _class_of(name, kind, templates)}
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        try:
            made = [_write(template, scratch / place, values) for template, place in _templates(templates, package)]
            scratch.chmod(0o777 & ~_umask())
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror or error}") from error
    return Made(name, folder, sorted(str(file.relative_to(scratch)) for file in made))


def _package_of(name: str) -> str:
    """The package's module. Raises UsageError for a name that cannot be one, or is another's."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UsageError(
            f"{name!r} can be no package's name: a letter first, then letters and digits, with single - or _ between "
            f"them, {_LONGEST} characters at most, such as word-game"
        )
    package = name.lower().replace("-", "_")
    if package in _DEVICES:
        raise UsageError(f"{name!r} can be no folder on Windows: choose another, such as my-{name}")
    if package in _schemes():
        raise UsageError(f"{name!r} is the name of a scheme, or of what it plays: choose another, such as my-{name}")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        raise UsageError(f"{name!r} is a name of Python's own: choose another, such as my-{name}")
    spec = importlib.util.find_spec(package)
    if name in env_names() or (spec is not None and spec.origin is not None):
        raise UsageError(f"{name!r} is the name of something that is installed here: choose another, such as my-{name}")
    return package


def _schemes() -> set[str]:
    """Modules that schemes are named after: one of that name would be found in the place of the real one."""
    return {scheme.replace("-", "_") for scheme in scheme_names()}


def _class_of(name: str, kind: str, templates: Traversable) -> str:
    """The class' name, which is none that its module has already."""
    found = "".join(part[0].upper() + part[1:] for part in re.split("[-_]", name))
    module = (templates / "package" / f"__init__.py{_ENDING}").read_text("utf-8")
    return f"{found}{kind.title()}" if keyword.iskeyword(found) or re.search(rf"\b{found}\b", module) else found


def _templates(folder: Traversable, package: str, below: str = "") -> Iterator[tuple[Traversable, str]]:
    """Each template with its file's place."""
    for entry in folder.iterdir():
        name = entry.name.replace("package", package)
        if entry.is_dir():
            yield from _templates(entry, package, f"{below}{name}/")
        elif name.endswith(_ENDING):
            yield entry, below + name.removesuffix(_ENDING)


def _write(template: Traversable, file: Path, values: dict[str, str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(Template(template.read_text("utf-8")).substitute(values), encoding="utf-8")
    return file


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
