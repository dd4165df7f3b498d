"""The console script, from its first line on."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from rollout.moved import MOVED

#: Control-C while the command line is being imported: at its first module, and at one that only a command needs.
INTERRUPTED = """
    import importlib.abc, os, signal, sys
    class At(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == {module!r}:
                os.kill(os.getpid(), signal.SIGINT)
    sys.meta_path.insert(0, At())
    sys.argv = ["rollout", *{command!r}.split()]
    from rollout.__main__ import main
    main()
"""

#: Imports each module of the rooms that hand on old names in a process of its own, where none has been imported before.
EACH_FIRST = """
    import importlib, os, pathlib, sys, warnings
    import aiohttp, anyio, asyncio, httpx, jinja2, msgspec, numpy, rich, starlette.applications, structlog, typer
    warnings.simplefilter("error")
    MOVED = {moved!r}
    package = pathlib.Path(importlib.util.find_spec("rollout").origin).parent
    rooms = [name.partition(".")[2] for name in MOVED if (package / name.partition(".")[2]).is_dir()]
    for file in sorted(file for room in rooms for file in (package / room).glob("*.py")):
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        if file.stem == "__main__":
            continue
        if not (child := os.fork()):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as missing:  # an optional package
                os._exit((missing.name or "rollout").startswith("rollout"))
            except BaseException as error:
                print(name, repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(name, flush=True)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("module", "command"),
    [("typer", "--version"), ("rollout.cli.app", "run echo"), ("rollout.proxy.recorder", "proxy --port 0")],
)
def test_control_c_while_it_is_imported_is_one_line(module: str, command: str) -> None:
    """No traceback of imports, whichever command it is, and a status other than 0."""
    done = python(INTERRUPTED.format(module=module, command=command))
    assert (done.stderr, done.stdout, done.returncode) == ("rollout: stopped\n", "", 1)


def test_a_process_that_ignores_control_c_goes_on() -> None:
    """As one does that a shell has put into the background."""
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = python(code + textwrap.dedent(INTERRUPTED.format(module="typer", command="--version")))
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_package_imports_what_is_asked_for() -> None:
    """A name of the package, or a room of it, as if all had been imported; nothing large before."""
    done = python("""
        import sys
        import rollout
        print(any(name in sys.modules for name in ("msgspec", "asyncio", "rollout.engine")))
        print(set(rollout.__all__) <= set(dir(rollout)), all(hasattr(rollout, name) for name in rollout.__all__))
        print(rollout.errors.__name__, hasattr(rollout, "nothing"))
    """)
    assert done.stdout.split() == ["False", "True", "True", "rollout.errors", "False"], done.stderr


@pytest.mark.slow
def test_any_module_of_a_room_may_be_the_first() -> None:
    """None works only where another has been imported before it, although its room hands on an old module's names."""
    done = python(EACH_FIRST.format(moved=sorted(MOVED)))
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_the_signal_is_the_commands_alone() -> None:
    """Importing the package takes no signal of a program that embeds it."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
