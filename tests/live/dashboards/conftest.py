"""These tests run in the environment that has the packages (`make dashboards`); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("tensorboardX") is not None else ["test_*.py"]
