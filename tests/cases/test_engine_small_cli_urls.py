"""Case engine/small_cli, its addresses: one line and status 2 for a wrong one, and no password written anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.local_server import serving
from tests.transports.fake_vllm import FakeVllm

ROLLOUT = str(Path(sys.executable).with_name("rollout"))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROLLOUT, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:abc", "http://[::1"])
def test_a_wrong_address_is_one_line(url: str, tmp_path: Path) -> None:
    """It is named with what is wrong; nothing is opened and no run folder made."""
    done = run("run", "echo", "-n", "1", "--base-url", url, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert url in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_password_in_an_address_is_written_nowhere(tmp_path: Path) -> None:
    """Not in what is printed, not in a file of the run folder, and not in a probe's command line."""
    with serving(FakeVllm().app) as plain:
        url = plain.replace("http://", "http://me:hunter2@")
        size = ("-n", "2", "--max-tokens", "8", "--json")
        played = run("run", "echo", *size, "--base-url", url, "-o", "out", cwd=tmp_path)
        probed = run("probe", url, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 2
    said = played.stdout + played.stderr + probed.stdout + probed.stderr
    assert "hunter2" not in said
    assert not any(b"hunter2" in content for content in written)
    assert plain.removeprefix("http://") in probed.stdout + probed.stderr
