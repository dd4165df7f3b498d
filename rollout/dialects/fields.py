"""One request's fields: each is read by its type, and refused by its name.

The body is cut into its fields, and a list into its items, without making objects of what they hold: whoever knows
an item by its bytes never decodes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import msgspec

from rollout.dialects.types import DialectError

T = TypeVar("T")

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])

#: An escape in JSON text: a pair of surrogates, one alone (named), or any other.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<alone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

#: Where msgspec says that a value of the wrong type lies, at the end of its message.
_PLACE = re.compile(r" - at `\$([^`]*)`$")


class Fields:
    """The fields of a request that nobody has taken yet. Null is as good as absent."""

    def __init__(self, body: bytes) -> None:
        """Raises DialectError for a body that is no JSON object."""
        self.body = body
        try:
            found = _OBJECT.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # JavaScript writes half of a character that was cut in two as an escape of its own.
            self.body = _ESCAPE.sub(_repaired, body)
            found = _read(self.body, _OBJECT, "the body")
        self.rest = {name: raw for name, raw in found.items() if not _is_null(raw)}

    @overload
    def take(self, name: str, kind: type[T]) -> T | None: ...
    @overload
    def take(self, name: str, kind: Any) -> Any: ...
    def take(self, name: str, kind: Any) -> Any:
        """A field's value; None where it is absent. Raises DialectError for one of another type."""
        raw = self.rest.pop(name, None)
        return None if raw is None else decoded(raw, kind, name)

    def raw(self, name: str) -> msgspec.Raw | None:
        """A field's bytes."""
        return self.rest.pop(name, None)

    def required(self, name: str) -> msgspec.Raw:
        """A field's bytes; it must be there."""
        if (raw := self.rest.pop(name, None)) is None:
            raise DialectError.of_field(name, "is required", "missing_required_parameter")
        return raw

    def ignore(self, names: frozenset[str]) -> None:
        """Takes fields that change nothing of the answer."""
        for name in self.rest.keys() & names:
            del self.rest[name]

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Raises DialectError for the first field that asks for what cannot be done. False and [] ask for nothing."""
        for name in self.rest.keys() & reasons.keys():
            if bytes(self.rest.pop(name)) not in (b"false", b"[]", b"{}", b"0"):
                raise unsupported(name, reasons[name])


def unsupported(param: str, why: str) -> DialectError:
    return DialectError.of_field(param, f"not supported: {why}", "unsupported_parameter")


def items(raw: msgspec.Raw | bytes | memoryview, name: str) -> list[msgspec.Raw]:
    """The bytes of a list's items."""
    found: list[msgspec.Raw] = _read(raw, _ITEMS, name)
    return found


def decoded(raw: msgspec.Raw | bytes, kind: Any, name: str) -> Any:
    """A value of this type. Raises DialectError, naming the field and the place in it."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return _read(raw, decoder, name)


#: As many as there are types in the code.
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def _read(raw: msgspec.Raw | bytes | memoryview, decoder: msgspec.json.Decoder[Any], name: str) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        text = str(error)
        place = found.group(1) if (found := _PLACE.search(text)) else ""
        why = _PLACE.sub("", text).replace("`", "").lower()
        raise DialectError.of_field(f"{name}{place}", why, "invalid_type") from None
    except msgspec.DecodeError as error:
        raise DialectError(400, f"{name} is not JSON: {error}", code="invalid_json") from None
    except UnicodeDecodeError:
        raise DialectError(400, f"{name} is not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise DialectError(400, f"{name} is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise DialectError(400, f"{name}: {error}", code="invalid_json") from None


def _is_null(raw: msgspec.Raw) -> bool:
    return memoryview(raw).nbytes == 4 and bytes(raw) == b"null"


def _repaired(match: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if match["alone"] else match[0]
