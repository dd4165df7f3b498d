"""Lets torchvision load beside a CPU build of torch: on PYTHONPATH of the vLLM servers.

torchvision's wheels need CUDA for their operators, which a text model never calls; but importing it
registers shapes for them, and fails where the operators are not declared. This declares them first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_OPERATORS = ("nms", "qnms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators just before torchvision is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
        library.define(f"_{name}_backward(Tensor x) -> Tensor")
    _DeclareOperators.kept = library  # type: ignore[attr-defined]  # the declarations end with the object


sys.meta_path.insert(0, _DeclareOperators())
