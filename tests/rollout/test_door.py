"""What comes from outside is made well-formed once, or refused in one line that names it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import pathlib
import string
from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout import door
from rollout.errors import ConfigError

#: Any text that Python can hold, half emojis included: Hypothesis leaves surrogates out by default.
TEXTS = st.text(st.characters(exclude_categories=()))
#: Whatever JSON's readers give.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


class Tensor:
    """What torch's tensors have in common with numpy's arrays, and what is asked of them."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        return self.value

    def item(self) -> Any:
        if isinstance(self.value, list):
            (self.value,) = self.value
        return self.value


class Level(StrEnum):
    HARD = "hard"


class Point(msgspec.Struct):
    x: int
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Row:
    text: str


@given(TEXTS)
def test_every_text_can_be_encoded(text: str) -> None:
    """Behind the door a text has an encoding, and only what had none was changed."""
    found = door.well_formed(text)
    found.encode()
    assert door.well_formed(found) is found
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "\ufffd" in found
        assert len(found) == len(text)
    else:
        assert found == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("caf\udce9.txt", "caf\ufffd.txt"),
        ("\ud83d", "\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00!", "\ufffd\ufffd!"),
        (Level.HARD, "hard"),
    ],
)
def test_a_lone_surrogate_becomes_the_replacement_character(text: str, right: str) -> None:
    """Each half of a character is one U+FFFD, and the text is of Python's own type."""
    assert door.well_formed(text) == right
    assert type(door.well_formed(text)) is str


@given(JSON)
def test_what_json_can_hold_is_written_and_read_back(value: Any) -> None:
    """Plain data comes back from JSON as it is, by Python's reader and by msgspec's."""
    found = door.plain(value)
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert door.plain(found) == found
    assert door.is_plain(found)


@given(JSON)
def test_what_is_well_formed_stays_as_it_is(value: Any) -> None:
    """Only what cannot be written is changed."""
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return
    assert door.plain(value) == value
    assert door.is_plain(value)


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(3), 3),
        (Tensor([1.5, 2.5]), [1.5, 2.5]),
        (Tensor(2), 2),
        ((1, "a"), [1, "a"]),
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, ("b",)), {"x": 1, "tags": ["b"]}),
        (Row("caf\udce9"), {"text": "caf\ufffd"}),
        (Level.HARD, "hard"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"),
        (pathlib.PurePosixPath("a/\udce9"), "a/\ufffd"),
        ({2: "a", None: "b", True: "c", "\udce9": "d"}, {"2": "a", "null": "b", "true": "c", "\ufffd": "d"}),
        (2**70, 2**70),
        (iter([1]), [1]),
        ({}.keys(), []),
    ],
)
def test_what_stands_for_plain_data_becomes_it(value: Any, right: Any) -> None:
    """Scalars and arrays of numpy and torch are numbers and lists; structs and models are dicts; dates are text."""
    found = door.plain({"it": value})["it"]
    assert found == right
    assert type(found) is type(right)


def within_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


class Broken:
    """Raises while it is read."""

    def tolist(self) -> Any:
        raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1, 2}, r"^key\[1\]\.deep is of type set$"),
        (b"x", "is of type bytes"),
        (object(), "is of type object"),
        (str, "is of type type"),
        (math.nan, "is nan, which JSON does not have"),
        (np.float64(-math.inf), "is -inf"),
        (np.array([1.0, math.nan]), r"^key\[1\]\.deep\[1\] is nan"),
        (1j, "is of type complex"),
        ([10**5_000], "is an integer of 16610 bits"),
        ({(1, 2): 3}, "has a key of type tuple"),
        ({1: 2, "1": 3}, "has two keys that are '1'"),
        (within_itself(), "is nested deeper than 128 levels, or within itself"),
        (nested(5_000), "is nested deeper than 128 levels, or within itself"),
        (Broken(), "cannot be read: RuntimeError: the device is gone"),
    ],
)
def test_what_cannot_be_written_is_refused_by_its_place(value: Any, named: str) -> None:
    """A refusal names the place and the type, in one line, however deep the value lies."""
    assert not door.is_plain(value)
    with pytest.raises(door.Refused, match=named) as refused:
        door.plain({"key": [1, {"deep": value}]})
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_numbers_that_json_does_not_have_can_be_nulled_or_kept() -> None:
    """NaN and the infinities become None, or stay for a caller that does not write them."""
    assert door.plain([math.nan, np.float32(math.inf), 1.0], not_finite="null") == [None, None, 1.0]
    assert door.plain([np.float32(math.inf), "\udce9"], not_finite="keep") == [math.inf, "\ufffd"]


def test_the_callers_later_changes_do_not_reach_what_came_in() -> None:
    """Containers are copied."""
    inner = [1]
    found = door.plain({"inner": inner})
    inner.append(2)
    assert found == {"inner": [1]}


@pytest.mark.parametrize(
    "value", [1, 1.0, True, np.float32(1), np.int8(1), np.bool_(1), np.array([1]), Tensor([1.0]), Decimal(1)]
)
def test_scalars_of_every_library_are_numbers(value: Any) -> None:
    """A reward may be Python's, numpy's or torch's."""
    assert door.number(value, "step") == 1.0
    assert type(door.number(value, "step")) is float


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (math.nan, "step gave nan where a finite number belongs"),
        (np.float32(-math.inf), "step gave -inf where a finite number belongs"),
        (10**400, "step gave inf where a finite number belongs"),
        ("1", "step gave str where a number belongs"),
        (np.str_("1"), "step gave str_ where a number belongs"),
        (None, "step gave NoneType where a number belongs"),
        (1j, "step gave complex where a number belongs"),
        (np.array([1, 2]), "step gave ndarray where a number belongs"),
    ],
)
def test_what_is_no_finite_number_is_refused_by_name(value: Any, named: str) -> None:
    """A reward that cannot be read back is named with its source."""
    with pytest.raises(door.Refused, match=f"^{named}$"):
        door.number(value, "step")


def test_metrics_are_names_and_finite_numbers() -> None:
    """A metric's name is text that can be written; one that is no number is refused by its name."""
    assert door.named_numbers({"a": np.float32(0.5), "\udce9": True}, "step") == {"a": 0.5, "\ufffd": 1.0}
    with pytest.raises(door.Refused, match=r"^metric 'loss' gave nan where"):
        door.named_numbers({"loss": math.nan}, "step")
    with pytest.raises(door.Refused, match=r"^step has a key of type tuple"):
        door.named_numbers({(1,): 1}, "step")
    with pytest.raises(door.Refused, match=r"^step gave metrics as list"):
        door.named_numbers([1], "step")


def test_a_task_that_cannot_be_written_is_refused_with_its_name() -> None:
    """The refusal has the task's index and id, the place in it and the type that lies there."""
    assert door.task({"id": "a", "n": np.int64(7)}, 0) == {"id": "a", "n": 7}
    with pytest.raises(ConfigError, match=r"^task 3 \(id 'x'\) cannot be written: parts\[1\] is of type set"):
        door.task({"id": "x", "parts": [1, {2}]}, 3)
    with pytest.raises(ConfigError, match=r"^task 3 is of type list; a task is a mapping"):
        door.task([1], 3)


SENDABLE = set(string.ascii_letters + string.digits + "-._~:%")


@given(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
def test_every_id_can_be_sent_in_a_header_and_none_becomes_another(ids: list[str]) -> None:
    """A header is short, of visible ASCII, and as distinct as its id."""
    sent = [door.header(text) for text in ids]
    assert all(set(text) <= SENDABLE and len(text) <= 128 for text in sent)
    assert sent[0] != sent[1]


def test_ordinary_ids_are_sent_as_they_are() -> None:
    """Only what no header takes is changed; long ids are cut, and stay distinct."""
    assert door.header("12-task_7.b:1") == "12-task_7.b:1"
    assert door.header("naïve\n") == "na%C3%AFve%0A"
    assert door.header("x" * 10_000) != door.header("x" * 10_001)


class Speechless(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@given(TEXTS)
def test_what_an_exception_says_can_be_written(text: str) -> None:
    """The text of any exception can be encoded, and is bounded."""
    found = door.error_text(ValueError(text * 100))
    found.encode()
    assert 0 < len(found) <= 2_000


@pytest.mark.parametrize(
    ("error", "right"),
    [
        (ValueError("bad"), "bad"),
        (TimeoutError(), "TimeoutError"),
        (Speechless(), "Speechless"),
        (
            BaseExceptionGroup("two", [ExceptionGroup("one", [KeyError("a")]), SystemExit()]),
            "two (2 sub-exceptions): KeyError: 'a'",
        ),
    ],
)
def test_an_exception_that_says_nothing_is_named(error: BaseException, right: str) -> None:
    """An exception without a text, or whose text raises, says its type; a group says what its first says."""
    assert door.error_text(error) == right


def test_a_mapping_that_raises_is_refused() -> None:
    """A lazy row that fails while it is read is a refusal, not an exception of another kind."""

    class Lazy(dict[str, Any]):
        def items(self) -> Any:
            def rows() -> Iterator[tuple[str, int]]:
                yield "a", 1
                raise KeyError("gone")

            return rows()

    with pytest.raises(ConfigError, match=r"^task 0 cannot be written: it cannot be read: KeyError: 'gone'"):
        door.task(Lazy(a=1), 0)


def test_a_task_whose_id_is_too_long_a_number_is_refused() -> None:
    """The id that cannot be written is not needed to say so."""
    with pytest.raises(ConfigError, match=r"^task 3 cannot be written: id "):
        door.task({"id": 10**5000}, 3)


class Nameless(type):
    """A metaclass whose classes cannot say their names."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Unnamed(Exception, metaclass=Nameless):
    pass


def test_a_class_has_a_name_whatever_its_metaclass_makes_of_it() -> None:
    """It is Python's own."""
    assert door.type_name(Unnamed()) == "Unnamed"
    assert door.type_name(5) == "int"
