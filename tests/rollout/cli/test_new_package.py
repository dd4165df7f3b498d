"""`rollout new`: what it makes is played, tested and typed; what it refuses leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rollout.cli.new_package import make
from rollout.errors import UsageError

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("kind", "group"), [("env", "rollout.envs"), ("agent", "rollout.agents")])
def test_a_package_names_its_class(kind: str, group: str, tmp_path: Path) -> None:
    """By the entry point that the engine looks it up by, under the name that was given."""
    made = make(kind, "word-game", tmp_path)
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {group: {"word-game": "word_game:WordGame"}}
    assert made.files == [
        *("README.md", "pyproject.toml", "tests/test_word_game.py", "word_game/__init__.py", "word_game/py.typed")
    ]
    assert [file for file in made.files if "$" in (made.folder / file).read_text()] == []
    assert "class WordGame(" in (made.folder / "word_game/__init__.py").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["word-game"]


@pytest.mark.parametrize(("kind", "name"), [("env", "step"), ("agent", "model"), ("agent", "outcome"), ("env", "None")])
def test_a_class_is_called_as_nothing_that_its_module_imports(kind: str, name: str, tmp_path: Path) -> None:
    """It would hide what the module is written with; nor is it a word of Python's own."""
    made = make(kind, name, tmp_path)
    assert f"class {name.title()}{kind.title()}(" in (made.folder / name.lower() / "__init__.py").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1x", "can be no package's name"),
        ("a--b", "can be no package's name"),
        ("a/b", "can be no package's name"),
        ("..", "can be no package's name"),
        ("", "can be no package's name"),
        ("spiel-für-zwei", "can be no package's name"),
        ("a" * 61, "60 characters at most"),
        ("class", "a name of Python's own"),
        ("json", "a name of Python's own"),
        ("CON", "can be no folder on Windows"),
        ("lpt1", "can be no folder on Windows"),
        ("gymnasium", "the name of a scheme, or of what it plays"),
        ("reasoning-gym", "the name of a scheme, or of what it plays"),
        ("echo", "something that is installed here"),
        ("rollout", "something that is installed here"),
        ("NumPy", "something that is installed here"),
    ],
)
def test_a_bad_name_is_one_line(name: str, words: str, tmp_path: Path) -> None:
    """It says what a name may be, and nothing is written."""
    with pytest.raises(UsageError, match=words) as raised:
        make("env", name, tmp_path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_nothing_is_overwritten(there: str, tmp_path: Path) -> None:
    """Whatever has the name."""
    place = tmp_path / "word-game"
    if there == "folder":
        place.mkdir()
    elif there == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    with pytest.raises(UsageError, match="is there already"):
        make("env", "word-game", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["word-game"]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A mistyped path is said, not made."""
    with pytest.raises(UsageError, match="is no folder: make it first"):
        make("env", "word-game", tmp_path / "nope")
    assert list(tmp_path.iterdir()) == []


def ran(command: list[str], folder: Path) -> str:
    """What a command prints. Fails with what it said."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_what_is_made_is_installed_tested_typed_and_played(tmp_path: Path) -> None:
    """An environment and an agent, in a fresh environment that has this one's packages and nothing of theirs."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    paths = {str(PROJECT), sysconfig.get_paths()["purelib"], *(path for path in sys.path if "site-packages" in path)}
    site = tmp_path / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "layer.pth").write_text("\n".join(sorted(paths)) + "\n")
    rollout = [python, "-c", "from rollout.__main__ import main; main()"]
    for kind, name in (("env", "word-game"), ("agent", "sum_checker")):
        ran([*rollout, "new", kind, name], tmp_path)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        ran([*install, "--disable-pip-version-check", f"./{name}"], tmp_path)
        assert "4 passed" in ran([python, "-m", "pytest", "-q"], tmp_path / name)
        played = ran([*rollout, "run", name, "-n", "4", "--max-tokens", "8", "-o", f"runs/{name}"], tmp_path)
        assert "done 4" in played
    ran([python, "-m", "mypy", "--strict", "word-game", "sum_checker"], tmp_path)
    assert "word-game" not in {point.name for point in entry_points(group="rollout.envs")}
