"""The contract's "Serialization" and "Typed payloads": what leaves is valid JSON, what comes in is a value or a 400."""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import logging
import string
import uuid
from collections.abc import Hashable
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NoReturn, NotRequired, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
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
    st.builds(Proxy),
    st.builds(Unhashable),
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
    ],
)
@pytest.mark.parametrize(
    ("neighbour", "neighbour_expected"), [(42, 42), (SURROGATE, "\ufffd")], ids=["", "beside an unpaired surrogate"]
)
def test_an_odd_leaf_costs_that_leaf_alone(odd: Any, expected: Any, neighbour: Any, neighbour_expected: Any) -> None:
    assert loads(encode({"odd": odd, "answer": neighbour})) == {"odd": expected, "answer": neighbour_expected}


@patiently
@given(anything)
def test_an_unpaired_surrogate_leaves_the_rest_as_it_is(value: Any) -> None:
    alone = loads(encode([value]))
    assume(isinstance(alone, list))
    assert loads(encode([value, SURROGATE])) == [*alone, "\ufffd"]


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
    ],
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


def nested(wrap: Any) -> Any:
    value: Any = 1
    for _ in range(DEPTH):
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
        b"NaN",
        b"-Infinity",
        b'"\n"',
        b'"\\x"',
        b"\xef\xbb\xbf{}",
        b"\x00\x00\x00\x00\x00",
        b"\x00aaaa",
        b"a\x00a\x00a",
        '{"prompt":"hi"}'.encode("utf-16-le"),
        b'["\\ud800", ' + b"1" * 5000 + b"]",
        b"1e999",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_json_is_answered_400_invalid_json(body: bytes) -> None:
    refusal = refusal_of(body)
    assert (refusal.status, refusal.error) == (400, "Invalid JSON")
    assert refusal.details


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b'{"prompt": "\xff"}',
        b'{"prompt": "hi", "unknown": "\xff"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": 1} \xff',
        '{"prompt": "grüße"}'.encode("latin-1"),
        '{"prompt": "hi"}'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("annotation", [Any, AskStruct, AskModel])
def test_a_body_that_is_not_utf8_is_answered_400_invalid_encoding(body: bytes, annotation: Any) -> None:
    refusal = refusal_of(body, annotation)
    assert (refusal.status, refusal.error) == (400, "Invalid encoding")
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


@pytest.mark.parametrize("annotation", TYPED)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_body_with_a_number_that_json_has_no_word_for_is_invalid_json(number: str, annotation: Any) -> None:
    assert refusal_of(f'{{"prompt": "hi", "unknown": {number}}}'.encode(), annotation).error == "Invalid JSON"


json_fragments = st.lists(
    st.sampled_from([*string.digits, *'{}[],:"\\ue-. ', "null", "true", '"prompt":', "\ud7ff", "\0", "\x80"]).map(
        str.encode
    )
    | st.binary(max_size=2)
).map(b"".join)


def is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def outcome_of(body: bytes, annotation: Any = Any) -> Any:
    try:
        return decode_as(annotation, body)
    except Refusal as refusal:
        return refusal


@patiently
@example(b"\x00aaaa")
@given(st.binary() | json_fragments | json_values.map(encode))
def test_any_bytes_are_a_value_or_a_400_that_says_what_is_wrong(body: bytes) -> None:
    outcome = outcome_of(body)
    if isinstance(outcome, Refusal):
        error = "Invalid JSON" if is_utf8(body) else "Invalid encoding"
        assert (outcome.status, outcome.error) == (400, error)
        assert outcome.details
    else:
        assert outcome == json.loads(body)


@pytest.mark.parametrize("annotation", [AskStruct, AskTypedDict, AskModel, list[AskModel], Wrapped, Cat | Dog])
@patiently
@example(body=b"a\x00a\x00a")
@given(body=st.binary() | json_fragments | json_values.map(encode))
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
