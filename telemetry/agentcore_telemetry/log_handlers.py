"""Where log lines go: to standard error, for a service's own loggers, the server's and, if it has none, the root's."""

import contextlib
import functools
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Iterator
from typing import TextIO
from weakref import WeakKeyDictionary

import uvicorn.config
from uvicorn.logging import ColourizedFormatter

from agentcore_telemetry.logs import LogFormat, RequestIds, make_formatter

SERVER = "uvicorn"
_SERVER_CHILDREN = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")

_CAUSES = 10
"""How many exceptions, each raised from the next, are looked at; they may be a circle."""

_written: WeakKeyDictionary[logging.LogRecord, TextIO] = WeakKeyDictionary()
"""What a :class:`StandardErrorHandler` has written, and where. A mark on the record would reach log exporters."""


class StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes records to standard error, each once, however many loggers on its way have such a handler.

    Standard error is ``sys.stderr`` at the time of writing, as for :data:`logging.lastResort`. Each handler of the root
    logger that writes to the same stream gets a filter that leaves out what was written here.

    Args:
        formatter: Formats the records.
        without: The name of a logger whose records, and those of the loggers below it, are left alone.
    """

    def __init__(self, formatter: logging.Formatter, without: str | None = None) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would fix the stream
        self._stream: TextIO | None = None
        self.setFormatter(formatter)
        if without is not None:
            self.addFilter(lambda record: not f"{record.name}.".startswith(f"{without}."))

    @property
    def stream(self) -> TextIO:
        """Where to write: ``sys.stderr``, unless set otherwise."""
        return self._stream or sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if no other handler of this class has.

        Args:
            record: What was logged.
        """
        if record in _written:
            return
        stream = self.stream
        for handler in logging.getLogger().handlers:
            if isinstance(handler, StandardErrorHandler) or any(
                isinstance(f, _UnwrittenFilter) for f in handler.filters
            ):
                continue
            if _writes_to(handler, stream):
                handler.addFilter(_UnwrittenFilter(handler))
        super().emit(record)
        _written[record] = stream


class _UnwrittenFilter(logging.Filter):
    """Leaves out what was written already to where a handler writes.

    Args:
        handler: The handler that has the filter.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is still to be written."""
        stream = _written.get(record)
        return stream is None or not _writes_to(self._handler, stream)


def _writes_to(handler: logging.Handler, stream: TextIO) -> bool:
    """Tell whether a stream is all that a handler writes to, directly or through a queue, as far as that shows."""
    listener = getattr(handler, "listener", None)  # of a QueueHandler that ``logging.config`` made, or Litestar
    if listener is not None:
        targets = getattr(listener, "handlers", ())
        return bool(targets) and all(_writes_to(target, stream) for target in targets)
    console = getattr(handler, "console", None)  # of a RichHandler
    target = getattr(handler, "stream", None) or getattr(console, "file", None)
    if target is None or target is stream:
        return target is stream
    try:
        return os.path.sameopenfile(target.fileno(), stream.fileno())
    except (AttributeError, OSError, TypeError, ValueError):  # not a file, or closed
        return False


class _NotDisabledFromAfar:
    """Mixed into the class of a service's loggers: ``logging.config`` cannot disable them.

    ``dictConfig`` and ``fileConfig`` disable, unless told otherwise, each logger that exists and that they do not name,
    and no handler sees what a disabled logger is given: failures would be lost. A program that sets
    ``disabled`` itself is obeyed.
    """

    @property
    def disabled(self) -> bool:
        return bool(vars(self).get("disabled"))

    @disabled.setter
    def disabled(self, disabled: bool) -> None:
        frame = inspect.currentframe()
        caller = frame.f_back if frame is not None else None
        if caller is None or caller.f_globals.get("__name__") != "logging.config":
            vars(self)["disabled"] = disabled


def _keep_enabled(logger: logging.Logger) -> None:
    kind = type(logger)
    if not issubclass(kind, _NotDisabledFromAfar):
        logger.__class__ = _not_disabled_from_afar(kind)  # type: ignore[arg-type]
        logger.disabled = False


@functools.cache
def _not_disabled_from_afar(kind: type[logging.Logger]) -> type[logging.Logger]:
    """The same class of loggers, which may be the host program's (``logging.setLoggerClass``), with the mixin."""
    return type(kind.__name__, (_NotDisabledFromAfar, kind), {})


class LogSetup:
    """Sets up where the log lines of a process that serves an agent go, or nothing where the format is ``none``.

    Args:
        request_ids: Returns the ids of the current request.
        level: The level from which on lines are written, by its name.
        log_format: The form of the lines.
    """

    def __init__(self, request_ids: RequestIds, level: str = "INFO", log_format: LogFormat = "auto") -> None:
        self._request_ids = request_ids
        self._level = level
        self._format = log_format

    def configure_package(self, package: str, without: str | None = None) -> None:
        """Have the loggers of a package that is imported write to standard error, whatever the root logger has.

        Args:
            package: The name of the package, and of the logger above all of its modules'.
            without: The name of a logger below it that has a handler of its own.
        """
        logger = logging.getLogger(package)
        if self._needs_handler(logger):
            # Modules that are not imported yet included, lest their loggers be disabled later.
            for module in pkgutil.walk_packages(sys.modules[package].__path__, f"{package}."):
                _keep_enabled(logging.getLogger(module.name))
            self._configure(logger, self._level, without)

    def configure_logger(self, name: str, debug: bool = False) -> logging.Logger:
        """Have one logger write to standard error, whatever the root logger has.

        Args:
            name: The name of the logger.
            debug: Whether it writes at DEBUG where no level but the default is asked for.

        Returns:
            The logger.
        """
        logger = logging.getLogger(name)
        if self._needs_handler(logger):
            self._configure(logger, "DEBUG" if debug and self._level == "INFO" else self._level)
        return logger

    def _needs_handler(self, logger: logging.Logger) -> bool:
        return self._format != "none" and not any(isinstance(h, StandardErrorHandler) for h in logger.handlers)

    def _configure(self, logger: logging.Logger, level: str, without: str | None = None) -> None:
        _keep_enabled(logger)
        logger.addHandler(self._handler(without))
        if logger.level == logging.NOTSET:
            logger.setLevel(level)

    def _handler(self, without: str | None = None) -> StandardErrorHandler:
        return StandardErrorHandler(make_formatter(self._request_ids, self._format, sys.stderr), without)

    def configure_root(self) -> None:
        """Have all other loggers write to standard error too, unless the root logger has a handler."""
        root = logging.getLogger()
        if root.handlers or self._format == "none":
            return
        root.addHandler(self._handler())
        if root.level == logging.WARNING:  # the default
            root.setLevel(self._level)

    def configure_server(self) -> bool:
        """Have uvicorn's loggers write in the same form, unless the root logger has a handler of the host program's.

        Their level is set too, unless it is another than uvicorn's default: at INFO or above, since at DEBUG uvicorn
        writes out the headers of each WebSocket handshake. In any case queries are cut off its lines on requests, and
        what the service has logged is not reported again.

        Returns:
            True where they do, and uvicorn need not set them up.
        """
        if self._format == "none":
            return False
        errors = logging.getLogger("uvicorn.error")
        errors.addFilter(_is_not_logged)
        errors.addFilter(_without_blame)
        errors.addFilter(_without_query)
        logging.getLogger("uvicorn.access").addFilter(_without_query)
        if not all(isinstance(handler, StandardErrorHandler) for handler in logging.getLogger().handlers):
            return False
        server = logging.getLogger(SERVER)
        if self._needs_handler(server) and (server.handlers or server.propagate):  # else it was silenced
            server.handlers[:] = [self._handler()]
            server.propagate = True
        for logger in map(logging.getLogger, _SERVER_CHILDREN):
            if logger.handlers:  # one without may have been silenced: ``access_log=False``
                logger.handlers.clear()
                logger.propagate = True
        if errors.level in (logging.NOTSET, logging.INFO):
            errors.setLevel(server_level(self._level))
        return True

    def format_server_lines(self) -> None:
        """Have the handlers that the ``uvicorn`` command gave its loggers write in the same form.

        The command makes them before it imports the app, and writes its first lines before it starts the app. Nothing
        but these handlers is changed, and not even they where the host program has set up the root logger.
        """
        if logging.getLogger().handlers or self._format == "none":
            return
        for name in (SERVER, *_SERVER_CHILDREN):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler.formatter, ColourizedFormatter) and isinstance(handler, logging.StreamHandler):
                    handler.setFormatter(make_formatter(self._request_ids, self._format, handler.stream))


def server_level(level: str) -> str:
    """The level for uvicorn's own lines: INFO for DEBUG, at which it writes out headers.

    Args:
        level: The level that is wanted, by its name.
    """
    return "INFO" if level == "DEBUG" else level


def _without_query(record: logging.LogRecord) -> bool:
    """Cut the query off the path of a line on a request or a WebSocket: credentials and personal data stand there."""
    if isinstance(record.args, tuple) and str(record.msg).startswith('%s - "'):
        record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
    return True


def _without_blame(record: logging.LogRecord) -> bool:
    """Make a warning, without a traceback, of uvicorn's line at ERROR on a client's text that is no UTF-8."""
    if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError) and "from client" in str(record.msg):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = record.exc_text = None
    return True


def _is_not_logged(record: logging.LogRecord) -> bool:
    """Leave out the server's line on an exception that says it is in the log already, or whose cause says so."""
    error = record.exc_info[1] if record.exc_info else None
    for _ in range(_CAUSES):
        if error is None:
            break
        if getattr(error, "is_logged", False):
            return False
        error = error.__cause__
    return True


@contextlib.contextmanager
def uvicorn_unconfigured() -> Iterator[None]:
    """Keep ``uvicorn.run`` from configuring its loggers, where its caller cannot be told to."""
    configured = uvicorn.config.LOGGING_CONFIG["loggers"]
    uvicorn.config.LOGGING_CONFIG["loggers"] = {}
    try:
        yield
    finally:
        uvicorn.config.LOGGING_CONFIG["loggers"] = configured
