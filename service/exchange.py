"""The way of one invocation, each step once: headers, body, handler, answer, and one place where it ends."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litestar.types import Empty, Message, Receive, Scope, Send
from litestar.utils.scope.state import ScopeState

from service.errors import author_exception_handler, headers_of, status_of
from service.protocol.context import RequestContext, RequestValues, current_request, enter_request
from service.protocol.headers import read_headers, readable_headers, response_headers
from service.protocol.models import ErrorAnswer, PingStatus, Refusal
from service.protocol.serialization import decode_body, encode
from service.responses import as_responder
from service.runtime.agent import Agent
from service.runtime.execution import Failure
from service.runtime.failure import message_of
from service.runtime.streams import EventStream
from telemetry.recording import InvocationRecord

if TYPE_CHECKING:
    from litestar import Response

logger = logging.getLogger(__name__)

RawHeader = tuple[bytes, bytes]

ACTION = "_agent_core_app_action"
"""The key of a payload that asks for a debug action, in an app made with ``debug=True``."""

_JSON = (b"content-type", b"application/json")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back otherwise
]
DISCARD_SECONDS = 5.0
"""How long a client may go on sending a body that is too large before it is answered and cut off."""

WATCH_AFTER_SECONDS = 1.0
"""How long a client waits for a value before it is watched whether it still does."""

_NO_CONTENT = frozenset({204, 205, 304})


class InvocationExchange:
    """Answers ``POST /invocations`` as an ASGI application.

    Args:
        agent: The agent that is invoked.
        debug: Whether payloads may ask for debug actions.
    """

    def __init__(self, agent: Agent, debug: bool) -> None:
        self._agent = agent
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[RawHeader] = ()) -> None:
        """Serve one invocation.

        Args:
            scope: The ASGI scope.
            receive: The ASGI receive function.
            send: The ASGI send function.
            headers: Headers for the answer, beside its own.
        """
        refusal = None
        try:
            values = read_headers(scope["headers"])
        except Refusal as refused:
            values, refusal = readable_headers(scope["headers"]), refused
        telemetry = self._agent.telemetry
        parent, experiment = telemetry.parent_of(scope)
        token = enter_request(values, experiment)
        record = telemetry.invocation(scope, parent)
        try:
            ids = response_headers(values.request_id or "", values.session_id)
            answering = _Answer(send, [*ids, *headers], record)
            try:
                if refusal is not None:
                    raise refusal
                await self._invoke(values, scope, receive, answering)
            except Refusal as refused:
                logger.warning("The invocation was refused with status %d: %s", refused.status, refused.reason)
                closing = [(b"connection", b"close")] if refused.status == 413 else None
                await answering.value(encode(refused.answer), refused.status, closing)
        except BaseException as error:
            record.error = record.error or error
            raise
        finally:
            record.end()
            current_request.reset(token)

    async def _invoke(self, values: RequestValues, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        body = await _read_body(scope, receive, self._agent.settings.max_body_bytes)
        if body is None:
            answer.record.left = True
            logger.info("The client went away before its request was complete")
            return
        if self._debug and (action_answer := await self._debug_action(body)) is not None:
            await answer.value(action_answer)
            return
        handler = self._agent.entrypoint
        if handler is None:
            decode_body(body)
            raise Refusal(500, "No entrypoint defined")
        try:
            payload = decode_body(body) if handler.decode is None else decode_body(body, handler.decode)
        except Refusal:
            raise
        except Exception as error:  # the author's own validators, in the types of the payload
            await self._answer_failure(error, scope, receive, answer)
            return
        context = None
        if handler.context is not None:
            context = RequestContext(
                session_id=values.session_id,
                request_id=values.request_id or "",
                request_headers=values.request_headers,
                request=scope["litestar_app"].request_class(scope),
            )
        outcome = await _unless_client_leaves(self._agent.execution.call(handler, payload, context), receive)
        if outcome is None:
            answer.record.left = True
            logger.info("The client went away before the handler had an answer for it")
        elif isinstance(outcome, bytes):
            await answer.value(outcome)
        elif isinstance(outcome, EventStream):
            await answer.stream(outcome, receive)
        elif isinstance(outcome, Failure):
            await self._answer_failure(outcome.error, scope, receive, answer)
        else:
            await self._respond(outcome, scope, receive, answer)

    async def _debug_action(self, body: bytes) -> bytes | None:
        """Answer a payload that asks for a debug action; ``None`` for any other."""
        payload = decode_body(body)
        if not isinstance(payload, dict) or ACTION not in payload:
            return None
        health, tasks = self._agent.health, self._agent.tasks
        action = payload[ACTION]
        if action == "ping_status":
            return encode(await health.answer())
        if action == "job_status":
            return encode(tasks.info())
        if action == "force_healthy":
            health.force(PingStatus.HEALTHY)
            return encode({"forced_status": "Healthy"})
        if action == "force_busy":
            health.force(PingStatus.HEALTHY_BUSY)
            return encode({"forced_status": "HealthyBusy"})
        if action == "clear_forced_status":
            health.clear()
            return encode({"forced_status": "Cleared"})
        raise Refusal(400, f"Unknown action: {action}", reason="Unknown action")

    async def _answer_failure(self, error: BaseException, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        answer.record.error = error
        handlers = scope["route_handler"].resolve_exception_handlers()
        if isinstance(error, Exception):
            for hook in scope["litestar_app"].after_exception:
                await hook(error, scope)
            if (handle := author_exception_handler(error, handlers)) is not None:
                response: Response[Any] = handle(scope["litestar_app"].request_class(scope), error)
                await self._respond(as_responder(response), scope, receive, answer)
                return
        status = status_of(error)
        if status is None:
            logger.error("The handler raised", exc_info=error)
            await answer.value(encode(ErrorAnswer(message_of(error))), 500)
            return
        log = logger.error if status >= 500 else logger.warning
        log("The handler answered with HTTP status %d", status)
        detail = encode({"error": getattr(error, "detail", "")})
        await answer.value(
            detail, status, [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers_of(error).items()]
        )

    async def _respond(self, responder: Any, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Send a response that the author made, from where its own code cannot hurt anyone."""

        async def respond(receive: Receive, send: Send) -> None:
            await responder(scope, receive, send)

        async def watched_receive() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect" and not answer.finished:
                answer.record.left = True
            return message

        failure = await self._agent.execution.converse(respond, watched_receive, answer.send)
        if failure is None:
            return
        answer.record.error = failure.error
        logger.error("Sending the handler's response raised", exc_info=failure.error)
        if answer.started:
            raise RuntimeError("the handler's response failed after it had begun") from failure.error
        await answer.value(encode(ErrorAnswer(message_of(failure.error))), 500)


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """Read the whole body. ``None`` where the client went away before it was complete.

    A middleware may have read it before us: Litestar keeps it in the scope's state, for whoever asks next.

    Raises:
        Refusal: The body is larger than the limit (status 413).
    """
    state = ScopeState.from_scope(scope)
    if state.body is Empty:
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit:
            if b"expect" not in headers:  # who expects a 100 has not begun to send
                await _discard(receive)
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                if message.get("more_body", False):
                    await _discard(receive)
                raise _too_large(limit)
            chunks.append(chunk)
            if not message.get("more_body", False):
                break
        state.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    elif len(state.body) > limit:
        raise _too_large(limit)
    return state.body


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "Payload too large", f"The body exceeds the limit of {limit} bytes")


async def _discard(receive: Receive) -> None:
    """Let a client that still sends finish, for a while: it would not read the answer before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass


async def _unless_client_leaves(outcome: "asyncio.Future[Any]", receive: Receive) -> Any:
    """Wait for a handler's outcome; ``None`` where the client leaves first. The handler then runs on unheard.

    Only a client that has waited for a while is watched: most handlers are done before that is worth a task.
    """
    watches: list[asyncio.Task[None]] = []

    def left(watch: "asyncio.Task[None]") -> None:
        if not watch.cancelled() and watch.exception() is None and not outcome.done():
            outcome.set_result(None)

    def watch() -> None:
        watches.append(asyncio.ensure_future(_disconnected(receive)))
        watches[0].add_done_callback(left)

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
    try:
        return await outcome
    finally:
        timer.cancel()
        for task in watches:
            task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answer:
    """The response of one invocation, each with the ids of its request.

    Args:
        send: The ASGI send function.
        headers: The headers of every answer: the ids, and what the application adds.
        record: What is recorded of the invocation.
    """

    __slots__ = ("_headers", "_send", "finished", "record", "started")

    def __init__(self, send: Send, headers: list[RawHeader], record: InvocationRecord) -> None:
        self._send = send
        self._headers = headers
        self.record = record
        self.finished = False
        self.started = False

    async def send(self, message: Message) -> None:
        """Send an ASGI message of somebody else's response."""
        if message["type"] == "http.response.start":
            self.started = True
            self.record.status = message["status"]
            present = {name.lower() for name, _ in message.get("headers", ())}
            missing = [header for header in self._headers if header[0] not in present]
            message = {**message, "headers": [*message.get("headers", ()), *missing]}
        await self._send(message)
        self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def value(self, body: bytes, status: int = 200, headers: list[RawHeader] | None = None) -> None:
        """Answer with one JSON document."""
        self.started = True
        self.record.status = status
        if status in _NO_CONTENT:
            body = b""
        own = [_JSON, (b"content-length", b"%d" % len(body)), *self._headers]
        if headers:
            own += [header for header in headers if header[0].lower() not in {b"content-type", b"content-length"}]
        await self._send({"type": "http.response.start", "status": status, "headers": own})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def stream(self, stream: EventStream, receive: Receive) -> None:
        """Answer with events, until the last one or until the client goes away."""
        record = self.record
        record.mode = "stream"
        record.status = 200
        watch = asyncio.ensure_future(_disconnected(receive))

        def close(watch: "asyncio.Task[None]") -> None:
            if not watch.cancelled() and watch.exception() is None and not stream.ended:
                record.left = True
                stream.close()

        watch.add_done_callback(close)
        try:
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *self._headers]}
            )
            while events := await stream.take():
                await self._send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
                record.chunks(len(events))
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # the ASGI specification, 2.4, has ``send`` raise it where the client is gone
            record.left = True
            logger.info("The client went away while its stream was running")
        finally:
            record.error = stream.error
            stream.close()
            watch.cancel()
