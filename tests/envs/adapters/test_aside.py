"""What packages print and warn of goes to the log; what is the user's, or another thread's, to the terminal."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from pathlib import Path

import pytest

from envs.adapters.aside import aside
from envs.adapters.common import package


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="envs.adapters.aside")
    return caplog


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.__dict__["fields"]["text"] for record in caplog.records if getattr(record, "event", "") == "package_said"
    ]


@pytest.mark.filterwarnings("default")
def test_what_a_package_says_while_it_is_imported_is_logged(
    said: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings of its files, from the compiler, too, and what it prints; what it holds on to stays a stream."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    lines = ["import sys, warnings", "print('a banner')", "1 is 1", "warnings.warn('old')", "kept = sys.stderr"]
    (folder / "noisy_package.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    found = package("noisy", "noisy_package", "noisy")
    monkeypatch.delitem(sys.modules, "noisy_package")
    print("afterwards", file=found.kept)
    assert capfd.readouterr() == ("", "afterwards\n")
    assert ["a banner" in texts(said), len(texts(said))] == [True, 3]
    assert any("SyntaxWarning" in text for text in texts(said))
    assert any("UserWarning: old" in text for text in texts(said))


def test_what_is_the_users_is_shown(said: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """A warning of the user's file, what another thread prints, and all prints where only warnings are meant."""
    other = threading.Thread(target=lambda: print("of another thread"))
    with aside("noisy"):
        other.start()
        other.join()
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    with aside("noisy", prints=False):
        print("of the user's environment")
    assert capfd.readouterr().out == "of another thread\nof the user's environment\n"
    assert texts(said) == []


def test_all_is_put_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where it is entered twice, and where what is inside raises."""
    before = sys.stdout, sys.stderr, warnings.showwarning
    with pytest.raises(KeyError), aside("outer"), aside("inner"):
        raise KeyError
    assert (sys.stdout, sys.stderr, warnings.showwarning) == before
    print("shown")
    assert capfd.readouterr().out == "shown\n"
