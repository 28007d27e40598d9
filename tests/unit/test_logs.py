"""The contract's "Logs": what a line looks like, for machines and for people."""

import io
import json
import logging
import re
import time
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import pytest
from agentcore_telemetry.logs import JsonFormatter, LogFormat, make_formatter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace

EXCEPTION_KEYS = {"errorType", "errorMessage", "stackTrace", "location"}


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")


class Unspeakable:
    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")


def nowhere() -> tuple[None, None]:
    return None, None


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(output: io.StringIO) -> logging.Logger:
    """An author's logger in a process that serves an agent."""
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonFormatter(nowhere))
    logger = logging.Logger("tests.author", logging.DEBUG)
    logger.addHandler(handler)
    return logger


@pytest.fixture
def _far_from_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "FAR-09:30")
        time.tzset()
        yield
    time.tzset()


def only_line(output: io.StringIO) -> dict[str, Any]:
    written = output.getvalue()
    assert written.endswith("\n")
    assert written.count("\n") == 1
    entry: dict[str, Any] = json.loads(written)
    return entry


def test_a_line_says_when_how_bad_what_and_who(logger: logging.Logger, output: io.StringIO) -> None:
    logger.warning("%d of %s", 3, "seven")
    entry = only_line(output)
    assert entry.keys() == {"timestamp", "level", "message", "logger"}
    assert (entry["level"], entry["message"], entry["logger"]) == ("WARNING", "3 of seven", "tests.author")


def test_the_timestamp_is_utc_with_milliseconds_and_z(logger: logging.Logger, output: io.StringIO) -> None:
    before = time.time()
    logger.info("now")
    after = time.time()
    timestamp = only_line(output)["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)
    assert before - 0.001 <= datetime.fromisoformat(timestamp).timestamp() <= after


@pytest.mark.parametrize(
    ("created", "timestamp"),
    [(0.0, "1970-01-01T00:00:00.000Z"), (951782399.0625, "2000-02-28T23:59:59.062Z")],
)
@pytest.mark.usefixtures("_far_from_utc")
def test_the_timestamp_is_the_records_own_wherever_the_clock_is(created: float, timestamp: str) -> None:
    record = logging.makeLogRecord({"created": created, "msecs": created % 1 * 1000})
    assert json.loads(JsonFormatter(nowhere).format(record))["timestamp"] == timestamp


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((None, None), {}),
        (("r-1", None), {"requestId": "r-1"}),
        (("r-1", "s-1"), {"requestId": "r-1", "sessionId": "s-1"}),
    ],
)
def test_a_line_has_the_ids_of_its_request_where_there_is_one(
    ids: tuple[str | None, str | None], expected: dict[str, str]
) -> None:
    record = logging.LogRecord("name", logging.INFO, "path", 1, "message", None, None)
    entry = json.loads(JsonFormatter(lambda: ids).format(record))
    assert {key: value for key, value in entry.items() if key in {"requestId", "sessionId"}} == expected


def test_an_exception_adds_its_type_message_stack_and_place(logger: logging.Logger, output: io.StringIO) -> None:
    try:
        raise LookupError("nothing\nthere")
    except LookupError:
        logger.exception("failed")
    entry = only_line(output)
    assert entry.keys() == {"timestamp", "level", "message", "logger"} | EXCEPTION_KEYS
    assert (entry["level"], entry["message"]) == ("ERROR", "failed")
    assert (entry["errorType"], entry["errorMessage"]) == ("LookupError", "nothing\nthere")
    assert entry["stackTrace"][0].startswith("Traceback")
    assert 'raise LookupError("nothing\\nthere")' in "".join(entry["stackTrace"])
    assert entry["location"].startswith(
        f"{__file__}:{test_an_exception_adds_its_type_message_stack_and_place.__name__}:"
    )
    assert entry["location"].rpartition(":")[2].isdecimal()


def test_without_an_exception_there_is_no_word_of_one(logger: logging.Logger, output: io.StringIO) -> None:
    logger.error("failed", exc_info=True)
    assert not only_line(output).keys() & EXCEPTION_KEYS


@pytest.mark.parametrize(
    "message", ["a\nb", "a\r\nb", "\x00\x1b[31m", 'quo"te', "grüße 日本 🙂", "a\u2028b\u0085c", ""], ids=repr
)
def test_whatever_the_message_it_is_one_line(message: str, logger: logging.Logger, output: io.StringIO) -> None:
    logger.info("%s", message)
    assert only_line(output)["message"] == message


@pytest.mark.parametrize(
    ("message", "args", "expected"),
    [
        ({"a": 1}, (), "{'a': 1}"),
        (b"\xff", (), "b'\\xff'"),
        (None, (), "None"),
        (["%s"], (7,), "['7']"),
        ("%(a)s", ({"a": 1},), "1"),
    ],
)
def test_a_message_that_is_no_string_becomes_one(
    message: Any, args: tuple[Any, ...], expected: str, logger: logging.Logger, output: io.StringIO
) -> None:
    logger.info(message, *args)
    assert only_line(output)["message"] == expected


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("unpaired \ud800", ()),
        ("%s", ("\udfff",)),
        ("%d", ("seven",)),
        ("%s %s", ("one",)),
        ("none", ("one",)),
        ("%(a)s", ({"b": 1},)),
        ("%s", (Unspeakable(),)),
        (Unspeakable(), ()),
    ],
    ids=["surrogate", "surrogate arg", "wrong type", "too few", "too many", "no such key", "mute arg", "mute message"],
)
def test_an_odd_record_is_still_one_line(
    message: Any,
    args: tuple[Any, ...],
    logger: logging.Logger,
    output: io.StringIO,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger.info(message, *args)
    assert only_line(output)["level"] == "INFO"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [Mute(), ValueError("\ud800")], ids=["mute", "surrogate"])
def test_an_odd_exception_is_still_one_line(
    error: Exception, logger: logging.Logger, output: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.error("failed", exc_info=error)
    entry = only_line(output)
    assert entry["errorType"] == type(error).__name__
    assert entry.keys() >= EXCEPTION_KEYS
    assert capsys.readouterr().err == ""


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters(exclude_categories=[])), st.text())
def test_any_text_in_a_record_gives_one_line_of_json_in_utf8(message: str, error: str, name: str) -> None:
    raised = ValueError(error)
    record = logging.LogRecord(name, logging.INFO, "path", 1, "%s", (message,), (ValueError, raised, None))
    line = JsonFormatter(lambda: (name, None)).format(record)
    assert "\n" not in line
    assert json.loads(line.encode())["logger"] == name


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, log_format: LogFormat) -> str:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make_formatter(lambda: ("r-1", "s-1"), log_format, stream))
    handler.handle(logging.LogRecord("author", logging.WARNING, "path", 1, "café \udcff", None, None))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "log_format"), [(io.StringIO(), "text"), (Terminal(), "auto"), (Terminal(), "text")]
)
def test_text_is_for_people_and_has_the_ids_too(stream: io.StringIO, log_format: LogFormat) -> None:
    line = written(stream, log_format)
    assert "WARNING" in line
    assert line.endswith("author: café \\udcff  [request=r-1 session=s-1]\n")


@pytest.mark.parametrize(
    ("stream", "log_format"), [(io.StringIO(), "auto"), (io.StringIO(), "json"), (Terminal(), "json")]
)
def test_json_is_for_machines(stream: io.StringIO, log_format: LogFormat) -> None:
    assert json.loads(written(stream, log_format))["requestId"] == "r-1"


def test_a_process_without_standard_error_has_a_formatter_all_the_same() -> None:
    assert isinstance(make_formatter(nowhere, "auto", None), JsonFormatter)


def test_colours_are_for_terminals_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[33mWARNING" in written(Terminal(), "auto")
    assert "\x1b" not in written(io.StringIO(), "text")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in written(Terminal(), "auto")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in written(Terminal(), "auto")


def test_an_exception_is_written_below_its_line_for_people() -> None:
    error = ValueError("lost")
    record = logging.LogRecord("author", logging.ERROR, "path", 1, "failed", None, (ValueError, error, None))
    line = make_formatter(nowhere, "text", io.StringIO()).format(record)
    assert line.endswith("author: failed\n  ValueError: lost")


@pytest.mark.parametrize(
    "hostile",
    ["a\r\nERROR forged", "\x1b[2J\x1b]0;title\x07", "\u2028next", "nul\0", "\x9b31m", "\u202ereversed", "a" * 100_000],
)
@pytest.mark.parametrize("form", ["json", "text"])
def test_what_is_logged_stays_on_its_line_and_steers_no_terminal(form: Any, hostile: str) -> None:
    record = logging.LogRecord("author", logging.INFO, "path", 1, "said %s", (hostile,), None)
    line = make_formatter(lambda: (hostile, hostile), form, io.StringIO()).format(record)
    assert line.splitlines() == [line]
    assert not any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in line)


def test_an_exception_text_forges_no_record_for_people() -> None:
    error = ValueError("lost\n12:00:00.000 ERROR    author: forged\x1b[31m")
    record = logging.LogRecord("author", logging.ERROR, "path", 1, "failed", None, (ValueError, error, None))
    first, *rest = make_formatter(nowhere, "text", io.StringIO()).format(record).split("\n")
    assert first.endswith("author: failed")
    assert all(line.startswith("  ") and "\x1b" not in line for line in rest)


def test_a_line_has_the_ids_of_its_span_where_there_is_one(logger: logging.Logger, output: io.StringIO) -> None:
    context = trace.SpanContext(1, 2, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(context)):
        logger.info("within")
    entry = only_line(output)
    assert (entry["trace_id"], entry["span_id"]) == (f"{1:032x}", f"{2:016x}")
