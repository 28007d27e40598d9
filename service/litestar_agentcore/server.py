"""What uvicorn speaks HTTP and WebSocket with, where the service starts it: bounded, and not upset by bad requests.

uvicorn's parsers read the head of a request whole before an application sees it. These subclasses count what arrives,
and answer 431 before it is whole. The sizes of heads that other servers have read are checked after the fact
(:class:`litestar_agentcore.protocol.headers.HeaderReader`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import h11
import uvicorn.config
from agentcore_telemetry.log_handlers import LogSetup, server_level
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from litestar_agentcore.protocol.headers import HEADER_OVERHEAD, HeaderLimits, new_request_id, response_headers
from litestar_agentcore.protocol.models import ErrorAnswer, Refusal
from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.protocol.settings import Settings

logger = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a client that still sends when it is refused may go on, unread: a reset would take the answer from it."""


class _RefusingProtocol:
    """Answers a head that is too large, and drops what still comes.

    Mixed into a class of uvicorn's.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any
    _refused = False
    _closing: asyncio.TimerHandle | None = None

    def _refuse(self, refusal: Refusal) -> None:
        self._refused = True
        logger.warning("A request was refused with status %d: %s", refusal.status, refusal.reason)
        if self.transport.is_closing():
            return
        if (
            self.cycle is not None and not self.cycle.response_complete
        ):  # an answer within another would be read wrongly
            self.transport.close()
            return
        self.transport.write(_response(refusal))
        self._closing = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        super().connection_lost(exc)  # type: ignore[misc]


def _response(refusal: Refusal) -> bytes:
    body = encode(ErrorAnswer(refusal.answer.error, refusal.answer.details))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *response_headers(new_request_id(), None),
    ]
    head = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + b"".join(b"%s: %s\r\n" % header for header in headers)
    return head + b"\r\n" + body


class BoundedHttpToolsProtocol(_RefusingProtocol, HttpToolsProtocol):
    """uvicorn's protocol on httptools, which reads no more of a request's head than it may have.

    Args:
        *args: What uvicorn gives its protocols.
        limits: How many headers a request may have, and of how many bytes.
        keep_alive: How long a connection may be idle between two requests, in seconds; as uvicorn has it by default.
        **options: What uvicorn gives its protocols.
    """

    def __init__(self, *args: Any, limits: HeaderLimits, keep_alive: float | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if keep_alive is not None:
            self.timeout_keep_alive: Any = keep_alive
        self._limits = limits
        self._heads = 0
        self._in_head = False
        self._between_requests = True
        self._unparsed = self._count = self._bytes = 0
        self._refusal: Refusal | None = None

    def on_message_begin(self) -> None:
        """Begin to count a head; called by the parser."""
        super().on_message_begin()
        self._heads += 1
        self._in_head = True
        self._between_requests = False
        self._unparsed = self._count = self._bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; called by the parser, which stops where this raises."""
        self._count += 1
        self._bytes += len(name) + len(value) + HEADER_OVERHEAD
        self._refusal = self._limits.refusal(self._count, self._bytes)
        if self._refusal is not None:
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a head; called by the parser."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request; called by the parser."""
        self._between_requests = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless the head that it belongs to has been refused."""
        if self._refused:
            return
        began, heads = self._between_requests, self._heads
        super().data_received(data)
        if not self._in_head or self._refused:
            return
        if self._heads == heads or (began and self._heads == heads + 1):  # else some of it is of another request
            self._unparsed += len(data)
            # Also of one header that is not complete, of which the parser says nothing yet.
            if (refusal := self._limits.refusal(self._count, self._unparsed)) is not None:
                self._refuse(refusal)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or what :meth:`on_header` has refused."""
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif not self.transport.is_closing():  # uvloop's raises where it is closed
            super().send_400_response(msg)


class BoundedH11Protocol(_RefusingProtocol, H11Protocol):
    """uvicorn's protocol on h11, with the limit of the settings in the place of h11's.

    Args:
        *args: What uvicorn gives its protocols.
        limits: How many bytes the headers of a request may have. Their number is checked when they are whole.
        keep_alive: How long a connection may be idle between two requests, in seconds; as uvicorn has it by default.
        **options: What uvicorn gives its protocols.
    """

    def __init__(self, *args: Any, limits: HeaderLimits, keep_alive: float | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if keep_alive is not None:
            self.timeout_keep_alive: Any = keep_alive
        self._limits = limits
        if self.config.h11_max_incomplete_event_size is None:
            self.conn = h11.Connection(h11.SERVER, limits.bytes)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless the head that it belongs to has been refused."""
        if not self._refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Serve what has been parsed."""
        try:
            super().handle_events()
        except h11.LocalProtocolError:  # uvicorn's 400, amid the answer to a request before
            logger.warning("What followed a request was no HTTP, and the connection is closed")
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or has a head that is too large."""
        refusal = self._limits.refusal(0, len(self.conn.trailing_data[0]))
        if refusal is not None:
            self._refuse(refusal)
        else:
            super().send_400_response(msg)


class TolerantWebSocketProtocol(AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's WebSocket protocol, which closes the connection where its own answer to a bad handshake fails."""

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        try:
            super().data_received(data)
        except AssertionError:  # uvicorn has not begun a conversation that it could close
            logger.warning("A WebSocket's handshake makes no sense, and the connection is closed")
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()


_HTTP = {
    "auto": BoundedHttpToolsProtocol,
    "httptools": BoundedHttpToolsProtocol,
    "h11": BoundedH11Protocol,
}


def server_options(
    settings: Settings, http: Any = "auto", ws: Any = "auto", keep_alive: float | None = None
) -> dict[str, Any]:
    """The options with which uvicorn keeps to the limits of the settings.

    Args:
        settings: How the service behaves.
        http: uvicorn's option; a class of the caller's own is left as it is.
        ws: uvicorn's option, likewise.
        keep_alive: How long a connection may be idle between two requests, whatever uvicorn's own option is.

    Returns:
        Options of ``uvicorn.run``.
    """
    options = {"http": http, "ws": ws, "ws_max_size": settings.max_websocket_message_bytes}
    if isinstance(http, str) and (bounded := _HTTP.get(http)) is not None:
        options["http"] = partial(bounded, limits=HeaderLimits.of(settings), keep_alive=keep_alive)
    if ws == "auto" and hasattr(AutoWebSocketsProtocol, "handle_events"):
        options["ws"] = TolerantWebSocketProtocol
    return options


def run_options(settings: Settings, log_setup: LogSetup, debug: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which the service has uvicorn serve, whose loggers are set up by that.

    Args:
        settings: How the service behaves.
        log_setup: Where log lines go.
        debug: Whether each request is logged.
        options: The caller's own options of ``uvicorn.run``, which win.

    Returns:
        Options of ``uvicorn.run``.
    """
    defaults: dict[str, Any] = {
        "access_log": debug,
        "log_level": server_level(settings.log_level).lower(),
        "timeout_keep_alive": settings.keep_alive_seconds,
    }
    if log_setup.configure_server():
        defaults["log_config"] = None
    options = defaults | options
    return server_options(settings, options.pop("http", "auto"), options.pop("ws", "auto")) | options


@contextlib.contextmanager
def uvicorn_bounded(settings: Settings) -> Iterator[None]:
    """Have ``uvicorn.run`` keep to the limits of the settings, where its caller cannot be told to.

    Args:
        settings: How the service behaves.
    """
    options = server_options(settings, keep_alive=settings.keep_alive_seconds)
    protocols: list[tuple[dict[str, Any], str]] = [
        (uvicorn.config.HTTP_PROTOCOLS, "http"),
        (uvicorn.config.WS_PROTOCOLS, "ws"),
    ]
    own = [table["auto"] for table, _ in protocols]
    for table, option in protocols:
        if not isinstance(options[option], str):
            table["auto"] = options[option]
    try:
        yield
    finally:
        for (table, _), value in zip(protocols, own, strict=True):
            table["auto"] = value
