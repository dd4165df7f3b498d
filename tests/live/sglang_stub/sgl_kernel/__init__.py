"""A stand-in for SGLang's kernel package, which has no build without a GPU. The folder above goes on PYTHONPATH.

SGLang imports names from `sgl_kernel` and its submodules everywhere, and calls none of them where it serves on a CPU
with torch's own attention. So every attribute, at any depth, is a hashable placeholder that raises when it is called.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

__path__ = []
__version__ = "0.4.10"


class _Placeholder:
    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, key: str) -> _Placeholder:
        if key.startswith("__"):
            raise AttributeError(key)
        return _Placeholder(f"{self.__dict__['_name']}.{key}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"the stand-in for sgl_kernel.{self.__dict__['_name']} was called")

    def __hash__(self) -> int:
        return hash(self.__dict__["_name"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Placeholder) and other.__dict__ == self.__dict__


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> _Placeholder:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


sys.meta_path.insert(0, _Finder())
sys.modules[__name__].__class__ = _Module
