"""The forms of a log line: JSON for machines, text for people, both with the ids of the request."""

import logging
import os
import re
import time
import traceback
from collections.abc import Callable
from typing import ClassVar, Literal, TextIO

import msgspec
from opentelemetry import trace

LogFormat = Literal["auto", "json", "text", "none"]
"""The form of a line; ``auto`` is text where the stream is a terminal, and ``none`` leaves all logging as it is."""

RequestIds = Callable[[], tuple[str | None, str | None]]
"""Returns the request id and the session id that are current where it is called."""

_encoder = msgspec.json.Encoder()

_JSON_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")
"""What JSON allows in a string as it is, and readers may take for the end of a line, or a terminal for a command."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line.

    The keys are ``timestamp`` (UTC, milliseconds), ``level``, ``message``, ``logger``, ``requestId`` and ``sessionId``
    where there is a request, ``trace_id`` and ``span_id`` where there is a span, and for an exception ``errorType``,
    ``errorMessage``, ``stackTrace`` (a list of lines) and ``location`` (``path:function:line`` of the logging call).

    Args:
        request_ids: Returns the ids of the current request; called once a record, in the context that logs.
    """

    def __init__(self, request_ids: RequestIds) -> None:
        super().__init__()
        self._request_ids = request_ids

    def format(self, record: logging.LogRecord) -> str:
        """Format a record.

        Args:
            record: What was logged.

        Returns:
            One line of JSON, without a line break.
        """
        seconds = time.gmtime(record.created)
        entry: dict[str, object] = {
            "timestamp": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "message": _message_of(record),
            "logger": record.name,
        }
        request_id, session_id = self._request_ids()
        if request_id:
            entry["requestId"] = request_id
        if session_id:
            entry["sessionId"] = session_id
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            entry["trace_id"] = trace.format_trace_id(span.trace_id)
            entry["span_id"] = trace.format_span_id(span.span_id)
        if record.exc_info and (error := record.exc_info[1]) is not None:
            entry["errorType"] = type(error).__name__
            entry["errorMessage"] = _text_of(error)
            entry["stackTrace"] = traceback.format_exception(error)
            entry["location"] = f"{record.pathname}:{record.funcName}:{record.lineno}"
        try:
            line = _encoder.encode(entry).decode()
        except UnicodeEncodeError:
            printable = {key: _printable(value) for key, value in entry.items()}
            line = _encoder.encode(printable).decode()
        return _JSON_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _message_of(record: logging.LogRecord) -> str:
    """The message, also where its arguments do not fit it: a mistake in a log call must not cost the line."""
    try:
        return record.getMessage()
    except Exception:  # whatever the arguments' own ``__str__`` raises
        return _text_of(record.msg)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # its own ``__str__``
        return f"<unprintable {type(value).__name__}>"


def _printable(value: object) -> object:
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return str(value).encode("utf-8", "backslashreplace").decode()


_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What ends a line, steers a terminal, or changes the direction of what is written after it."""


def _on_one_line(text: str) -> str:
    """Escape what could make one record look like two, or steer the terminal that it is read at."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """Formats a record for people at a terminal: time, level, logger, message, and the ids where there is a request.

    Args:
        request_ids: Returns the ids of the current request.
        coloured: Whether the level is coloured, by ANSI escapes.
    """

    _COLOURS: ClassVar = {"DEBUG": "36", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}

    def __init__(self, request_ids: RequestIds, coloured: bool) -> None:
        super().__init__()
        self._request_ids = request_ids
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Format a record.

        Args:
            record: What was logged.

        Returns:
            A line of text, and the traceback below it, indented, where there is one.
        """
        level = f"{record.levelname:<8}"
        if self._coloured and (colour := self._COLOURS.get(record.levelname)):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        request_id, session_id = self._request_ids()
        ids = [f"{name}={value}" for name, value in (("request", request_id), ("session", session_id)) if value]
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = (
            f"{clock}.{int(record.msecs):03d} {level} {_on_one_line(record.name)}: {_on_one_line(_message_of(record))}"
        )
        if ids:
            line += f"  [{_on_one_line(' '.join(ids))}]"
        if record.exc_info and (error := record.exc_info[1]) is not None:
            lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
            line += "".join(f"\n  {_on_one_line(each)}" for each in lines)
        return str(_printable(line))


def make_formatter(request_ids: RequestIds, log_format: LogFormat, stream: TextIO | None) -> logging.Formatter:
    """Make the formatter for a stream.

    Args:
        request_ids: Returns the ids of the current request.
        log_format: ``json``, ``text``, or ``auto``: text where the stream is a terminal.
        stream: Where the lines go; ``None`` where the process has no such stream.
    """
    terminal = stream is not None and stream.isatty()
    if log_format == "text" or (log_format == "auto" and terminal):
        coloured = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        return TextFormatter(request_ids, coloured)
    return JsonFormatter(request_ids)
