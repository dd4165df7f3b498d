"""Python's literals are read as Python reads them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.codec.readers.literals import read_call, read_literal
from rollout.codec.readers.values import NoCall, arguments_text

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(LITERALS)
def test_what_python_writes_is_read_back(value: Any) -> None:
    """Every literal, to its end."""
    text = repr(value)
    assert read_literal(text, 0) == (value, len(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"'\d\q'", r"\d\q"),
        (r"'\ud83d\ude00 \ud83d\udc4b'", "😀 👋"),
        (r"'\ud83d'", "\ud83d"),
        (r"'\ude00\ud83d'", "\ude00\ud83d"),
        (r'"\x41\u00e9\U0001f600\101\n"', "Aé😀A\n"),
        ("'''a'b\nc'''", "a'b\nc"),
        ('"a\nb"', "a\nb"),
        ("(1, 2)", [1, 2]),
        ("[1, 2, ]", [1, 2]),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
    ],
)
def test_spellings(text: str, value: Any) -> None:
    """Escapes that Python does not know stay; JSON's words are read, too."""
    assert read_literal(text, 0)[0] == value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("+1.50", "1.50"),
        (".5", "0.5"),
        ("5.", "5.0"),
        ("-007.10", "-7.10"),
        ("1_0.0", "10.0"),
        ("1.e5", "1.0e5"),
        ("-.5E-3", "-0.5e-3"),
        ("-00", "-0"),
        ("1.10E3", "1.10E3"),
    ],
)
def test_numbers_are_written_as_json_has_them(text: str, written: str) -> None:
    """With all their digits, however Python may spell them."""
    value, end = read_literal(text, 0)
    assert (arguments_text({"a": value}), end) == (f'{{"a": {written}}}', len(text))


@given(st.from_regex(r"\A[-+]?([0-9][0-9_]{0,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})([eE][-+]?[0-9]{1,2})?\Z"))
def test_a_number_is_the_one_that_python_reads(text: str) -> None:
    """To its last digit; what Python does not take, a leading zero apart, is none."""
    try:
        value, _ = read_literal(text, 0)
    except NoCall:
        with pytest.raises(ValueError, match="could not convert"):
            float(text)
        return
    (found,) = json.loads(arguments_text({"a": value}), parse_float=Decimal, parse_int=Decimal).values()
    assert found == Decimal(text)


@given(st.text(st.characters(exclude_categories=())))
def test_texts_in_jsons_escapes_are_read_as_json_reads_them(text: str) -> None:
    """Models write a character beyond 16 bits in two escapes, in Python too."""
    written = json.dumps(text)
    assert read_literal(written, 0) == (json.loads(written), len(written))


@pytest.mark.parametrize("text", ["", "x", "[1", "{1: 2}", "'a", "{'a': 1, 'a': 2}", "[1 2]", "9" * 5_000, "-", "f(1)"])
def test_what_is_no_literal_is_refused(text: str) -> None:
    """By the one error that readers know."""
    with pytest.raises(NoCall):
        read_literal(text, 0)


@given(st.text(alphabet="fa(=)[]{},'\"\\1 \n.T", max_size=20))
def test_no_text_raises_anything_else(text: str) -> None:
    """Whatever a model wrote."""
    for read in (read_literal, read_call):
        try:
            found = read(text, 0)
        except NoCall:
            continue
        assert found[-1] <= len(text)
