"""One request's fields, each by its type and its name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollout.dialects.fields import Fields, decoded, items
from rollout.dialects.types import DialectError


def test_null_is_as_good_as_absent() -> None:
    """Programs write fields that they do not mean as null."""
    fields = Fields(b'{"seed": null, "top_p": 0.5}')
    assert fields.take("seed", int) is None
    assert fields.take("top_p", float) == 0.5
    assert fields.rest == {}


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b'{"x": "warm"}', float, "x: expected float, got str"),
        (b'{"x": [1, "a"]}', list[int], "x[1]: expected int, got str"),
        (b'{"x": {"a": 1}}', dict[str, str], "x[...]: expected str, got int"),
        (b'{"x": 1e999}', float, "x: number out of range"),
        (b'{"x": "\xff"}', str, "x is not UTF-8"),
    ],
)
def test_a_wrong_field_is_named(body: bytes, kind: Any, text: str) -> None:
    """With the place in it, and what was expected there."""
    with pytest.raises(DialectError) as refused:
        Fields(body).take("x", kind)
    assert refused.value.message == text


def test_what_asks_for_nothing_is_not_refused() -> None:
    """Programs send `false` and empty lists for what they do not want."""
    Fields(b'{"echo": false, "functions": []}').refuse({"echo": "no", "functions": "no"})
    with pytest.raises(DialectError, match="echo: not supported: because"):
        Fields(b'{"echo": true}').refuse({"echo": "because"})


def test_items_are_not_decoded() -> None:
    """A list is cut into its items' bytes."""
    fields = Fields(b'{"messages": [{"a": 1}, [2]]}')
    assert list(map(bytes, items(fields.required("messages"), "messages"))) == [b'{"a": 1}', b"[2]"]
    with pytest.raises(DialectError, match="messages: is required"):
        items(fields.required("messages"), "messages")
    assert decoded(msgspec.Raw(b"[2]"), list[int], "x") == [2]
