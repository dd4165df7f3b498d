"""What is read in pieces is what it would be in one go, and leaves the event loop free meanwhile."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import MalformedReply
from rollout.request import Reply
from rollout.transport import ServerInfo
from transports import large
from transports.fields import experts_of_bytes, mask_of_lists
from transports.http.client import Answer, HttpClient
from transports.large import bytes_of, decode_apart, lists_of, put_back
from transports.openai import ServedTransport

_LISTS = msgspec.json.Decoder(list[list[int]])


class _Named(msgspec.Struct):
    routed_experts: msgspec.Raw = msgspec.Raw(b"null")
    other: Any = None


_NAMED = msgspec.json.Decoder(_Named)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large, and its pieces are small."""
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(large, "_PIECE", 8)


@given(st.binary(max_size=60))
def test_bytes_in_pieces(data: bytes) -> None:
    """Whatever their number."""
    assert bytes_of(msgspec.Raw(json.dumps(b64encode(data).decode()).encode())) == data


@given(st.text(st.sampled_from('AQg+/=-_ \\"\n'), max_size=40))
def test_what_is_no_base64_is_refused_as_in_one_go(text: str) -> None:
    """Also what is filled up in the middle, at the end of a piece."""
    raw = msgspec.Raw(msgspec.json.encode(text))
    try:
        whole = msgspec.json.decode(raw, type=bytes)
    except ValueError:
        whole = None
    try:
        found = bytes_of(raw)
    except ValueError:
        found = None
    assert found == whole


@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=12), st.sampled_from([(",", ":"), (", ", ": ")])
)
def test_lists_in_pieces(lists: list[list[int]], separators: tuple[str, str]) -> None:
    """However it is spaced."""
    assert lists_of(msgspec.Raw(json.dumps(lists, separators=separators).encode()), _LISTS) == lists


_NO_LISTS = st.recursive(
    st.integers(-1, 9) | st.text(st.sampled_from("[],1"), max_size=5) | st.floats(0, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["[", "a],"]), inner, max_size=2),
    max_leaves=12,
)


@given(_NO_LISTS)
def test_what_are_no_lists_are_refused_as_in_one_go(value: Any) -> None:
    """Nothing else becomes lists by being cut."""
    text = json.dumps(value)
    try:
        whole = _LISTS.decode(text)
    except msgspec.MsgspecError:
        with pytest.raises(ValueError):  # noqa: PT011  # whichever of them
            lists_of(msgspec.Raw(text.encode()), _LISTS)
    else:
        assert lists_of(msgspec.Raw(text.encode()), _LISTS) == whole


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('ab"\\:routed_experts'), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["routed_experts", "other", 'x"routed_experts":"']), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_JSON, st.booleans())
def test_an_answer_is_the_same_without_the_text_that_is_read_apart(value: Any, spaced: bool) -> None:
    """Wherever the name stands in it: as a key, in a text, or twice."""
    body = json.dumps(value, separators=(", ", ": ") if spaced else (",", ":")).encode()
    answer = Answer(200, body, 0.0)
    try:
        whole = _NAMED.decode(body)
    except msgspec.MsgspecError:
        with pytest.raises(MalformedReply):
            decode_apart(_NAMED, answer, "/x", "routed_experts")
        return
    found, apart = decode_apart(_NAMED, answer, "/x", "routed_experts")
    assert msgspec.json.decode(put_back(found.routed_experts, apart)) == msgspec.json.decode(whole.routed_experts)
    # What is cut out of what nobody reads is not missed, and nothing else may be cut.
    assert "routed_experts" in str(whole.other) or found.other == whole.other


def test_fields_are_read_in_pieces_as_in_one_go() -> None:
    """Both of them, and what is wrong with one is said as ever."""
    rows = msgspec.Raw(json.dumps(b64encode(bytes(48)).decode()).encode())
    found = experts_of_bytes(rows, (2, 2), 3, "/x")
    assert found is not None
    assert found.rows == 3
    mask = mask_of_lists(msgspec.Raw(b"[[1, 2, 3, 4], [5, 6, 7, 8], []]"), "/x")
    assert mask is not None
    assert mask.tokens == 3
    with pytest.raises(MalformedReply, match="/x: the sampling mask cannot be read"):
        mask_of_lists(msgspec.Raw(b'[[1, 2, 3, 4], [5, 6, 7, "8"]]'), "/x")
    with pytest.raises(MalformedReply, match="/x: routed_experts cannot be read"):
        experts_of_bytes(msgspec.Raw(b'"AAAAAAA=AAAAAAAA"'), None, 1, "/x")


async def test_a_large_answer_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of its own; a small one is read where it came."""
    monkeypatch.setattr("transports.openai.LARGE", 100)
    client = HttpClient("http://x", transport=httpx.MockTransport(lambda _: httpx.Response(200)))
    transport = _Reads(client, ServerInfo(dialect="x", model="m"))
    assert await transport.thread_of(bytes(100)) == threading.get_ident()
    assert await transport.thread_of(bytes(101)) != threading.get_ident()
    await transport.aclose()


class _Reads(ServedTransport):
    """Tells where it reads."""

    async def thread_of(self, body: bytes) -> int:
        where: list[int] = []

        def read(_: Answer) -> Reply:
            where.append(threading.get_ident())
            return Reply(completion_ids=None, logprobs=None)

        await self._read(read, Answer(200, body, 0.0))
        return where[0]

    async def generate(self, request: Any) -> Reply:
        raise NotImplementedError
