"""More rollouts at once than the soft limit of open files lets have connections."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.cases.commands import kinds, ran
from tests.local_server import serving
from transports.embedded.app import create_app


@pytest.mark.slow
@pytest.mark.parametrize("hard", [None, 120])
def test_the_limit_is_raised_or_said(hard: int | None, tmp_path: Path) -> None:
    """The soft limit goes up to what is needed; under a hard one fewer are played at once, and that is said."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (96, hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    app = create_app()
    with serving(app) as url:
        sizes = ("-n", 120, "-c", 120, "--max-tokens", 4, "-a", "turns=1")
        done = ran("run", "echo", *sizes, "--base-url", url, "-o", tmp_path / "r", preexec_fn=limited)
    app.state.engine.close()
    assert done.returncode == 0, done.stderr
    assert kinds(tmp_path / "r") == [None] * 120
    assert ("concurrency_limited" in done.stderr) == (hard is not None)
