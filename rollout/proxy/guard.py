"""Whose requests are answered: those of programs, never those that a web page has a browser send.

A page in the user's browser can send requests to this machine's ports. Its requests carry an `Origin`, which no
program's do, or, where its name was made to resolve to this machine, a `Host` that is the page's and not ours.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping

from rollout.dialects.types import DialectError


class Guard:
    """Checks the headers that a browser sets and a page cannot."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        """`hosts` are names by which we are known, beside this machine's own. An address in numbers is no page's."""
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    def __repr__(self) -> str:
        return f"<Guard {sorted(self._hosts)}>"

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises DialectError, 403."""
        # What a page loads as an image or a script has no Origin, but browsers say whence it comes.
        sent = "Origin" if "origin" in headers else "Sec-Fetch-Site" if _of_page(headers) else ""
        if sent:
            raise DialectError(
                403, f"requests of web pages are not answered (the header {sent})", code="origin_refused"
            )
        host = host_of(headers.get("host", ""))
        if host not in self._hosts and not _is_address(host):
            why = f"{host[:100]!r} is no name of this endpoint (the header Host): give it by proxy_address"
            raise DialectError(403, why, code="host_refused")


def _of_page(headers: Mapping[str, str]) -> bool:
    return headers.get("sec-fetch-site", "none") != "none"  # none: typed in by the user


def host_of(netloc: str) -> str:
    """The host of `host:port`, in lower case, an IPv6 address without its brackets."""
    netloc = netloc.strip().lower()
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
