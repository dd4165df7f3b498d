"""Headers for servers over HTTP, whose values come from variables: no token stands in arguments, run folders or logs.

-a headers='Authorization: Bearer $TOKEN'
-a headers='http://one:8000/mcp Authorization: Bearer $ONE | http://two:9000/mcp X-Key: $TWO'
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from rollout.errors import ConfigError

_HEADER = re.compile(r"(?:(https?://\S+)\s+)?([A-Za-z0-9-]+):\s*(.+)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def headers_of(scheme: str, given: str, addresses: Sequence[str]) -> dict[str, dict[str, str]]:
    """The headers of each address. Raises ConfigError, which says a header's name and its variables, never a value."""
    found: dict[str, dict[str, str]] = {address: {} for address in addresses}
    for part in filter(None, (part.strip() for part in given.split(" | "))):
        if (match := _HEADER.fullmatch(part)) is None:
            raise ConfigError(f"{scheme}: headers: one is not of the form 'Name: value of $VARIABLE'")
        address, name, template = match.groups()
        found[_meant(scheme, name, address, addresses)][name] = _value(scheme, name, template)
    return found


def without_password(scheme: str, address: str) -> str:
    """An address. Raises ConfigError where it has a user's name in it: it stands in arguments, which runs keep."""
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            f"{scheme}: {shown(address)} has a user or a password in it, which would be kept with the run: give "
            "-a headers='Authorization: Basic $VARIABLE' in its place"
        )
    return address


def shown(address: str) -> str:
    """An address in an error's words, without what may be a secret: its user, and its query."""
    scheme, _, rest = address.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _meant(scheme: str, name: str, address: str | None, addresses: Sequence[str]) -> str:
    """Whose header it is: what is for one server is told to no other."""
    if address is None and len(addresses) == 1:
        return addresses[0]
    if address is None:
        why = (
            "there is no server over HTTP" if not addresses else "there are several servers: 'http://HOST/mcp Name: $X'"
        )
        raise ConfigError(f"{scheme}: headers: whose is {name}? {why}")
    if address not in addresses:
        raise ConfigError(f"{scheme}: headers: {name} is for an address that is none of the servers'")
    return address


def _value(scheme: str, name: str, template: str) -> str:
    names = [first or second for first, second in _VARIABLE.findall(template)]
    if not names:
        raise ConfigError(
            f"{scheme}: headers: {name} names no variable: its value would stand in the arguments. Write the name of a "
            f"variable that has it, in single quotes: -a headers='{name}: $TOKEN'"
        )
    if missing := [each for each in names if not os.environ.get(each, "").strip()]:
        raise ConfigError(f"{scheme}: headers: {name} takes ${missing[0]}, which is not set where rollouts are played")
    value = _VARIABLE.sub(lambda found: os.environ[found[1] or found[2]].strip(), template)
    if not value.isascii() or not value.isprintable():
        raise ConfigError(f"{scheme}: headers: {name}: ${names[0]} has characters that no header may have")
    return value
