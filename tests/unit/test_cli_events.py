"""What the commands make of an agent's answer: the events of a stream, however it is cut, and the text in them."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar_agentcore.cli.events import (
    NOT_JSON,
    EventStreamParser,
    ServerSentEvent,
    answer_text,
    error_of,
    event_text,
    value_of,
)

STREAM = (
    "\ufeffdata: first\r\n\r\n"
    ": keep-alive\n\n"
    "event: token\rdata:one\rdata\rdata:  two\r\r"
    "id: 7\nretry: 10\nunheard: of\n\n"
    "data: naïve 🐈 \u2028 日本\r\n\n"
    ":\r\n\r\n"
    'data: {"a": "b: c"}\n\n'
).encode()

EVENTS = [
    ServerSentEvent("first"),
    ServerSentEvent("one\n\n two", "token"),
    ServerSentEvent("naïve 🐈 \u2028 日本"),
    ServerSentEvent('{"a": "b: c"}'),
]


def parsed(*pieces: bytes) -> list[ServerSentEvent]:
    parser = EventStreamParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert parser.close() is None
    return events


def test_events_have_their_lines_names_and_characters_whatever_ends_the_lines() -> None:
    assert parsed(STREAM) == EVENTS


def test_a_stream_may_come_byte_by_byte() -> None:
    assert parsed(*(bytes([byte]) for byte in STREAM)) == EVENTS


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    edges = sorted({0, *cuts, len(STREAM)})
    assert parsed(*(STREAM[start:end] for start, end in pairwise(edges))) == EVENTS


line = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(line, st.lists(line, min_size=1))),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.integers(1, 7),
)
def test_what_was_written_is_read(written: list[tuple[str, list[str]]], end: str, size: int) -> None:
    stream = end  # lest the first line's byte order mark, which would not be the event's, matters
    for name, lines in written:
        stream += f"event: {name}{end}" + "".join(f"data: {text}{end}" for text in lines) + end
    encoded = stream.encode()
    pieces = [encoded[at : at + size] for at in range(0, len(encoded), size)]
    assert parsed(*pieces) == [ServerSentEvent("\n".join(lines), name or "message") for name, lines in written]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(), st.integers(1, 5))
def test_any_bytes_are_read_without_an_error_and_alike_in_pieces(stream: bytes, size: int) -> None:
    whole, cut = EventStreamParser(), EventStreamParser()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [event for piece in pieces for event in cut.feed(piece)] == whole.feed(stream)
    assert cut.close() == whole.close()


@pytest.mark.parametrize("rest", [b"data: bro", b"data: bro\n", b"event: x\ndata: bro\r\n"])
def test_an_event_without_its_empty_line_is_known_at_the_end(rest: bytes) -> None:
    parser = EventStreamParser()
    assert parser.feed(b"data: whole\n\n" + rest) == [ServerSentEvent("whole")]
    assert (event := parser.close()) is not None
    assert event.data == "bro"
    assert parser.close() is None


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ("hello", "hello"),
        ({"data": "hello", "delta": {"text": "other"}}, "hello"),
        ({"type": "text", "content": "hello"}, "hello"),
        ({"token": ""}, ""),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hello"}}, "hello"),
        ({"type": "response.output_text.delta", "delta": "hello"}, "hello"),
        ({"type": "TEXT_MESSAGE_CONTENT", "delta": "hello"}, "hello"),
        ({"type": "response.output_text.done", "text": "hello"}, None),
        ({"type": "response.function_call_arguments.delta", "delta": '{"city"'}, None),
        ({"type": "response.reasoning_text.delta", "delta": "hm"}, None),
        ({"type": "TOOL_CALL_ARGS", "delta": "{"}, None),
        ({"type": "reasoning-delta", "delta": "hm"}, None),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, None),
        ({"delta": {"delta": "hello"}}, None),
        ({"message": {"content": [{"text": "the whole once more"}]}}, None),
        ({"data": 3}, None),
        (3, None),
        (None, None),
        (["hello"], None),
    ],
)
def test_an_event_has_a_piece_of_the_answers_text_or_is_about_something_else(event: Any, text: str | None) -> None:
    assert event_text(event) == text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("hello", "hello"),
        ({"result": "hello"}, "hello"),
        ({"result": {"role": "assistant", "content": [{"text": "hel"}, {"toolUse": {}}, {"text": "lo"}]}}, "hello"),
        ({"output": {"message": {"content": [{"text": "hello"}]}}}, "hello"),
        ({"sum": 3}, None),
        ({"result": {"result": {"result": {"result": {"result": "too deep"}}}}}, None),
        ([], None),
        (NOT_JSON, None),
    ],
)
def test_an_answer_has_text_or_has_none(answer: Any, text: str | None) -> None:
    assert answer_text(answer) == text


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"error": "no", "error_type": "ValueError"}, "ValueError: no"),
        ({"error": "", "error_type": "ValueError"}, "ValueError: "),
        ({"error": "no"}, "no"),
        ({"error": ""}, None),
        ({"error": None}, None),
        ({"error": {"code": 3}}, None),
        ("error", None),
    ],
)
def test_an_event_may_say_that_the_stream_has_failed(event: Any, error: str | None) -> None:
    assert error_of(event) == error


def test_what_is_not_json_is_told_from_null() -> None:
    assert value_of("null") is None
    assert value_of("nul") is NOT_JSON
    assert value_of(b"\xff") is NOT_JSON
    assert value_of("[" * 100_000) is NOT_JSON
