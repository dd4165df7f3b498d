"""Standard output is the command's: shown in processes of their own, since it is about descriptors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

BEGIN = "import os, sys, subprocess\nfrom rollout.process.stdio import Output\noutput = Output(); output.claim()\n"


def ran(code: str, *, shell: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """A process that claims its output and runs the code; `shell` is put behind it."""
    command: Any = [sys.executable, "-c", BEGIN + code]
    if shell:
        command = ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, BEGIN + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, **options)


def test_only_results_come_out_however_others_print() -> None:
    """What is printed, written to 1, logged by a child or an exit hook comes out on standard error."""
    others = 'import atexit; atexit.register(print, "hook")\nprint("print"); os.write(1, b"write\\n")\n'
    others += 'subprocess.run(["echo", "child"]); sys.__stdout__.write("old\\n"); sys.__stdout__.flush()\n'
    done = ran(others + 'output.write("result\\n")')
    assert done.stdout == "result\n"
    assert set(done.stderr.split()) == {"print", "write", "child", "old", "hook"}


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "<&- 2>&-", "2> >(true)"])
def test_a_broken_standard_error_costs_nothing(streams: str) -> None:
    """Prints that cannot be written are passed over, by whoever they are, and the result comes out."""
    code = 'sys.stderr.write("x" * 100000); print("y" * 100000, flush=True); output.write("result\\n")'
    done = ran(code, shell=streams)
    assert (done.returncode, done.stdout) == (0, "result\n")


@pytest.mark.slow
def test_nobody_who_reads_is_no_fault() -> None:
    """A closed standard output, or a pipe without a reader, takes the result away without a word."""
    code = 'output.write("x" * 1000000); print(output.fault, file=sys.stderr)'
    assert ran(code, shell=">&-").stderr == "None\n"
    assert ran(code, shell="| true").stderr == "None\n"


def test_a_full_disk_is_a_fault() -> None:
    """Somebody wanted the result and did not get it."""
    assert "No space left" in ran('output.write("x"); print(output.fault, file=sys.stderr)', shell="> /dev/full").stderr


def test_files_that_are_opened_later_are_not_printed_to() -> None:
    """With all streams closed a new file has none of their numbers."""
    code = 'import tempfile; file = tempfile.TemporaryFile(); os.write(2, b"lost"); print("lost")\n'
    code += "sys.exit(0 if file.fileno() > 2 and not file.read() else 1)"
    assert ran(code, shell="<&- >&- 2>&-").returncode == 0


@pytest.mark.slow
def test_a_forked_child_does_not_keep_the_reader_waiting() -> None:
    """Who reads the results sees their end when the command ends, though a child of it goes on."""
    code = 'import time\nif os.fork() == 0:\n  os.close(2); os.close(1); time.sleep(60); os._exit(0)\noutput.write("r")'
    assert ran(code).stdout == "r"


@pytest.mark.slow
def test_text_that_cannot_be_encoded_is_written() -> None:
    """Half an emoji is an escape, in a result and in a print."""
    done = ran('output.write("a\\ud800\\n"); print("b\\ud800")')
    assert (done.stdout, done.stderr) == ("a\\ud800\n", "b\\ud800\n")


@pytest.mark.slow
def test_streams_that_others_close_are_still_written_to() -> None:
    """A library that closes `sys.stdout` or `sys.stderr` takes no line away from who comes after it."""
    done = ran('sys.stdout.close(); sys.stderr.close(); print("p"); print("e", file=sys.stderr); output.write("r")')
    assert (done.returncode, done.stdout, done.stderr.split()) == (0, "r", ["p", "e"])
