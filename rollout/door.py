"""Whatever comes from outside is made well-formed here, once, or refused in one line that names it.

Environments, agents, tasks, rewards, metrics, exceptions, sampled tool calls and servers hand in Python values. Some
of them cannot be written: half an emoji in a text, a NaN, a set, a list within itself. Found out when a record is
written they would end a run, so they are found out when they come in. Behind this door every text can be encoded,
every number is written and read back, and every id can be sent in a header.

    well_formed("caf\\udce9")                     "caf\\ufffd"
    plain({"answer": np.int64(7), "tags": ("a",)})   {"answer": 7, "tags": ["a"]}
    plain({"parts": [{1, 2}]})                       Refused: parts[0] is of type set
    header("naïve\\n")                               "na%C3%AFve%0A"
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import hashlib
import math
import numbers
import operator
import re
import sys
import uuid
from array import array
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from pathlib import PurePath
from typing import Any, Literal, cast
from urllib.parse import quote

import msgspec

from rollout.errors import ConfigError

#: Deeper values are refused: JSON's readers and chat templates go down by recursion, and Python allows about 1,000.
MOST_DEEP = 128

#: Longer integers are refused: Python reads and writes 4,300 digits at most.
_MOST_BITS = 14_000

#: An exception's text may be a whole page of HTML, or a tensor.
_MOST_ERROR_CHARS = 2_000

#: What vLLM writes in the place of a logprob that is missing or minus infinity.
_CLAMPED = -9_999.0

#: Logprobs of probabilities that rounding put above 1.
_ABOVE_ONE = 1e-6

_INT32 = "i"
_HIGHEST_BYTE = 3 if sys.byteorder == "little" else 0

_SURROGATE = re.compile("[\ud800-\udfff]")

_MOST_HEADER_CHARS = 128
_MOST_PATH_CHARS = 160

#: What msgspec writes as text, and so do we.
_WRITTEN_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, uuid.UUID, decimal.Decimal)

NotFinite = Literal["refuse", "null", "keep"]

_ROWS = (Sequence, Iterator, deque, KeysView, ValuesView, ItemsView)


class Refused(ValueError):
    """A value that cannot be written. Its text says where it lies, what it is, and why."""

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(f"{path or 'it'} {why}")
        self.why = why
        """Such as "is of type set"."""
        self.path = path
        """Such as `parts[0].text`; "" for the value itself."""

    def within(self, key: object) -> Refused:
        """The same of the container that holds it under `key`."""
        here = f"[{key}]" if isinstance(key, int) else well_formed(str(key))[:80]
        dot = "." if self.path and not self.path.startswith("[") else ""
        path = f"{here}{dot}{self.path}"
        return Refused(self.why, path if len(path) <= _MOST_PATH_CHARS else f"{path[: _MOST_PATH_CHARS - 3]}...")


def well_formed(text: str) -> str:
    """The text, with U+FFFD for each surrogate, half of a character, which no encoding takes."""
    if type(text) is not str:
        text = "".join(text)
    if is_well_formed(text):
        return text
    return _SURROGATE.sub("\ufffd", text)


def is_well_formed(text: str) -> bool:
    """Whether a text can be encoded. Costs next to nothing for ASCII, and for others what encoding costs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any, *, not_finite: NotFinite = "refuse") -> Any:
    """The value as dicts, lists, well-formed texts, finite numbers, booleans and None: what JSON writes and reads back.

    Containers are copied. Arrays and scalars of numpy and torch become lists and numbers; structs, dataclasses and
    pydantic models become dicts, tuples lists, dates and UUIDs text. Integers may have any size up to 4,200 digits.
    `not_finite` is what becomes of NaN and the infinities, which JSON does not have. Raises Refused, with the place.
    """
    try:
        return _plain(value, not_finite, 0)
    except Refused:
        raise
    except Exception as error:  # a mapping, a model or a tensor of the caller's that raises while it is read
        raise Refused(f"cannot be read: {type_name(error)}: {error_text(error)}") from error


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether `plain` would change nothing of a value, refusals included. The value's depth counts from `depth`."""
    kind = type(value)
    if kind is str:
        return is_well_formed(value)
    if value is None or kind is bool:
        return True
    if kind is int:
        return bool(value.bit_length() <= _MOST_BITS)
    if kind is float:
        return math.isfinite(value)
    if depth > MOST_DEEP:
        return False
    if kind is list:
        return all(is_plain(item, depth + 1) for item in value)
    return kind is dict and all(
        type(key) is str and is_well_formed(key) and is_plain(item, depth + 1) for key, item in value.items()
    )


def number(value: object, source: str) -> float:
    """A reward or a metric. numpy's and torch's scalars are numbers. Raises Refused for another type, NaN and inf."""
    try:
        if isinstance(value, numbers.Real | decimal.Decimal):
            found = float(value)
        elif isinstance(item := value.item(), numbers.Real):  # type: ignore[attr-defined]  # a tensor of one element
            found = float(item)
        else:
            raise TypeError
    except OverflowError:  # an integer beyond what a float holds
        found = math.inf
    except Exception:
        raise Refused(f"gave {type_name(value)} where a number belongs", source) from None
    if not math.isfinite(found):
        raise Refused(f"gave {found} where a finite number belongs", source)
    return found


def positive(value: object, what: str) -> int:
    """A whole number from 1 on, where there is one. Raises Refused."""
    try:
        found = operator.index(value)  # type: ignore[arg-type]  # whatever the caller gave
    except TypeError:
        found = 0
    if found < 1 or isinstance(value, bool):
        raise Refused(f"must be a number from 1 on, or None, not {value!r:.80}", what)
    return found


def named_numbers(values: object, source: str) -> dict[str, float]:
    """Metrics: names and finite numbers. Raises Refused."""
    if not isinstance(values, Mapping):
        raise Refused(f"gave metrics as {type_name(values)}, not as a mapping of names to numbers", source)
    try:
        return {(name := _key(key)): number(value, f"metric {name!r}") for key, value in values.items()}
    except Refused as refused:
        raise Refused(refused.why, refused.path or source) from None


def task(value: object, index: int) -> dict[str, Any]:
    """A task as it is played and written. Raises ConfigError, naming the task, the place in it and what lies there."""
    named = value.get("id") if isinstance(value, Mapping) else None
    if isinstance(named, int) and named.bit_length() > _MOST_BITS:
        named = None  # Python would not make a text of it
    name = f"task {index}" + (f" (id {well_formed(str(named))[:80]!r})" if isinstance(named, str | int) else "")
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is of type {type_name(value)}; a task is a mapping, such as a dict")
    try:
        found: dict[str, Any] = plain(value)
    except Refused as refused:
        raise ConfigError(
            f"{name} cannot be written: {refused}; a task holds text, finite numbers, booleans, None, lists and dicts"
        ) from refused
    return found


def check_ids(ids: Sequence[int]) -> array[int]:
    """Token ids as a server gave them, as int32. Raises Refused for one that is negative, huge, or no integer."""
    try:
        packed = ids if isinstance(ids, array) else array(_INT32, ids)
    except (OverflowError, TypeError):
        packed = None
    # The sign is the highest bit of an id's highest byte: looking at those alone, 100,000 ids cost 0.1 ms.
    if packed is not None and packed.tobytes()[_HIGHEST_BYTE :: packed.itemsize].isascii():
        return packed
    at, found = next(
        (at, each)
        for at, each in enumerate(ids)
        if not isinstance(each, numbers.Integral) or not 0 <= int(each) < 2**31
    )
    raise Refused(f"is {found!r}, which is no token's", f"id {at}")


def check_logprobs(values: Sequence[float | None]) -> None:
    """Raises Refused unless each is the logarithm of a probability.

    -9999.0 is what vLLM writes for one that is missing or was clamped: training on it would be wrong unseen.
    """
    with contextlib.suppress(TypeError):  # something among them is no number
        numbers_only = cast("Sequence[float]", values)
        # A sum is not finite where one value is not.
        if not values or (
            math.isfinite(sum(numbers_only)) and max(numbers_only) <= _ABOVE_ONE and min(numbers_only) > _CLAMPED
        ):
            return
    for at, value in enumerate(values):
        if why := _logprob_fault(value):
            raise Refused(why, f"logprob {at}")


def _logprob_fault(value: object) -> str:
    if not isinstance(value, int | float):
        return "is null in the place of a number" if value is None else f"is of type {type_name(value)}"
    if not math.isfinite(value):
        return f"is {value}"
    if value > _ABOVE_ONE:
        return f"is {value}: a probability above 1"
    return f"is {value}, which stands for one that is missing" if value <= _CLAMPED else ""


def header(text: str) -> str:
    """An id as it can be sent in an HTTP header, whatever is in it. Other ids never become the same.

    Letters, digits and `-._~:` stay, so that most ids stay as they are.
    """
    safe = quote(text, safe="-._~:", errors="surrogatepass")
    return within(safe, _MOST_HEADER_CHARS, of=text)


def within(text: str, most: int, *, of: str | None = None) -> str:
    """A text of at most so many characters: of a longer one the beginning, and a digest, so that others never become
    the same. `of` is what the text stands for, where that is another."""
    if len(text) <= most:
        return text
    source = text if of is None else of
    digest = hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{text[: most - 1 - len(digest)]}-{digest}"


_NAME = type.__dict__["__name__"]


def type_name(value: object) -> str:
    """The name of a value's class, whatever its metaclass makes of that."""
    name: str = _NAME.__get__(type(value))
    return name


def error_text(error: BaseException) -> str:
    """What an exception says, in at most 2,000 characters; its type's name where it says nothing or cannot say it.

    A group of exceptions says what the first of them says.
    """
    try:
        text = well_formed(str(error))
        if isinstance(error, BaseExceptionGroup):
            first: BaseException = error
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            text = f"{text}: {type_name(first)}: {error_text(first)}"
    except BaseException:  # `__str__` is the caller's code, too, and may even exit
        text = ""
    text = text or type_name(error)
    return text if len(text) <= _MOST_ERROR_CHARS else f"{text[: _MOST_ERROR_CHARS - 3]}..."


def _plain(value: Any, not_finite: NotFinite, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else well_formed(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return _integer(value)
    if kind is float:
        return _float(value, not_finite)
    if depth > MOST_DEEP:
        raise Refused(f"is nested deeper than {MOST_DEEP} levels, or within itself")
    if kind is dict:
        return _object(value.items(), not_finite, depth)
    if kind is list or kind is tuple:
        return _rows(value, not_finite, depth)
    return _of_other_kind(value, not_finite, depth)


def _of_other_kind(value: Any, not_finite: NotFinite, depth: int) -> Any:
    """What is no plain data, but stands for it."""
    if isinstance(value, enum.Enum):
        return _plain(value.value, not_finite, depth + 1)
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, numbers.Integral):  # numpy's integers, too
        return _integer(int(value))
    if isinstance(value, numbers.Real):
        return _float(float(value), not_finite)
    if isinstance(value, _WRITTEN_AS_TEXT):
        return msgspec.to_builtins(value)
    if isinstance(value, PurePath):
        return well_formed(str(value))
    if isinstance(value, Mapping):
        return _object(value.items(), not_finite, depth)
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return _object(((name, item) for name, item in fields if item is not msgspec.UNSET), not_finite, depth)
    if not isinstance(value, type | bytes | bytearray | memoryview):
        if hasattr(value, "model_dump"):  # pydantic, without importing it
            return _plain(_dumped(value), not_finite, depth + 1)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return _object(((name, getattr(value, name)) for name in names), not_finite, depth)
        if callable(to_list := getattr(value, "tolist", None)) and type(found := to_list()) is not type(value):
            return _plain(found, not_finite, depth + 1)  # numpy's and torch's arrays and scalars
        if isinstance(value, _ROWS):
            return _rows(value, not_finite, depth)
    raise Refused(f"is of type {type_name(value)}")


def _dumped(model: Any) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception:  # what pydantic cannot write, we may
        return model.model_dump()


def _object(items: Any, not_finite: NotFinite, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in items:
        name = _key(key)
        if name in out:
            raise Refused(f"has two keys that are {name[:80]!r} as text")
        try:
            out[name] = _plain(item, not_finite, depth + 1)
        except Refused as refused:
            raise refused.within(name) from None
    return out


def _rows(items: Any, not_finite: NotFinite, depth: int) -> list[Any]:
    out: list[Any] = []
    for item in items:
        try:
            out.append(_plain(item, not_finite, depth + 1))
        except Refused as refused:
            raise refused.within(len(out)) from None
    return out


def _key(key: object) -> str:
    if isinstance(key, str):
        return well_formed(key.value if isinstance(key, enum.Enum) else key)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]  # as Python's json does
    if isinstance(key, int | float):
        return str(key)
    raise Refused(f"has a key of type {type_name(key)}")


def _integer(value: int) -> int:
    if value.bit_length() > _MOST_BITS:
        raise Refused(f"is an integer of {value.bit_length()} bits: more digits than JSON's readers take")
    return value


def _float(value: float, not_finite: NotFinite) -> float | None:
    if math.isfinite(value):
        return value
    if not_finite != "refuse":
        return None if not_finite == "null" else value
    raise Refused(f"is {value}, which JSON does not have")
