"""Case engine/submit_poison: one bad submission leaves those before and after it as they were."""

from __future__ import annotations

import anyio
import pytest

from rollout.errors import ConfigError
from tests.rollout.test_engine import engine


async def test_a_bad_submission_is_its_callers_alone() -> None:
    """It is refused at `submit`; an innocent one and a later one are played."""
    running, _ = engine()
    async with running:
        with anyio.fail_after(20):
            good = await running.submit({"n": 1}, rollouts=2)
            with pytest.raises(ConfigError, match="x is of type object"):
                await running.submit({"x": object()})
            assert len((await good.result()).finished) == 2
            assert len((await (await running.submit({"n": 2})).result()).finished) == 1
