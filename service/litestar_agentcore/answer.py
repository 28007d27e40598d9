"""The answer of one invocation, on its way to the client."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from agentcore_telemetry.recording import InvocationRecord
from litestar.types import Message, Receive, Scope, Send
from litestar.utils.scope.state import ScopeState

from litestar_agentcore.disconnects import DisconnectWatcher
from litestar_agentcore.errors import (
    BrokenResponseError,
    ExceptionHandlers,
    author_exception_handler,
    headers_of,
    status_of,
)
from litestar_agentcore.gathered_writes import gather, writes_to_server
from litestar_agentcore.protocol.context import RequestValues
from litestar_agentcore.protocol.headers import response_headers
from litestar_agentcore.protocol.models import (
    ErrorAnswer,
    Refusal,
    StreamError,
    internal_error,
    internal_stream_error,
    session_stopped,
    shutting_down,
)
from litestar_agentcore.protocol.serialization import encode, encode_events
from litestar_agentcore.runtime.failure import Failure, message_of
from litestar_agentcore.runtime.running import Running
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream
from litestar_agentcore.runtime.timeouts import StreamLimits, StreamTimer

if TYPE_CHECKING:
    from litestar_agentcore.runtime.admission import Place

logger = logging.getLogger(__name__)

RawHeader = tuple[bytes, bytes]

CLOSE = (b"connection", b"close")
"""Tells a client that it had better ask elsewhere, or on another connection."""

_JSON = (b"content-type", b"application/json")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back otherwise
]
CLIENT_CLOSED_REQUEST = 499
"""What proxies (nginx first) log of a client that left before it had an answer. No client reads it."""

_NO_CONTENT = frozenset({204, 205, 304})

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment (HTML Living Standard, 9.2.6, "Interpreting an event stream"), which is no event."""


class ErrorResponse(msgspec.Struct, frozen=True):
    """What a client is told of an exception."""

    status: int
    body: bytes
    headers: list[RawHeader] = []


class Answer(Running):
    """The response of one invocation, with the ids of its request.

    Args:
        scope: The ASGI scope of the request.
        send: The ASGI send function.
        headers: What the application adds to the headers of every answer.
        record: What is recorded of the invocation.
        values: The ids and headers of the request.
        running: Where it is listed until it has ended.
        loop: The loop that serves it.
        expose_errors: Whether the client is told what a handler raised.
    """

    __slots__ = (
        "_deadline", "_ended", "_expose_errors", "_headers", "_iterated_here", "_running", "_scope", "_send",
        "finished", "place", "record", "request_body", "started", "timed_out",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        send: Send,
        headers: Sequence[RawHeader],
        record: InvocationRecord,
        values: RequestValues,
        running: set[Running],
        loop: asyncio.AbstractEventLoop,
        expose_errors: bool = True,
    ) -> None:
        super().__init__("invocation", values, loop)
        self._expose_errors = expose_errors
        self._scope = scope
        self._send = send
        self._headers = response_headers(values.request_id or "", values.session_id)
        if headers:
            self._headers += headers
        self._running = running
        self._iterated_here: EventStream | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False
        self.place: Place | None = None
        """The place that it holds or waits for, where invocations are limited."""
        self.timed_out = False
        """Whether it was ended, before its answer had begun, because its time was over."""
        self.record = record
        self.request_body: bytes | None = None
        """What came with the request, once it is complete."""
        self.finished = False
        self.started = False
        running.add(self)

    def end(self) -> None:
        """List it no longer, and give its place up, unless its handler still runs."""
        if not self.outlives_client:
            if self._deadline is not None:
                self._stop_time()
            self._end()

    def _end(self) -> None:
        self._ended = True
        self.work = None  # which refers to this
        self._running.discard(self)
        if self.place is not None:
            self.place.release()

    def list_until_handler_ended(self) -> None:
        """List it until its handler has ended: its client has left before that."""
        self.outlive_client(self._end)

    def limit_time(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Have it end, unless its answer has begun before.

        Args:
            loop: The loop that serves it.
            seconds: How long it may take from now.
        """
        self._deadline = loop.call_later(seconds, self.time_out)

    def _stop_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def time_out(self) -> None:
        """End it, or what its handler still does: its time is over. On the loop that serves it."""
        if self._ended or self.expired or self.timed_out:
            return
        if self.outlives_client:
            logger.warning("The handler of a client that has left takes too long, and is cancelled")
            self.cancel_work()
        elif not self.started and self.task is not None:
            self.timed_out = True
            self.task.cancel()

    def begin(self) -> None:
        """End the time limit for the beginning of the answer: it begins."""
        self.started = True
        if self._deadline is not None:
            self._stop_time()

    def expire(self, *, stopped: bool = False) -> None:
        """End it: the service's time to shut down is over."""
        if self.timed_out and not self.outlives_client:
            return  # as is done already
        if self._iterated_here is None or self.outlives_client:
            super().expire(stopped=stopped)
        else:
            self.announce_expiry(stopped=stopped)
            self._iterated_here.close()

    # -- On the handler's side

    def note(self, error: BaseException) -> Any:
        """Record what a handler or its generator raised. On the handler's side, since it asks for the exception's text.

        Args:
            error: What was raised.

        Returns:
            The last event of its stream, where that is not to tell what was raised.
        """
        self.record.fail(error)
        return None if self._expose_errors else internal_stream_error(self.values.request_id)

    def stream_error(self, error: StreamError) -> Any:
        """The last event of a stream that the service itself ends, as its client is to read it.

        Args:
            error: What that is.
        """
        return error

    def internal_error(self, message: str) -> bytes:
        """The body of a 500.

        Args:
            message: What was raised, for clients that may be told.
        """
        return encode(ErrorAnswer(message) if self._expose_errors else internal_error(self.values.request_id))

    @property
    def exception_handlers(self) -> ExceptionHandlers:
        """The exception handlers that hold for what a handler raises."""
        handlers: ExceptionHandlers = self._scope["route_handler"].resolve_exception_handlers()
        return handlers

    def describe(self, error: BaseException) -> Failure:
        """Log what a handler raised, record it, and make of it what the client is to be told. On the handler's side.

        Args:
            error: What was raised.

        Returns:
            The failure, with an :class:`ErrorResponse` or the exception handler of the author's that answers it.
        """
        if isinstance(error, Refusal):  # the payload does not fit its type
            return Failure(error)
        self.note(error)
        if (
            isinstance(error, Exception)
            and (handle := author_exception_handler(error, self.exception_handlers)) is not None
        ):
            return Failure(error, handle)
        status = status_of(error)
        if status is None:
            logger.error("The handler raised", exc_info=error)
            return Failure(error, ErrorResponse(500, self.internal_error(message_of(error))))
        log = logger.error if status >= 500 else logger.warning
        log("The handler answered with HTTP status %d", status)
        return Failure(error, ErrorResponse(status, encode({"error": getattr(error, "detail", "")}), headers_of(error)))

    # -- On the loop that serves it

    async def send(self, message: Message) -> None:
        """Send an ASGI message of a response that the author made."""
        if message["type"] == "http.response.start":
            self.begin()
            self.record.status = message["status"]
            present = {name.lower() for name, _ in message.get("headers", ())}
            missing = [header for header in self._headers if header[0] not in present]
            message = {**message, "headers": [*message.get("headers", ()), *missing]}
        await self._send(message)
        self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def value(
        self,
        body: bytes,
        status: int = 200,
        headers: list[RawHeader] | None = None,
        before_end: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Answer with one JSON document.

        Args:
            body: The document.
            status: The HTTP status.
            headers: Headers besides its own.
            before_end: Awaited when the whole answer is on its way and the connection is not yet free, or closed.
        """
        self.begin()
        self.record.status = status
        if status in _NO_CONTENT:
            body = b""
        own = [_JSON, (b"content-length", b"%d" % len(body)), *self._headers]
        if headers:
            passed_over = {b"content-type", b"content-length"}
            own += [it for it in headers if it[0].lower() not in passed_over and it not in self._headers]
        send = self._send
        gathered = gather(send, len(body))
        try:
            await send({"type": "http.response.start", "status": status, "headers": own})
            await send({"type": "http.response.body", "body": body, "more_body": before_end is not None})
        finally:
            if gathered is not None:
                gathered.pass_on()
        if before_end is not None:
            await before_end()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(
        self,
        refusal: Refusal,
        headers: list[RawHeader] | None = None,
        before_end: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Answer with what the service itself has to say, in the place of the agent.

        Args:
            refusal: What that is.
            headers: Headers besides those of every answer.
            before_end: As in :meth:`value`.
        """
        await self.value(encode(refusal.answer), refusal.status, headers, before_end)

    async def close_without_client(self) -> None:
        """End an exchange whose client has left, with the answer that a middleware around it may insist on."""
        self.record.left = True
        self.started = True
        with contextlib.suppress(OSError):
            await self._send({"type": "http.response.start", "status": CLIENT_CLOSED_REQUEST, "headers": []})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def stream(
        self,
        stream: EventStream,
        disconnects: DisconnectWatcher,
        receive: Receive,
        limits: StreamLimits | None,
        *,
        iterate_here: bool,
    ) -> None:
        """Answer with events, until the last one, until its time is over, or until the client goes away.

        In a silence, comments are sent between the events. They are no events: nothing counts or names them.

        Args:
            stream: The events.
            disconnects: Tells whether the client leaves.
            receive: Receives from the client.
            limits: How long it may take, and be silent.
            iterate_here: Whether this task, which ran the handler, is to iterate its generator too.
        """
        record = self.record
        self.kind = "stream"
        record.mode = "stream"
        record.status = 200

        def close() -> None:
            if not stream.ended:
                record.left = True
                stream.close()

        loop = disconnects.callbacks.loop
        sender = self.task
        timer = None
        if limits is not None:
            timer = StreamTimer(limits, loop, monotonic() - self.began, stream.wake, lambda: sender and sender.cancel())
        disconnects.watch(self, receive, close)
        try:
            if iterate_here and isinstance(stream, AsyncEventStream):
                self._iterated_here = stream
                sender = loop.create_task(self._send_events(stream, timer))
                sender.add_done_callback(lambda _: stream.close())
                await stream.iterate()
                await sender
                if self.expired:
                    await self._end_expired_stream()
            else:
                await self._send_events(stream, timer)
        except OSError:  # the ASGI specification, 2.4, has ``send`` raise it where the client is gone
            record.left = True
            logger.info("The client went away while its stream was running")
        except asyncio.CancelledError:
            if timer is not None and timer.is_cut:
                self.resume()
                record.interrupt("timeout")
                raise BrokenResponseError("the client does not read the end of a stream whose time is over") from None
            if self.expired:
                self.resume()
                await self._end_expired_stream()
            raise
        finally:
            if timer is not None:
                timer.stop()
            disconnects.unwatch(self)
            if not stream.ended:
                self.list_until_handler_ended()

    async def _send_events(self, stream: EventStream, timer: StreamTimer | None) -> None:
        send, record = self._send, self.record
        try:
            self.begin()
            await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *self._headers]})
            if not writes_to_server(send):  # compression holds the head back until it has seen something of the body
                if self._scope["litestar_app"].compression_config is not None:
                    # As if it were compressed already: Litestar's compression would hold the events back too.
                    ScopeState.from_scope(self._scope).is_cached = True
                await send({"type": "http.response.body", "body": b"", "more_body": True})
            more = True
            while more:
                events, count = await stream.take()
                more = count > 0 and not stream.ended
                if timer is not None:
                    if count:
                        timer.active_at = timer.time()
                    if timer.end is not None:
                        if more or not stream.is_done:  # else it has ended by itself
                            record.interrupt("timeout")
                            events += encode_events([encode(self.stream_error(timer.end))])
                        more = False
                    elif not count and not stream.is_done:
                        events, more = KEEP_ALIVE, True
                if not more and self.expired:
                    return  # with a last event that says why
                await send({"type": "http.response.body", "body": events, "more_body": more})
                if count:
                    record.chunks(count)
        finally:
            stream.close()

    async def _end_expired_stream(self) -> None:
        """End a stream cleanly, with one last event that says why: the service ends, and has waited long enough."""
        self.record.interrupt("cancelled")
        end = StreamError(shutting_down().error, "ShuttingDown")
        if self.stopped:
            end = StreamError(session_stopped().error, "SessionStopped")
        event = encode_events([encode(self.stream_error(end))])
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
