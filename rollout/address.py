"""A server's address, as people give it: checked when settings are read, and shown without what it may hold of secrets.

server_url("10.0.0.7:8000/v1/")          http://10.0.0.7:8000
server_url("http://me:pass@gpu:8000")    http://gpu:8000, and `basic_auth` has what goes into a header
server_url("http://gpu:99999")           ConfigError: the port is 1 to 65535, not 99999
"""

from __future__ import annotations

import base64
import re
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from rollout.errors import ConfigError

_HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+(%[\w.-]+)?")

#: What people copy from a curl command; the routes are ours to choose.
_ROUTES = re.compile(r"/v1(/(chat/completions|completions|models))?$")


def server_url(url: str) -> str:
    """The server's root, without user and password. Scheme, last slash and /v1 may be there or not.

    Raises ConfigError, which names the address and what is wrong with it.
    """
    parts = _split(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{host}{port}{_ROUTES.sub('', parts.path.rstrip('/'))}"


def shown_url(url: str) -> str:
    """The address as it may be logged, written and printed: without user, password, query and fragment.

    Takes any text, also what is no address.
    """
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text := url.strip())
    scheme = found[0] if found else ""
    # Up to the last @, whatever is in between: a password may hold what should have been written as %2F or %3F.
    rest = text[len(scheme) :].rpartition("@")[2]
    return scheme + re.split(r"[?#]", rest, maxsplit=1)[0]


def basic_auth(url: str) -> str | None:
    """The `Authorization` header for an address that has a user or a password; None for others. Raises ConfigError."""
    parts = _split(url)
    if parts.username is None and parts.password is None:
        return None
    pair = unquote_to_bytes(parts.username or "") + b":" + unquote_to_bytes(parts.password or "")
    return f"Basic {base64.b64encode(pair).decode()}"


def is_loopback(url: str) -> bool:
    """Whether an address names the machine that it is used on, whichever that is. Raises ConfigError."""
    host = _split(url).hostname or ""
    return host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")


def _split(url: str) -> SplitResult:
    text, shown = url.strip(), shown_url(url)
    if "://" not in text and not re.match(r"https?:/?(?![0-9])", text):
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        said = str(error)
        if "ort" in said:  # "Port out of range", "Port could not be cast": its text may quote a password
            raise _wrong(shown, "the port is a number from 1 to 65535") from None
        raise _wrong(shown, "an IPv6 address is written http://[::1]:8000") from None
    if "@" in parts.path + parts.query + parts.fragment:
        raise _wrong(shown, "/ ? # and @ in a password are written %2F %3F %23 and %40")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise _wrong(shown, "it must begin with http:// or https://")
    if not host:
        raise _wrong(shown, "it names no host")
    if not _is_host(host) or re.search(r"[\s\\]", text):
        raise _wrong(shown, f"{host!r} is no host name" if not _is_host(host) else "it has a space or a backslash")
    if port == 0:
        raise _wrong(shown, "the port is a number from 1 to 65535")
    if "?" in text or "#" in text:
        raise _wrong(shown, "it has a query or a fragment (not shown here), which no server's root has")
    return parts


def _is_host(host: str) -> bool:
    if not _HOST.fullmatch(host):
        return False
    try:
        return ":" in host or bool(host.encode("idna"))
    except UnicodeError:  # an empty label, or one that is too long
        return False


def _wrong(shown: str, why: str) -> ConfigError:
    return ConfigError(f"{shown!r} is no server's address: {why}; write it as http://HOST:PORT")
