"""Log lines for machines: one JSON object a line, each with the ids of the request that it belongs to."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal, TextIO

import msgspec
import uvicorn.config
from opentelemetry import trace
from uvicorn.logging import ColourizedFormatter

LogFormat = Literal["auto", "json", "text"]
"""How lines are written; ``auto`` is text where the stream is a terminal."""

RequestIds = Callable[[], tuple[str | None, str | None]]
"""Tells the request id and the session id that hold where it is called, each ``None`` where there is none."""

_encoder = msgspec.json.Encoder()


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line.

    The keys are ``timestamp`` (UTC, milliseconds), ``level``, ``message``, ``logger``, ``requestId`` and ``sessionId``
    where there is a request, ``trace_id`` and ``span_id`` where there is a span, and for an exception ``errorType``,
    ``errorMessage``, ``stackTrace`` (a list of lines) and ``location`` (``path:function:line`` of the logging call).

    Args:
        request_ids: Tells the ids of the current request; called once a record, in the context that logs.
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
            return _encoder.encode(entry).decode()
        except UnicodeEncodeError:
            printable = {key: _printable(value) for key, value in entry.items()}
            return _encoder.encode(printable).decode()


def _message_of(record: logging.LogRecord) -> str:
    """The message, even where its arguments do not fit it: a slip in a log call must not cost the line."""
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


def reform_server_lines(request_ids: RequestIds, style: LogFormat = "auto") -> None:
    """Have the handlers that the ``uvicorn`` command gave its loggers write in the service's form.

    The command sets them up before it imports the app, and writes its first lines before it starts the app. Nothing
    but these handlers of uvicorn's own is touched, and not even they where the host program has set up logging.

    Args:
        request_ids: Tells the ids of the current request.
        style: ``json``, ``text``, or ``auto``: text where the handler writes to a terminal.
    """
    if logging.getLogger().handlers:
        return
    for name in ("uvicorn", "uvicorn.access"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler.formatter, ColourizedFormatter) and isinstance(handler, logging.StreamHandler):
                handler.setFormatter(_formatter(request_ids, style, handler.stream))


def server_level(level: str) -> str:
    """The level for the server's own lines: at DEBUG it would write out the headers of each WebSocket handshake.

    Args:
        level: The level that is wanted, by its name.

    Returns:
        The same, but ``INFO`` for ``DEBUG``.
    """
    return "INFO" if level == "DEBUG" else level


def _without_query(record: logging.LogRecord) -> bool:
    """Cut the query off the path of an access line: people put keys and personal data there."""
    if isinstance(record.args, tuple):
        record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
    return True


@contextmanager
def uvicorn_unconfigured() -> Iterator[None]:
    """Keep ``uvicorn.run`` from giving its loggers handlers of their own, where nobody can tell it not to."""
    configured = uvicorn.config.LOGGING_CONFIG["loggers"]
    uvicorn.config.LOGGING_CONFIG["loggers"] = {}
    try:
        yield
    finally:
        uvicorn.config.LOGGING_CONFIG["loggers"] = configured


class TextFormatter(logging.Formatter):
    """Formats a record for people at a terminal: time, level, logger, message, and the ids where there is a request.

    Args:
        request_ids: Tells the ids of the current request.
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
            A line of text, and the traceback below it where there is one.
        """
        level = f"{record.levelname:<8}"
        if self._coloured and (colour := self._COLOURS.get(record.levelname)):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        request_id, session_id = self._request_ids()
        ids = [f"{name}={value}" for name, value in (("request", request_id), ("session", session_id)) if value]
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock}.{int(record.msecs):03d} {level} {record.name}: {_message_of(record)}"
        if ids:
            line += f"  [{' '.join(ids)}]"
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line += "\n" + "".join(traceback.format_exception(error)).rstrip()
        return str(_printable(line))


def _formatter(request_ids: RequestIds, style: LogFormat, stream: TextIO) -> logging.Formatter:
    terminal = stream.isatty()
    if style == "text" or (style == "auto" and terminal):
        coloured = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        return TextFormatter(request_ids, coloured)
    return JsonFormatter(request_ids)


def configure_logging(
    request_ids: RequestIds, level: str = "INFO", stream: TextIO | None = None, style: LogFormat = "auto"
) -> bool:
    """Write the log lines of this process in one form, unless the host program has set up logging already.

    For a process that serves an agent, and does so on its own account: whoever has given the root logger a handler has
    the say, and nothing is changed. The loggers of uvicorn, which come with handlers of their own, are led to the same
    place.

    Args:
        request_ids: Tells the ids of the current request.
        level: The level from which on lines are written, by its name.
        stream: Where to write; standard error by default.
        style: ``json``, ``text``, or ``auto``: text where the stream is a terminal.

    Returns:
        True where the lines are now written by this function's handler.
    """
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if isinstance(handler.formatter, JsonFormatter | TextFormatter)]
    if root.handlers and not ours:
        return False
    if not ours:
        stream = stream or sys.stderr
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_formatter(request_ids, style, stream))
        root.addHandler(handler)
        root.setLevel(level)
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    logging.getLogger("uvicorn.error").setLevel(server_level(level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        server_logger = logging.getLogger(name)
        if server_logger.handlers:  # one without may have been silenced on purpose: ``access_log=False``
            server_logger.handlers.clear()
            server_logger.propagate = True
    return True
