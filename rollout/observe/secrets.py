"""What other packages say, without the keys in it: a tracker's error quotes its address, password and all."""

from __future__ import annotations

import os
import re

#: Names of variables and of parts of an address's query whose values are nobody's to read.
_NAMES = r"(?:key|token|secret|password|passwd|credentials)"

_IN_ADDRESS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"<>]*@")
_IN_QUERY = re.compile(rf"([?&;][\w.-]*{_NAMES}=)[^\s&;'\"<>)]+", re.IGNORECASE)
_VARIABLE = re.compile(rf"{_NAMES}$", re.IGNORECASE)

#: Values that are shorter are words that may stand anywhere.
_SHORTEST = 6


def without_secrets(text: str) -> str:
    """A text without users and passwords of addresses, and without the values of this process's secret variables."""
    for name, value in os.environ.items():
        if _VARIABLE.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1", text))
