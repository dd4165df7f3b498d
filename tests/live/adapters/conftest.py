"""These tests run in the environments that have the packages (`make adapters`); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
import warnings

#: What runs in an environment of its own, by the package that is there.
_APART = {"verifiers": "test_verifiers.py"}

collect_ignore_glob = ["test_*.py"]

with warnings.catch_warnings():  # what compiling other packages' files warns of is theirs to mend
    warnings.simplefilter("ignore")
    if importlib.util.find_spec("reasoning_gym") is not None:
        import reasoning_gym  # noqa: F401
        import textarena  # noqa: F401

        collect_ignore_glob = [*_APART.values()]
    elif importlib.util.find_spec("verifiers") is not None:
        import verifiers.v1  # noqa: F401

        collect_ignore_glob = ["test_[!v]*.py"]
