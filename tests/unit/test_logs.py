"""The contract's "Logs": one JSON object a line, and a host program's logging left alone."""

import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from agentcore_telemetry.logs import JsonFormatter, LogFormat, configure_logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace

UVICORN = ["uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"]
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


@contextmanager
def fresh_logging() -> Iterator[logging.Logger]:
    """A logging tree as in a fresh process, with nothing on its root."""
    root = logging.RootLogger(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "root", root)
        patch.setattr(logging.Logger, "root", root)
        patch.setattr(logging.Logger, "manager", logging.Manager(root))
        yield root


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


def test_a_host_that_has_set_up_logging_is_left_alone(output: io.StringIO) -> None:
    with fresh_logging() as root:
        hosts = logging.StreamHandler(io.StringIO())
        root.addHandler(hosts)
        access = logging.getLogger("uvicorn.access")
        access.addHandler(hosts)
        access.propagate = False
        assert configure_logging(nowhere, "DEBUG", output) is False
        assert (root.handlers, root.level) == ([hosts], logging.WARNING)
        assert (access.handlers, access.propagate) == ([hosts], False)


def test_elsewhere_lines_are_written_as_json(output: io.StringIO) -> None:
    with fresh_logging():
        assert configure_logging(lambda: ("r-1", None), "INFO", output) is True
        logging.getLogger("an.author").info("hello")
    entry = only_line(output)
    assert (entry["logger"], entry["message"], entry["requestId"]) == ("an.author", "hello", "r-1")


def test_lines_go_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_logging():
        configure_logging(nowhere)
        logging.getLogger("an.author").info("hello")
    written = capsys.readouterr()
    assert json.loads(written.err)["message"] == "hello"
    assert written.out == ""


def test_lines_below_the_level_are_not_written(output: io.StringIO) -> None:
    with fresh_logging():
        configure_logging(nowhere, "WARNING", output)
        logging.getLogger("an.author").info("quiet")
        logging.getLogger("an.author").warning("loud")
    assert only_line(output)["message"] == "loud"


def test_the_lines_of_uvicorn_are_led_to_the_same_place(
    output: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with fresh_logging():
        for name in UVICORN:
            logging.getLogger(name).addHandler(logging.StreamHandler(sys.stderr))
            logging.getLogger(name).propagate = False
        configure_logging(nowhere, "INFO", output)
        for name in UVICORN:
            logging.getLogger(name).info("from uvicorn")
    assert [json.loads(line)["logger"] for line in output.getvalue().splitlines()] == UVICORN
    assert capsys.readouterr().err == ""


def test_configuring_twice_writes_each_line_once(output: io.StringIO) -> None:
    with fresh_logging():
        assert configure_logging(nowhere, "INFO", output) is True
        assert configure_logging(nowhere, "INFO", output) is True
        logging.getLogger("an.author").info("hello")
    assert only_line(output)["message"] == "hello"


STATE_OF_LOGGING = """
import json, logging, sys

def state():
    names = [None, "host", "uvicorn", "uvicorn.access", "litestar", "litestar_agentcore"]
    loggers = list(map(logging.getLogger, names))
    return [
        [[logger.name, logger.level, logger.propagate, logger.disabled, list(map(id, logger.handlers)),
          list(map(id, logger.filters))] for logger in loggers],
        id(logging.getLoggerClass()), id(logging.getLogRecordFactory()), id(logging.lastResort),
        logging.root.manager.disable, logging.raiseExceptions, logging.getLevelName(20),
        id(sys.excepthook), id(sys.stderr),
    ]

if configured:
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("host").addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
before = state()
import litestar_agentcore
imported = state()
litestar_agentcore.BedrockAgentCoreApp()
print(json.dumps([imported == before, state() == before]))
"""


@pytest.mark.parametrize("configured", [True, False], ids=["a host with logging", "a host without"])
def test_importing_service_or_making_an_app_changes_no_logging(configured: bool) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"configured = {configured}\n{STATE_OF_LOGGING}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(result.stdout) == [True, True]
    assert result.stderr == b""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, style: LogFormat) -> str:
    with fresh_logging() as root:
        assert configure_logging(lambda: ("r-1", "s-1"), stream=stream, style=style)
        root.getChild("author").warning("café \udcff")
    return stream.getvalue()


@pytest.mark.parametrize(("stream", "style"), [(io.StringIO(), "text"), (Terminal(), "auto"), (Terminal(), "text")])
def test_text_is_for_people_and_has_the_ids_too(stream: io.StringIO, style: LogFormat) -> None:
    line = written(stream, style)
    assert "WARNING" in line
    assert line.endswith("author: café \\udcff  [request=r-1 session=s-1]\n")


@pytest.mark.parametrize(("stream", "style"), [(io.StringIO(), "auto"), (io.StringIO(), "json"), (Terminal(), "json")])
def test_json_is_for_machines(stream: io.StringIO, style: LogFormat) -> None:
    assert json.loads(written(stream, style))["requestId"] == "r-1"


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


def test_an_exception_is_written_below_its_line_for_people(output: io.StringIO) -> None:
    with fresh_logging() as root:
        configure_logging(nowhere, stream=output, style="text")
        root.getChild("author").error("failed", exc_info=ValueError("lost"))
    assert output.getvalue().endswith("author: failed\nValueError: lost\n")


def test_a_line_has_the_ids_of_its_span_where_there_is_one(logger: logging.Logger, output: io.StringIO) -> None:
    context = trace.SpanContext(1, 2, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(context)):
        logger.info("within")
    entry = only_line(output)
    assert (entry["trace_id"], entry["span_id"]) == (f"{1:032x}", f"{2:016x}")


def test_the_query_of_a_request_is_cut_off_its_access_line(output: io.StringIO) -> None:
    with fresh_logging():
        configure_logging(nowhere, stream=output)
        configure_logging(nowhere, stream=output)
        logging.getLogger("uvicorn.access").info('%s - "%s %s" %d', "client", "GET", "/ping?key=secret", 200)
    assert only_line(output)["message"] == 'client - "GET /ping" 200'
