"""Lets SGLang keep routed experts without a GPU: their memory on the host is not registered with CUDA.

It has no other way on a CPU: `--enable-return-routed-experts` ends in "Found no NVIDIA driver". What is registered is
the buffer that experts are copied to, so that a GPU copies faster; nothing of what is kept and reported depends on it.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_POOL = "sglang.srt.mem_cache.pool_host.common"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _POOL:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None, "SGLang has such a module"
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            assert callable(module._cuda_host_register), "SGLang registers it there"
            module._cuda_host_register = lambda *args, **kwargs: None

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
