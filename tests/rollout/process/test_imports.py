"""A file's environment imports what lies beside it, and no name is taken for another."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout.errors import ConfigError
from rollout.process.imports import import_file, import_module, place_of, settle_path


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """What a test imports goes with it."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    return str(folder)


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    """As a script does, also when it is called later."""
    write(tmp_path, my_first_env="import my_helper\ndef late():\n    import my_late\n    return my_late.Y\n")
    write(tmp_path, my_helper="X = 1\n", my_late="Y = 2\n")
    module: Any = import_file(str(tmp_path / "my_first_env.py"))
    assert (module.my_helper.X, module.late()) == (1, 2)
    assert module.__name__ == "my_first_env"
    assert import_file(str(tmp_path / "my_first_env.py")) is module


def test_files_of_one_stem_are_two_modules(tmp_path: Path) -> None:
    """The second gets a name of its own."""
    one = write(tmp_path / "one", my_env="X = 1\n")
    two = write(tmp_path / "two", my_env="X = 2\n")
    first: Any = import_file(f"{one}/my_env.py")
    second: Any = import_file(f"{two}/my_env.py")
    assert (first.X, second.X) == (1, 2)
    assert first.__name__ == "my_env" != second.__name__
    assert sys.modules[second.__name__] is second


@pytest.mark.parametrize("name", ["statistics", "aiohttp", "rollout"])
def test_a_file_that_is_called_as_a_library_does_not_hide_it(tmp_path: Path, name: str) -> None:
    """The file may import it, and so may everybody else."""
    write(tmp_path, **{name: f"import {name} as library\nimport my_neighbour\nMINE = True\n"}, my_neighbour="")
    module: Any = import_file(str(tmp_path / f"{name}.py"))
    assert module.MINE
    assert not hasattr(module.library, "MINE")


def test_what_a_file_holds_can_be_pickled_for_another_process(tmp_path: Path) -> None:
    """A process that has the same path finds the module by its name."""
    write(tmp_path, my_pickled_env="class Grader:\n    pass\n")
    module: Any = import_file(str(tmp_path / "my_pickled_env.py"))
    program = "import pickle, sys; print(type(pickle.loads(bytes.fromhex(sys.argv[1]))).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program, pickle.dumps(module.Grader()).hex()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "Grader\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import sys\nsys.exit('no GPU')\n", r"SystemExit: no GPU \(my_bad_env.py, line 2, in <module>\)$"),
        ("X = {}['a']\n", r"KeyError: 'a' \(my_bad_env.py, line 1, in <module>\)$"),
        ("raise TimeoutError\n", r"TimeoutError \(my_bad_env.py, line 1, in <module>\)$"),
        ("def f(:\n", r"SyntaxError: invalid syntax \(my_bad_env.py, line 1\)$"),
        ("import no_such_thing\n", r"No module named 'no_such_thing' \(my_bad_env.py, line 1"),
        ("import json\njson.loads('x')\n", r"line 1 column 1 \(char 0\) \(my_bad_env.py, line 2, in <module>\)$"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path, source: str, said: str) -> None:
    """It names the file, what was raised, and the line; and a second attempt runs the file anew."""
    file = tmp_path / "my_bad_env.py"
    file.write_text(source)
    with pytest.raises(ConfigError, match=said) as raised:
        import_file(str(file))
    assert "\n" not in str(raised.value)
    file.write_text("X = 'mended, and longer than before so that no stale bytecode is taken'\n")
    assert import_file(str(file))


def test_a_module_that_exits_is_one_line(tmp_path: Path) -> None:
    """Modules that are named by dots are the same as files."""
    sys.path.insert(0, write(tmp_path, my_exiting_module="raise SystemExit(3)\n"))
    with pytest.raises(ConfigError, match=r"module 'my_exiting_module' cannot be imported: SystemExit: 3 \(my_exit"):
        import_module("my_exiting_module")


def test_the_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory that changes later changes no import."""
    monkeypatch.chdir(tmp_path)
    sys.path[:0] = ["", "sub"]
    settle_path()
    assert sys.path[:2] == [str(tmp_path), str(tmp_path / "sub")]


def test_an_error_without_a_place_has_none() -> None:
    """It was raised nowhere."""
    assert place_of(ValueError()) == ""
