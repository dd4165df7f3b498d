"""These tests run in the environment that has the packages (`make adapters`); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
import warnings

collect_ignore_glob = ["test_*.py"]

if importlib.util.find_spec("reasoning_gym") is not None:
    collect_ignore_glob = []
    with warnings.catch_warnings():  # what compiling other packages' files warns of is theirs to mend
        warnings.simplefilter("ignore")
        import reasoning_gym  # noqa: F401
        import textarena  # noqa: F401
