"""The contract's "Serialization" and "Typed payloads": what leaves is valid JSON, what comes in is a value or a 400."""

import dataclasses
import datetime as dt
import decimal
import enum
import gc
import json
import logging
import math
import string
import uuid
import weakref
import zoneinfo
from collections import UserString
from collections.abc import Callable, Hashable, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, NotRequired, Self, TypedDict
from unittest.mock import MagicMock

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from litestar_agentcore.protocol import fallback_encoder
from litestar_agentcore.protocol.models import PingStatus, Refusal
from litestar_agentcore.protocol.serialization import (
    decode_body,
    encode,
    encode_document,
    encode_events,
    payload_decoder,
)

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SECRET = "hunter2"
SURROGATE = "\ud800"
DEPTH = 100_000


class AskStruct(msgspec.Struct):
    prompt: str
    limit: int = 3


@dataclasses.dataclass
class AskDataclass:
    prompt: str
    limit: int = 3


class AskTypedDict(TypedDict):
    prompt: str
    limit: NotRequired[int]


@attrs.define
class AskAttrs:
    prompt: str
    limit: int = 3


class AskModel(pydantic.BaseModel):
    prompt: str
    limit: int = 3


TYPED = [AskStruct, AskDataclass, AskTypedDict, AskAttrs, AskModel]


class FrozenModel(pydantic.BaseModel, frozen=True):
    prompt: str


class StrictModel(pydantic.BaseModel, strict=True):
    id: uuid.UUID
    day: dt.date
    tags: set[str]
    steps: tuple[int, ...]


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Wrapped(msgspec.Struct):
    ask: AskModel
    more: list[AskModel] = []


@dataclasses.dataclass
class Holder:
    held: Any = None


class HolderStruct(msgspec.Struct):
    held: Any = None


@attrs.define
class HolderAttrs:
    held: Any = None


class Dumped:
    """Has a ``model_dump()``, as pydantic's models do."""

    def __init__(self, dump: Any) -> None:
        self.dump = dump

    def model_dump(self) -> Any:
        return self.dump


class EndlessDump:
    def model_dump(self) -> Any:
        return EndlessDump()


class RaisingDump:
    def model_dump(self) -> NoReturn:
        raise ValueError(SECRET)


class Spoken:
    """Is nothing but its ``str()``."""

    def __init__(self, text: Any) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text  # type: ignore[no-any-return]


class RaisingStr:
    def __str__(self) -> NoReturn:
        raise ValueError(SECRET)


class RaisingAttributes:
    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(SECRET)

    def __str__(self) -> str:
        return "mute"


class Proxy:
    """Claims to be a string, as the lazy proxies of web frameworks do."""

    __class__ = property(lambda self: str)

    def __str__(self) -> str:
        return "proxied"


class Stubborn(int):
    """Does not let itself be converted."""

    def __int__(self) -> NoReturn:
        raise ValueError(SECRET)


class EqualToAll(type):
    """Makes classes that cannot be hashed."""

    def __eq__(cls, other: object) -> bool:
        return True


class Unhashable(metaclass=EqualToAll):
    def __str__(self) -> str:
        return "unhashable"


class Colour(enum.Enum):
    RED = "red"
    MIXED = (1, 2)
    NONE = None


class Level(enum.IntEnum):
    HIGH = 3


class Unknown:
    """Is of a type that no encoder has a JSON form for, and has no text of its own."""


class RaisingZone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> NoReturn:
        raise ValueError(SECRET)

    dst = tzname = utcoffset


def without_field(value: Any) -> Any:
    del value.prompt
    return value


class NamesAllAttributes:
    """Answers for every attribute, as careless proxies do."""

    def __getattr__(self, name: str) -> str:
        return name

    def __str__(self) -> str:
        return "named"


class Forwarding:
    """A proxy of a dataclass."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


@dataclasses.dataclass
class Result:
    """Has fields and a text, as the results of agent frameworks do."""

    text: str = "done"
    details: Any = None

    def __str__(self) -> str:
        return self.text


class ResultOfFramework(Result):
    """Inherits its text."""


class ResultStruct(msgspec.Struct):
    text: str = "done"
    details: Any = None

    def __str__(self) -> str:
        return self.text


@attrs.define
class ResultAttrs:
    text: str = "done"
    details: Any = None

    def __str__(self) -> str:
        return self.text


class ResultDict(dict[str, Any]):
    def __str__(self) -> str:
        return str(self["text"])


class DumpedResult(Dumped):
    def __str__(self) -> str:
        return "not asked for"


@dataclasses.dataclass
class FailedResult(Exception):
    """Has the text of ``Exception``, which is not the author's."""

    details: Any = None


class NumpyInteger:
    def __index__(self) -> int:
        return 5

    def __float__(self) -> float:
        return 5.0

    def item(self) -> int:
        return 5

    def __str__(self) -> str:
        return "5"


class NumpyFloat:
    def __init__(self, number: float = 0.5) -> None:
        self.number = number

    def __float__(self) -> float:
        return self.number

    def item(self) -> float:
        return self.number

    def __str__(self) -> str:
        return "a float"


class NumpyBool:
    def __float__(self) -> float:
        return 1.0

    def item(self) -> bool:
        return True

    def __str__(self) -> str:
        return "True"


class NumpyLongDouble:
    def __float__(self) -> float:
        return 0.5

    def item(self) -> Self:
        return self

    def __str__(self) -> str:
        return "0.5"


class OnlyFloat:
    def __float__(self) -> float:
        return 0.5


class OnlyIndex:
    def __index__(self) -> int:
        return 5


class NumpyDate:
    """Its item is a number of nanoseconds."""

    def __float__(self) -> float:
        return 1.7e18

    def item(self) -> int:
        return 1_704_067_200_000_000_001

    def __str__(self) -> str:
        return "2024-01-01T00:00:00.000000001"


class NumpyArray:
    def __len__(self) -> int:
        return 1

    def __index__(self) -> int:
        return 5

    def item(self) -> int:
        return 5

    def __str__(self) -> str:
        return "[5]"


class Money:
    def __float__(self) -> float:
        return 3.0

    def __str__(self) -> str:
        return "EUR 3.00"


class Address:
    def __index__(self) -> int:
        return 0x7F000001

    def __str__(self) -> str:
        return "127.0.0.1"


class Unconvertible:
    def __index__(self) -> NoReturn:
        raise TypeError(SECRET)

    def __repr__(self) -> str:
        return "a symbol"


class Renamed(msgspec.Struct, omit_defaults=True, rename="camel", tag_field="kind", tag="renamed"):
    """Its defaults are left out."""

    first_held: Any
    limit: int = 3
    text: str = "text"
    items: list[Any] = []
    table: dict[str, Any] = {}
    members: set[Any] = msgspec.field(default_factory=set)
    made: tuple[Any, ...] = msgspec.field(default_factory=tuple)
    absent: Any = msgspec.UNSET


class KeywordOnly(msgspec.Struct, kw_only=True, omit_defaults=True):
    first: Any = 1
    held: Any
    last: Any = None


class Tagged(msgspec.Struct, array_like=True, tag=7):
    held: Any
    last: Any = msgspec.UNSET


class Untagged(msgspec.Struct, array_like=True, omit_defaults=True):
    held: Any
    last: int = 3


@dataclasses.dataclass
class Slotted:
    __slots__ = ("_private", "held")
    held: Any
    _private: Any


@dataclasses.dataclass
class WithoutSome:
    """Has fields that are no values of its instances, and one that cannot be read."""

    held: Any
    kept: Any = 2
    shared: ClassVar[int] = 1
    initial: dataclasses.InitVar[int] = 4

    def __post_init__(self, initial: int) -> None:
        del self.kept  # the class has a default of the same name
        self.extra = initial


@dataclasses.dataclass
class Unreadable:
    held: Any

    @property  # type: ignore[no-redef]
    def held(self) -> NoReturn:
        raise RuntimeError(SECRET)

    @held.setter
    def held(self, value: Any) -> None:
        pass


@dataclasses.dataclass
class Reading:
    """Reads its attributes in a way of its own."""

    held: Any
    shared: ClassVar[int] = 1

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


@attrs.define(slots=False)
class OpenAttrs:
    held: Any
    _private: Any = 1
    absent: Any = msgspec.UNSET

    def __attrs_post_init__(self) -> None:
        self.extra = 2


@attrs.define
class SlottedAttrs(HolderAttrs):
    more: Any = 1
    _private: Any = 1


class Point(NamedTuple):
    x: Any
    y: Any = 2


class ReversedList(list[Any]):
    """Iterates in a way of its own."""

    def __iter__(self) -> Iterator[Any]:
        return reversed(self)


class CountingDict(dict[Any, Any]):
    def items(self) -> Any:
        return enumerate(self)


def not_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def loads(encoded: bytes) -> Any:
    return json.loads(encoded.decode(), parse_constant=not_json)


def refusal_of(body: bytes, annotation: Any = Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode_as(annotation, body)
    return caught.value


def decode_as(annotation: Any, body: bytes) -> Any:
    decode = payload_decoder(annotation)
    return decode_body(body) if decode is None else decode_body(body, decode)


texts = st.text(st.characters(exclude_categories=[])) | st.text(st.sampled_from(["\ud800", "\udfff", "\n", "\r", "\0"]))
hashable_leaves: st.SearchStrategy[Hashable] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.binary(),
    st.complex_numbers(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(dt.UTC)),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([*Colour, *PingStatus]),
    st.builds(Spoken, texts | st.none()),
    st.builds(FrozenModel, prompt=texts),
    st.sampled_from([int, FrozenModel, len, ..., NotImplemented, msgspec.UNSET]),
    st.builds(RaisingStr),
)
keys: st.SearchStrategy[Hashable] = st.deferred(
    lambda: hashable_leaves | st.tuples(hashable_leaves, hashable_leaves) | st.frozensets(hashable_leaves, max_size=2)
)
leaves: st.SearchStrategy[Any] = hashable_leaves | st.one_of(
    st.integers(min_value=0, max_value=4000).map(lambda digits: 10**digits),
    st.binary().map(bytearray),
    st.builds(RaisingDump),
    st.builds(RaisingAttributes),
    st.builds(NamesAllAttributes),
    st.builds(Proxy),
    st.builds(Unhashable),
    st.builds(Unknown),
    st.builds(NumpyFloat, st.floats()),
    st.builds(NumpyArray),
    st.binary().map(lambda octets: memoryview(octets)[::2]),
)
anything: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.sets(keys, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.builds(Holder, inner),
        st.builds(HolderStruct, inner),
        st.builds(HolderAttrs, inner),
        st.builds(Dumped, inner),
        st.builds(SimpleNamespace, held=inner),
        st.builds(Result, details=inner),
        st.builds(Renamed, inner, absent=inner),
        st.builds(Forwarding, st.builds(Holder, inner)),
    ),
    max_leaves=12,
)
supported_keys: st.SearchStrategy[Hashable] = st.one_of(
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(timezones=st.none() | st.just(dt.UTC)),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([Colour.RED, Level.HIGH, *PingStatus]),
)
supported: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        supported_keys,
        st.none(),
        st.booleans(),
        st.binary().map(bytearray),
        st.binary().map(lambda octets: memoryview(octets)),
        st.datetimes(timezones=st.timezones(), min_value=dt.datetime(1980, 1, 1)),
        st.just(msgspec.Raw(b'{ "token": 1 }')),
        st.sampled_from(Colour),
    ),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(ReversedList),
        st.tuples(inner, inner),
        inner.map(Point),
        st.sets(supported_keys, max_size=3),
        st.frozensets(supported_keys, max_size=3),
        st.dictionaries(supported_keys, inner, max_size=3),
        st.dictionaries(supported_keys, inner, max_size=3).map(CountingDict),
        st.builds(Holder, inner),
        st.builds(Result, details=inner),
        inner.map(WithoutSome),
        st.builds(Reading, inner),
        st.builds(Slotted, inner, inner),
        st.just(Unreadable(1)),
        st.builds(HolderStruct, inner | st.just(msgspec.UNSET)),
        st.builds(
            Renamed,
            inner,
            limit=st.sampled_from([3, 4]),
            text=st.sampled_from(["text", "other"]),
            items=st.lists(inner, max_size=1),
            table=st.dictionaries(st.text(), inner, max_size=1),
            members=st.sets(st.integers(), max_size=1),
            made=st.lists(inner, max_size=1).map(tuple),
            absent=inner | st.just(msgspec.UNSET),
        ),
        st.builds(Renamed, inner, items=st.just(ReversedList())),
        st.builds(KeywordOnly, first=inner | st.just(1), held=inner, last=inner),
        st.builds(Tagged, inner, inner),
        st.builds(Untagged, inner),
        st.builds(HolderAttrs, inner | st.just(msgspec.UNSET)),
        st.builds(OpenAttrs, inner, inner),
        st.builds(SlottedAttrs, inner, inner, inner),
    ),
    max_leaves=12,
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@patiently
@given(anything)
def test_whatever_the_value_what_leaves_is_valid_json_in_utf8(value: Any) -> None:
    loads(encode(value))


@pytest.mark.parametrize(
    "value",
    [10**5000, [10**5000], {10**5000: 1}, {"a": SURROGATE, 10**5000: 1}],
    ids=["bare", "item", "key", "key with surrogate"],
)
def test_an_integer_that_python_will_not_print_leaves_as_valid_json(value: Any) -> None:
    loads(encode(value))


@patiently
@given(json_values)
def test_what_json_can_say_comes_back_equal(value: Any) -> None:
    assert loads(encode(value)) == value


def encode_as_event(value: object) -> bytes:
    return encode_events([encode_document(value)])


@patiently
@given(anything)
def test_an_event_is_one_data_line_and_a_blank_line_whatever_the_value(value: Any) -> None:
    event = encode_as_event(value)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert len(event[:-2].splitlines()) == 1
    loads(event.removeprefix(b"data: "))


@patiently
@given(anything)
def test_answers_and_events_are_encoded_alike(value: Any) -> None:
    assert encode_as_event(value) == b"data: " + encode(value) + b"\n\n"


def in_steps(value: Any) -> Any:
    """What a value becomes where msgspec is not given it, or anything around it, as a whole."""
    [[[[found, _]]]] = loads(encode([[[[value, SURROGATE]]]]))
    return found


@patiently
@given(supported)
def test_a_value_that_msgspec_encodes_means_the_same_beside_one_that_it_does_not(value: Any) -> None:
    plain = loads(msgspec.json.encode(value))
    assert loads(encode(value)) == plain
    assert in_steps(value) == plain


@patiently
@given(st.lists(anything, min_size=1, max_size=5))
def test_events_that_are_sent_together_are_the_same_as_one_by_one(values: list[Any]) -> None:
    documents = [encode_document(value) for value in values]
    assert encode_events(documents) == b"".join(encode_events([document]) for document in documents)


def test_an_event_with_json_that_was_encoded_before_is_still_one_data_line() -> None:
    pretty = msgspec.Raw(b'{\n  "token": "hi"\n}')
    event = encode_as_event({"chunk": pretty})
    assert event.count(b"\n") == 2
    assert loads(event.removeprefix(b"data: ")) == {"chunk": {"token": "hi"}}


def test_non_ascii_characters_leave_as_themselves() -> None:
    assert encode({"grüße": "日本 🙂"}) == '{"grüße":"日本 🙂"}'.encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (AskStruct("hi"), {"prompt": "hi", "limit": 3}),
        (AskDataclass("hi"), {"prompt": "hi", "limit": 3}),
        (AskAttrs("hi"), {"prompt": "hi", "limit": 3}),
        (PingStatus.HEALTHY_BUSY, "HealthyBusy"),
        (Colour.RED, "red"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC), "2024-02-29T12:00:00Z"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        ({1}, [1]),
        (frozenset({1}), [1]),
        ((1, 2), [1, 2]),
        (b"\x00\xff", "AP8="),
        (2**200, 2**200),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_msgspec_knows_is_encoded_as_msgspec_does(value: Any, expected: Any) -> None:
    assert loads(encode([value])) == [expected]


def test_an_object_with_model_dump_is_dumped_where_it_stands() -> None:
    assert loads(encode({"ask": AskModel(prompt="hi")})) == {"ask": {"prompt": "hi", "limit": 3}}
    assert loads(encode([Dumped({"inner": Dumped([1])})])) == [{"inner": [1]}]


def test_any_other_object_becomes_its_str_where_it_stands() -> None:
    assert loads(encode({"odd": Spoken("said"), "even": [1]})) == {"odd": "said", "even": [1]}


def test_a_class_with_model_dump_is_not_dumped_but_becomes_its_str() -> None:
    assert loads(encode([AskModel])) == [str(AskModel)]


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (RaisingStr(), {"error": "Serialization failed", "original_type": "RaisingStr"}),
        (RaisingDump(), {"error": "Serialization failed", "original_type": "RaisingDump"}),
        (RaisingAttributes(), "mute"),
        (Spoken(5), {"error": "Serialization failed", "original_type": "Spoken"}),
        (Colour.MIXED, [1, 2]),
        (Proxy(), "proxied"),
        (Unhashable(), "unhashable"),
        (Stubborn(7), 7),
        (msgspec.Raw(b'{"token":"hi"}'), {"token": "hi"}),
        (float("nan"), None),
        (SURROGATE, "\ufffd"),
        (10**5000, {"error": "Serialization failed", "original_type": "int"}),
        (memoryview(b"abcd")[::2], {"error": "Serialization failed", "original_type": "memoryview"}),
        (without_field(AskStruct("hi")), {"error": "Serialization failed", "original_type": "AskStruct"}),
        (
            dt.datetime(2024, 2, 29, tzinfo=RaisingZone()),
            {"error": "Serialization failed", "original_type": "datetime"},
        ),
        (NamesAllAttributes(), "named"),
        (MagicMock(__str__=lambda self: "mocked"), "mocked"),
        (without_field(AskAttrs("hi")), {"limit": 3}),
        (Unreadable(1), {}),
    ],
    ids=[
        "str that raises",
        "model_dump that raises",
        "attributes that raise",
        "str that is none",
        "enum member without a scalar value",
        "proxy of a string",
        "instance of an unhashable class",
        "number that cannot be converted",
        "JSON that was encoded before",
        "NaN",
        "unpaired surrogate",
        "integer that Python does not print",
        "strided memoryview",
        "struct without a field",
        "time zone that raises",
        "every attribute",
        "mock",
        "attrs instance without a field",
        "field that cannot be read",
    ],
)
@pytest.mark.parametrize(
    ("neighbour", "neighbour_expected"), [(42, 42), (SURROGATE, "\ufffd")], ids=["", "beside an unpaired surrogate"]
)
def test_an_odd_leaf_costs_that_leaf_alone(odd: Any, expected: Any, neighbour: Any, neighbour_expected: Any) -> None:
    assert loads(encode({"odd": odd, "answer": neighbour})) == {"odd": expected, "answer": neighbour_expected}
    assert loads(encode([[[{"odd": odd, "answer": neighbour}]]])) == [
        [[{"odd": expected, "answer": neighbour_expected}]]
    ]


@patiently
@given(anything)
def test_an_unpaired_surrogate_leaves_the_rest_as_it_is(value: Any) -> None:
    alone = loads(encode([value]))
    assume(isinstance(alone, list))
    assert loads(encode([value, SURROGATE])) == [*alone, "\ufffd"]
    assert in_steps(value) == alone[0]


@pytest.mark.parametrize("depth", [100, 900])
def test_an_unpaired_surrogate_may_stand_as_deep_as_any_value(depth: int) -> None:
    value = loads(encode(nested(lambda inner: {"a": [inner]}, depth // 2, SURROGATE)))
    for _ in range(depth // 2):
        value = value["a"][0]
    assert value == "\ufffd"


@pytest.mark.parametrize("kind", [Result, ResultOfFramework, ResultStruct, ResultAttrs])
@pytest.mark.parametrize(
    "details",
    [
        Unknown(),
        [Unknown()],
        {"traces": ({"trace": Unknown()},)},
        Holder([Unknown()]),
        HolderStruct(Unknown()),
        Dumped({"trace": Unknown()}),
        {Unknown(): 1},
        {1: [SURROGATE, Spoken("of its own")]},
        RaisingStr(),
    ],
    ids=lambda details: type(details).__name__,
)
def test_an_object_with_a_text_becomes_it_where_it_holds_what_has_no_json_form(kind: Any, details: Any) -> None:
    assert loads(encode(kind("sunny", details))) == "sunny"
    assert loads(encode({"answer": kind("sunny", details), "tokens": 3})) == {"answer": "sunny", "tokens": 3}
    assert in_steps(kind("sunny", details)) == "sunny"
    assert in_steps(kind("sunny \ud800", details)) == "sunny \ufffd"


@pytest.mark.parametrize("kind", [Result, ResultOfFramework, ResultStruct, ResultAttrs])
@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([1, {"a": dt.date(2024, 2, 29)}], [1, {"a": "2024-02-29"}]),
        ({1, 2}, [1, 2]),
        (AskModel(prompt="hi"), {"prompt": "hi", "limit": 3}),
        (NumpyInteger(), 5),
        (10**5000, {"error": "Serialization failed", "original_type": "int"}),
        (RaisingDump(), {"error": "Serialization failed", "original_type": "RaisingDump"}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        (SURROGATE, "\ufffd"),
    ],
    ids=lambda details: type(details).__name__,
)
def test_an_object_with_a_text_keeps_its_fields_where_each_type_has_a_json_form(
    kind: Any, details: Any, expected: Any
) -> None:
    assert loads(encode(kind("sunny", details))) == {"text": "sunny", "details": expected}
    assert in_steps(kind("sunny", details)) == {"text": "sunny", "details": expected}


def test_a_container_with_a_text_becomes_it_like_any_object() -> None:
    assert loads(encode([ResultDict(text="sunny", details=Unknown()), 1])) == ["sunny", 1]


def test_of_objects_with_a_text_the_innermost_becomes_it() -> None:
    value = [Result("outer", {"inner": [Result("inner", [Unknown()]), 1]}), 2]
    assert loads(encode(value)) == [{"text": "outer", "details": {"inner": ["inner", 1]}}, 2]


def test_an_object_with_a_text_that_raises_costs_that_object_alone() -> None:
    assert loads(encode([Result(None, Unknown()), 1])) == [  # type: ignore[arg-type]
        {"error": "Serialization failed", "original_type": "Result"},
        1,
    ]


def test_a_text_that_is_not_the_authors_own_and_one_beside_model_dump_are_not_used() -> None:
    class Trace(Unknown):
        def __repr__(self) -> str:
            return "a trace"

    assert loads(encode(FailedResult(Trace()))) == {"details": "a trace"}
    assert loads(encode(Holder(Trace()))) == {"held": "a trace"}
    assert loads(encode(DumpedResult([Trace()]))) == ["a trace"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NumpyInteger(), 5),
        (NumpyFloat(), 0.5),
        (NumpyFloat(float("nan")), None),
        (NumpyBool(), True),
        (NumpyLongDouble(), 0.5),
        (OnlyIndex(), 5),
        (OnlyFloat(), 0.5),
        (Fraction(1, 2), 0.5),
        (NumpyDate(), "2024-01-01T00:00:00.000000001"),
        (NumpyArray(), "[5]"),
        (Money(), "EUR 3.00"),
        (Address(), "127.0.0.1"),
        (Unconvertible(), "a symbol"),
        (UserString("7"), "7"),
        (Fraction(10**400), str(10**400)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_stands_for_a_number_is_one_and_nothing_else_is(value: Any, expected: Any) -> None:
    assert encode([value]) == encode([expected])
    assert encode({"a": [value]}) == encode({"a": [expected]})
    assert in_steps(value) == expected


@pytest.mark.parametrize(
    ("key", "expected"), [(NumpyInteger(), "5"), (NumpyFloat(), "0.5"), (NumpyBool(), "true"), (NumpyDate(), None)]
)
def test_a_key_that_stands_for_a_number_becomes_its_digits(key: Any, expected: str | None) -> None:
    assert loads(encode({key: 1})) == {expected or str(key): 1}
    assert in_steps({key: 1}) == {expected or str(key): 1}


zones_with_seconds = st.integers(min_value=31, max_value=86_370).flatmap(
    lambda seconds: st.sampled_from([1, -1]).map(lambda sign: dt.timezone(dt.timedelta(seconds=sign * seconds)))
)


@patiently
@example(dt.datetime(1900, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Amsterdam")))
@example(dt.datetime(1880, 1, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York")))
@example(dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=1172))))
@given(st.datetimes(timezones=zones_with_seconds))
def test_a_date_and_time_is_the_same_instant_whatever_its_utc_offset(moment: dt.datetime) -> None:
    for encoded in (loads(encode({"at": moment}))["at"], in_steps(moment), *loads(encode({moment: 1}))):
        assert dt.datetime.fromisoformat(encoded) == moment


def test_a_date_and_time_whose_utc_offset_has_seconds_is_sent_in_utc() -> None:
    moment = dt.datetime(1900, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=19 * 60 + 32)))
    assert loads(encode({"at": moment})) == {"at": "1899-12-31T23:40:28Z"}
    assert loads(encode(moment)) == "1899-12-31T23:40:28Z"


@pytest.mark.parametrize("text", ["2024-02-29T12:00:00+02:00", "T12:00:00-01:00", "From T12:00:00+00:00"])
def test_a_text_that_looks_like_a_date_and_time_stays_as_it_is(text: str) -> None:
    assert loads(encode([text, {"text": text}])) == [text, {"text": text}]


def enum_member() -> Any:
    class Made(enum.Enum):
        ONE = (1, 2)

    return Made.ONE


CLASS_MAKERS: dict[str, Callable[[], Any]] = {
    "dataclass": lambda: dataclasses.make_dataclass("Made", ["held"])(1),
    "struct": lambda: msgspec.defstruct("Made", ["held"])(1),
    "attrs": lambda: attrs.make_class("Made", ["held"])(1),
    "pydantic": lambda: pydantic.create_model("Made", held=(int, 1))(),
    "enum": enum_member,
    "unknown": lambda: type("Made", (), {})(),
    "number": lambda: type("Made", (Fraction,), {})(1, 2),
}


@pytest.mark.parametrize("make", CLASS_MAKERS.values(), ids=CLASS_MAKERS)
def test_a_class_is_freed_after_its_instance_was_encoded(make: Callable[[], Any]) -> None:
    classes = []
    for _ in range(10):
        value = make()
        encode(value)
        in_steps([value])
        classes.append(weakref.ref(type(value)))
    del value
    gc.collect()
    assert sum(found() is not None for found in classes) == 0


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (1, "1"),
        (-(2**70), str(-(2**70))),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        (b"x", "eA=="),
        ((1, 2), "(1, 2)"),
        (frozenset({1}), "frozenset({1})"),
        (PingStatus.HEALTHY, "Healthy"),
        (Colour.MIXED, "(1, 2)"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (decimal.Decimal("1.10"), "1.10"),
        (Spoken("said"), "said"),
        (SURROGATE, "\ufffd"),
        (10**5000, '{"error":"Serialization failed","original_type":"int"}'),
        (RaisingStr(), '{"error":"Serialization failed","original_type":"RaisingStr"}'),
    ],
    ids=lambda key: type(key).__name__,
)
@pytest.mark.parametrize("neighbour", ["plain", SURROGATE], ids=["", "beside an unpaired surrogate"])
def test_keys_become_strings(key: Hashable, expected: str, neighbour: str) -> None:
    assert list(loads(encode({key: neighbour}))) == [expected]


@patiently
@given(keys)
def test_any_key_that_a_dict_can_have_becomes_one_string(key: Hashable) -> None:
    assert list(loads(encode({key: 42})).values()) == [42]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("neighbour", ["plain", SURROGATE], ids=["", "beside an unpaired surrogate"])
def test_nan_and_infinities_become_null(number: float, neighbour: str) -> None:
    assert loads(encode([number, {"x": number}, HolderStruct(number), neighbour]))[:3] == [
        None,
        {"x": None},
        {"held": None},
    ]


def cyclic(container: Any, put: Any) -> Any:
    put(container, container)
    return container


def nested(wrap: Any, depth: int = DEPTH, value: Any = 1) -> Any:
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (cyclic([], list.append), "list"),
        (cyclic({}, lambda held, itself: held.update(me=itself)), "dict"),
        (cyclic(Holder(), lambda held, itself: setattr(held, "held", [itself])), "Holder"),
        (cyclic(HolderStruct(), lambda held, itself: setattr(held, "held", itself)), "HolderStruct"),
        (cyclic(HolderAttrs(), lambda held, itself: setattr(held, "held", (itself,))), "HolderAttrs"),
        (cyclic(Dumped(None), lambda held, itself: setattr(held, "dump", {"me": itself})), "Dumped"),
        (EndlessDump(), "EndlessDump"),
        (nested(lambda inner: [inner]), "list"),
        (nested(lambda inner: {"a": inner}), "dict"),
        (nested(lambda inner: (inner, SURROGATE)), "tuple"),
        (nested(HolderStruct), "HolderStruct"),
        (nested(Dumped), "Dumped"),
    ],
    ids=[
        *("cyclic list", "cyclic dict", "cyclic dataclass", "cyclic struct", "cyclic attrs", "cyclic dump"),
        *("endless dump", "deep list", "deep dict", "deep tuple", "deep struct", "deep dump"),
    ],
)
def test_a_cycle_or_too_deep_nesting_is_answered_with_the_documented_error(value: Any, name: str) -> None:
    assert loads(encode(value)) == {"error": "Serialization failed", "original_type": name}


def test_an_event_whose_value_cannot_be_encoded_says_so() -> None:
    event = encode_as_event(cyclic([], list.append))
    assert event == b'data: {"error":"Serialization failed","original_type":"list"}\n\n'


@pytest.mark.parametrize(
    "value",
    [
        Spoken(SECRET),
        Dumped(SECRET),
        RaisingStr(),
        RaisingDump(),
        [RaisingAttributes()],
        {RaisingStr(): SECRET},
        cyclic([SECRET], list.append),
        [10**9000, SECRET],
        [SURROGATE, SECRET],
    ],
)
def test_log_lines_of_the_encoder_never_hold_the_value(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    encode(value)
    assert SECRET not in caplog.text


def test_an_object_that_becomes_its_str_is_named_in_the_log_once_for_its_type(caplog: pytest.LogCaptureFixture) -> None:
    class Unheard:
        pass

    encode([Unheard(), Unheard()])
    encode(Unheard())
    assert ["Unheard" in message for message in caplog.messages] == [True]


def test_the_log_names_no_end_of_types(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback_encoder, "MAX_WARNED_TYPES", 2)
    monkeypatch.setattr(fallback_encoder, "_warned_types", set())
    for name in "ABC":
        encode(type(name, (), {})())
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'\xef\xbb\xbf{"prompt": "gr\xc3\xbc\xc3\x9fe"}', {"prompt": "grüße"}),
        *(('{"prompt": "grüße"}'.encode(encoding), {"prompt": "grüße"}) for encoding in ("utf-16", "utf-16-le")),
        *(('{"prompt": "grüße"}'.encode(encoding), {"prompt": "grüße"}) for encoding in ("utf-32", "utf-32-be")),
        (b"[NaN, Infinity, -Infinity]", [math.nan, math.inf, -math.inf]),
        (b"[1e400, -1e400, 1e-400]", [math.inf, -math.inf, 0.0]),
        (b'["\\ud800", "\\udfff\\ud800", "a\\ud83e"]', [SURROGATE, "\udfff\ud800", "a\ud83e"]),
        (b'{"\\ud83e": "\\ud83e\\udd8a"}', {"\ud83e": "🦊"}),
        (b'"\xed\xa0\x80"', SURROGATE),
        (b"[-0, -0.0, 1E2, 1.0, 18446744073709551616]", [0, -0.0, 100.0, 1.0, 2**64]),
        (b'{"a": 1, "b": 2, "a": 3}', {"a": 3, "b": 2}),
        (b"1\x00", 1),
    ],
    ids=lambda body: repr(body)[:20],
)
def test_without_a_type_what_json_loads_accepts_is_accepted(body: bytes, payload: Any) -> None:
    assert repr(decode_body(body)) == repr(payload)
    assert repr(decode_body(bytearray(body))) == repr(payload)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"nope",
        b"{",
        b'{"prompt": "hi"',
        b'{"prompt": "hi"} x',
        b"{'prompt': 'hi'}",
        b"[1,]",
        b"01",
        b"nan",
        b"+Infinity",
        b'"\n"',
        b'"\\x"',
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        "{'prompt'}".encode("utf-16"),
        b"1" * 5000,
        b'["\\ud800", ' + b"1" * 5000 + b"]",
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("annotation", [Any, AskStruct, AskModel])
def test_a_body_that_is_not_json_is_answered_400_invalid_json(body: bytes, annotation: Any) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, "Invalid JSON")
    assert refusal.details


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b'{"prompt": "\xff"}',
        b'{"prompt": "hi", "unknown": "\xff"}',
        b'{"prompt": 1} \xff',
        b"\xef\xbb\xbf\xff",
        '{"prompt": "grüße"}'.encode("latin-1"),
        '{"prompt": "hi"}'.encode("utf-16")[:-1],
        b"\x00\x00\x00\x00\x00",
    ],
)
@pytest.mark.parametrize("annotation", [Any, AskStruct, AskModel])
def test_a_body_that_cannot_be_decoded_is_answered_400_invalid_encoding(body: bytes, annotation: Any) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, "Invalid encoding")
    assert refusal.details


@pytest.mark.parametrize("annotation", TYPED)
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"prompt": "hi"}'.encode("utf-16"), "Invalid encoding"),
        (b'{"prompt": "\xed\xa0\x80"}', "Invalid encoding"),
        (b'\xef\xbb\xbf{"prompt": "hi"}', "Invalid JSON"),
        (b'{"prompt": "\\ud800"}', "Invalid JSON"),
    ],
    ids=["UTF-16", "surrogate in the bytes", "byte order mark", "surrogate"],
)
def test_a_typed_payload_is_json_in_utf8_without_more(annotation: Any, body: bytes, error: str) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, error)
    assert refusal.details


@pytest.mark.parametrize("annotation", [Any, dict[str, Any], AskStruct, AskModel])
@pytest.mark.parametrize("body", [b'{"a":' * DEPTH + b"1" + b"}" * DEPTH, b'{"a":' * DEPTH], ids=["closed", "open"])
def test_a_body_that_is_nested_too_deep_is_answered_400(body: bytes, annotation: Any) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, "Invalid JSON")


@pytest.mark.parametrize("annotation", [*TYPED, list[AskModel]])
@pytest.mark.parametrize("body", [b"", b'{"prompt": 1', b'{"prompt": 1} x', b"[1,]", b'{"limit": 3, "prompt"}'])
def test_a_body_that_is_not_json_is_invalid_json_even_where_it_would_not_fit(body: bytes, annotation: Any) -> None:
    assert refusal_of(body, annotation).error == "Invalid JSON"


@pytest.mark.parametrize("annotation", [AskStruct, AskDataclass, AskTypedDict, AskAttrs, Wrapped])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_the_decoder_of_a_type_does_not_take_is_invalid_json(number: str, annotation: Any) -> None:
    body = f'{{"prompt": "hi", "ask": {{"prompt": "hi"}}, "unknown": {number}}}'.encode()
    assert refusal_of(body, annotation).error == "Invalid JSON"


def test_a_pydantic_model_takes_the_numbers_that_pydantic_takes() -> None:
    class Weighted(pydantic.BaseModel):
        weight: float

    assert decode_as(Weighted, b'{"weight": Infinity, "unknown": NaN}').weight == math.inf
    assert refusal_of(b'{"weight": nan}', Weighted).error == "Invalid JSON"


def test_json_inside_a_field_that_is_malformed_is_an_invalid_payload() -> None:
    class Embedding(pydantic.BaseModel):
        inner: pydantic.Json[Any]

    refusal = refusal_of(b'{"inner": "{"}', Embedding)
    assert refusal.error == "Invalid payload"
    assert "`$.inner`" in str(refusal.details)


json_fragments = st.lists(
    st.sampled_from(
        [
            *string.digits,
            *'{}[],:"\\ue-. ',
            *(
                "null",
                "true",
                "NaN",
                "Infinity",
                '"prompt":',
                "\\ud83e",
                "\\udd8a",
                "\ud7ff",
                "\0",
                "\x1f",
                "\x80",
                "\ufeff",
            ),
        ]
    ).map(str.encode)
    | st.binary(max_size=2)
).map(b"".join)
json_numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-", "+"]),
    st.integers(min_value=0).map(str) | st.text(string.digits, min_size=1, max_size=30),
    st.just("") | st.text(string.digits, max_size=30).map(".{}".format),
    st.just("")
    | st.integers(min_value=-400, max_value=400).map("e{}".format)
    | st.sampled_from(["E+2", "e", "e-99999"]),
).map(str.encode) | st.floats().map(json.dumps).map(str.encode)
json_texts = st.one_of(
    json_fragments,
    json_fragments.map(b'"%b"'.__mod__),
    json_numbers,
    json_values.map(encode),
    json_values.map(json.dumps).flatmap(
        lambda text: st.sampled_from(["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"]).map(text.encode)
    ),
)


def outcome_of(body: bytes, annotation: Any = Any) -> Any:
    try:
        return decode_as(annotation, body)
    except Refusal as refusal:
        return refusal


def loaded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        return error


@settings(patiently, max_examples=500)
@example(b"\x00aaaa")
@given(st.binary() | json_texts)
def test_any_bytes_are_what_json_loads_makes_of_them_or_a_400_that_says_what_is_wrong(body: bytes) -> None:
    outcome, expected = outcome_of(body), loaded(body)
    if not isinstance(expected, ValueError):
        assert repr(outcome) == repr(expected)
        return
    error = "Invalid encoding" if isinstance(expected, UnicodeDecodeError) else "Invalid JSON"
    assert isinstance(outcome, Refusal)
    assert (outcome.status, outcome.error, outcome.details) == (400, error, str(expected))


@pytest.mark.parametrize("annotation", [AskStruct, AskTypedDict, AskModel, list[AskModel], Wrapped, Cat | Dog])
@patiently
@example(body=b"a\x00a\x00a")
@given(body=st.binary() | json_texts)
def test_any_bytes_are_a_typed_value_or_a_400(annotation: Any, body: bytes) -> None:
    outcome = outcome_of(body, annotation)
    if isinstance(outcome, Refusal):
        assert outcome.status == 400
        assert outcome.error in {"Invalid JSON", "Invalid encoding", "Invalid payload"}
        assert outcome.details


@patiently
@given(json_values)
def test_a_json_body_becomes_its_value(value: Any) -> None:
    assert decode_body(json.dumps(value).encode()) == value
    assert decode_body(bytearray(json.dumps(value, ensure_ascii=False).encode())) == value


@pytest.mark.parametrize("annotation", [Any, object, dict, dict[str, Any], dict[str, object]], ids=str)
@pytest.mark.parametrize("value", [{"prompt": 1}, [1], "text", None, 1.5])
def test_without_a_type_the_decoded_json_is_passed_as_it_is(annotation: Any, value: Any) -> None:
    assert payload_decoder(annotation) is None
    assert decode_body(encode(value)) == value


@pytest.mark.parametrize("annotation", [AskStruct, AskDataclass, AskAttrs, AskModel])
def test_a_typed_body_is_decoded_straight_into_its_class(annotation: Any) -> None:
    assert decode_as(annotation, b'{"prompt": "hi"}') == annotation(prompt="hi", limit=3)


def test_a_typed_dict_stays_a_dict() -> None:
    assert decode_as(AskTypedDict, b'{"prompt": "hi"}') == {"prompt": "hi"}


@pytest.mark.parametrize("annotation", [AskStruct, AskDataclass, AskTypedDict, AskAttrs])
@pytest.mark.parametrize(
    ("body", "details"),
    [
        (b'{"prompt": 1}', "Expected `str`, got `int` - at `$.prompt`"),
        (b'{"prompt": "hi", "limit": "3"}', "Expected `int`, got `str` - at `$.limit`"),
        (b"{}", "Object missing required field `prompt`"),
        (b"null", "Expected `object`, got `null`"),
    ],
)
def test_a_body_that_does_not_fit_is_answered_400_invalid_payload(annotation: Any, body: bytes, details: str) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error, refusal.details) == (400, "Invalid payload", details)


@pytest.mark.parametrize(
    ("annotation", "body", "path"),
    [
        (AskModel, b'{"prompt": 1}', "$.prompt"),
        (AskModel | None, b'{"prompt": 1}', "$.prompt"),
        (list[AskModel], b'[{"prompt": "hi"}, {"prompt": 1}]', "$[1].prompt"),
        (Wrapped, b'{"ask": {"prompt": 1}}', "$.ask.prompt"),
        (Wrapped, b'{"ask": {"prompt": "hi"}, "more": [{"prompt": 1}]}', "$.more[0].prompt"),
    ],
    ids=["model", "optional", "list", "in a struct", "in a list in a struct"],
)
def test_a_body_that_does_not_fit_a_pydantic_model_is_told_where(annotation: Any, body: bytes, path: str) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, "Invalid payload")
    assert refusal.details == f"Input should be a valid string - at `{path}`"


def test_all_that_does_not_fit_a_pydantic_model_is_told_at_once() -> None:
    refusal = refusal_of(b'{"limit": "x"}', AskModel)
    assert refusal.error == "Invalid payload"
    assert "$.prompt" in str(refusal.details)
    assert "$.limit" in str(refusal.details)


HI = AskModel(prompt="hi")


@pytest.mark.parametrize(
    ("annotation", "body", "expected"),
    [
        (list[AskModel], b'[{"prompt": "hi"}]', [HI]),
        (dict[str, AskModel], b'{"a": {"prompt": "hi"}}', {"a": HI}),
        (AskModel | None, b'{"prompt": "hi"}', HI),
        (AskModel | None, b"null", None),
        (Cat | Dog, b'{"kind": "cat", "lives": 9}', Cat(kind="cat", lives=9)),
        (Cat | Dog, b'{"kind": "dog", "tricks": []}', Dog(kind="dog", tricks=[])),
        (Cat | Dog | None, b"null", None),
        (
            Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
            b'{"kind": "dog", "tricks": ["roll"]}',
            Dog(kind="dog", tricks=["roll"]),
        ),
        (
            list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]],
            b'[{"kind": "cat", "lives": 9}]',
            [Cat(kind="cat", lives=9)],
        ),
        (Wrapped, b'{"ask": {"prompt": "hi"}, "more": [{"prompt": "hi"}]}', Wrapped(HI, [HI])),
    ],
)
def test_pydantic_models_are_decoded_wherever_they_stand(annotation: Any, body: bytes, expected: Any) -> None:
    assert decode_as(annotation, body) == expected


@pytest.mark.parametrize("body", [b'{"kind": "cow"}', b'{"kind": "cat", "lives": "many"}', b"[]"])
@pytest.mark.parametrize("annotation", [Cat | Dog, Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]])
def test_a_body_that_fits_no_model_of_a_union_is_answered_400_invalid_payload(body: bytes, annotation: Any) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, "Invalid payload")
    assert refusal.details


@pytest.mark.parametrize(
    ("annotation", "template"), [(StrictModel, "%s"), (list[StrictModel], "[%s]")], ids=["model", "list"]
)
def test_a_strict_pydantic_model_takes_what_json_has_for_its_types(annotation: Any, template: str) -> None:
    document = '{"id": "00000000-0000-0000-0000-000000000001", "day": "2024-02-29", "tags": ["a"], "steps": [1]}'
    model = StrictModel(id=uuid.UUID(int=1), day=dt.date(2024, 2, 29), tags={"a"}, steps=(1,))
    decoded = decode_as(annotation, (template % document).encode())
    assert decoded == ([model] if annotation == list[StrictModel] else model)


@pytest.mark.parametrize(
    ("annotation", "body", "expected"),
    [
        (str, b'"hi"', "hi"),
        (list[int], b"[1]", [1]),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
        (dt.date, b'"2024-02-29"', dt.date(2024, 2, 29)),
        (Literal["a", "b"], b'"b"', "b"),
        (PingStatus, b'"Healthy"', PingStatus.HEALTHY),
    ],
)
def test_any_type_that_msgspec_decodes_will_do(annotation: Any, body: bytes, expected: Any) -> None:
    assert decode_as(annotation, body) == expected


@pytest.mark.parametrize("annotation", [complex, Spoken, list[Spoken]])
def test_a_type_that_nothing_decodes_is_an_error_before_any_request(annotation: Any) -> None:
    with pytest.raises(TypeError):
        payload_decoder(annotation)


def test_the_details_of_a_refusal_reach_the_caller_and_never_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Hunted(msgspec.Struct):
        prompt: Literal["other"]

    caplog.set_level(logging.DEBUG)
    refusal = refusal_of(b'{"prompt": "hunter2"}', Hunted)
    assert SECRET in str(refusal.details)
    assert SECRET not in refusal.reason
    assert SECRET not in caplog.text
