"""The way of one invocation, each step once: headers, body, handler, answer, and one place where it ends."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentcore_telemetry.recording import InvocationRecord
from litestar.types import Empty, Message, Receive, Scope, Send
from litestar.utils.scope.state import CONNECTION_STATE_KEY, ScopeState

from litestar_agentcore.errors import author_exception_handler, headers_of, status_of
from litestar_agentcore.protocol.context import RequestValues, current_request, enter_request
from litestar_agentcore.protocol.headers import RequestHeaders, response_headers
from litestar_agentcore.protocol.models import ErrorAnswer, PingStatus, Refusal, StreamError, shutting_down
from litestar_agentcore.protocol.serialization import decode_body, encode, encode_events
from litestar_agentcore.responses import as_responder
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.execution import Failure, Pending
from litestar_agentcore.runtime.failure import message_of
from litestar_agentcore.runtime.handler import Handler
from litestar_agentcore.runtime.mailbox import Mailbox, mailbox_of
from litestar_agentcore.runtime.running import Running
from litestar_agentcore.runtime.streams import EventStream
from litestar_agentcore.sockets import gather

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

WATCH_TOGETHER_SECONDS = 0.05
"""How far apart, at least, two looks are at who has waited for that long."""

_NO_STATE: dict[str, Any] = {}
_NO_CONTENT = frozenset({204, 205, 304})
_CLOSE = (b"connection", b"close")
_CLOSING_STATUSES = frozenset({413, 503})
"""With these, the client had better ask elsewhere, or on another connection."""


class InvocationExchange:
    """Answers ``POST /invocations`` as an ASGI application.

    Args:
        agent: The agent that is invoked.
        debug: Whether payloads may ask for debug actions.
    """

    def __init__(self, agent: Agent, debug: bool) -> None:
        self._agent = agent
        self._debug = debug
        self._home: Home | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[RawHeader] = ()) -> None:
        """Serve one invocation.

        Args:
            scope: The ASGI scope.
            receive: The ASGI receive function.
            send: The ASGI send function.
            headers: Headers for the answer, beside its own.
        """
        agent = self._agent
        telemetry = agent.telemetry
        request = agent.headers.read(scope["headers"])
        values = request.values
        parent, experiment = telemetry.parent_of(request.carrier)
        token = enter_request(values, experiment)
        record = telemetry.invocation(scope, parent, request.host, request.user_agent)
        loop = asyncio.get_running_loop()
        answer = _Answer(send, headers, record, values, loop)
        running = agent.running
        running.add(answer)
        try:
            try:
                await self._invoke(request, scope, receive, answer, self._home_of(loop))
            except Refusal as refused:
                logger.warning("The invocation was refused with status %d: %s", refused.status, refused.reason)
                record.rejected = refused.status == 503
                closing = [_CLOSE] if refused.status in _CLOSING_STATUSES else None
                await answer.value(encode(refused.answer), refused.status, closing)
            except asyncio.CancelledError:
                if not answer.expired:
                    raise
                answer.resume()
                await self._expire(answer)
        except BaseException as error:
            record.error = record.error or error
            if answer.started:  # which keeps Litestar from answering a second time
                ScopeState.from_scope(scope).response_started = True
            raise
        finally:
            running.discard(answer)
            record.end()
            current_request.reset(token)

    def _home_of(self, loop: asyncio.AbstractEventLoop) -> "Home":
        home = self._home
        if home is None or home.mailbox.loop is not loop:
            home = self._home = Home(mailbox_of(loop))
        return home

    async def _invoke(
        self, request: RequestHeaders, scope: Scope, receive: Receive, answer: "_Answer", home: "Home"
    ) -> None:
        agent = self._agent
        if request.refusal is not None:
            raise request.refusal
        if agent.refuses_work:
            raise shutting_down()
        body = answer.request_body = await _read_body(request, scope, receive, agent.settings.max_body_bytes)
        if body is None:
            answer.record.left = True
            logger.info("The client went away before its request was complete")
            return
        if self._debug and (action_answer := await self._debug_action(body)) is not None:
            await answer.value(action_answer)
            return
        handler = agent.entrypoint
        if handler is None:
            decode_body(body)
            raise Refusal(500, "No entrypoint defined")
        payload = decode_body(body) if handler.decode is None else body
        context = None
        if handler.context is not None:
            _keep_body(scope, body)
            context = request.values.context(scope["litestar_app"].request_class(scope))
        outcome = await self._outcome(handler, payload, context, home, receive, answer)
        if isinstance(outcome, bytes):
            await answer.value(outcome)
        elif isinstance(outcome, EventStream):
            await answer.stream(outcome, home, receive)
        elif isinstance(outcome, Failure):
            await self._answer_failure(outcome.error, scope, receive, answer)
        elif outcome is None:
            answer.record.left = True
            logger.info("The client went away before the handler had an answer for it")
        else:
            await self._respond(outcome, scope, receive, answer)

    async def _outcome(
        self, handler: Handler, payload: Any, context: Any, home: "Home", receive: Receive, answer: "_Answer"
    ) -> Any:
        """What the handler comes to; ``None`` where the client leaves first. The handler then runs on unheard."""
        execution = self._agent.execution
        if execution.runs_here(handler):
            home.watch(answer, receive, answer.record.leave)
            try:
                outcome = await execution.call_here(handler, payload, context, home.mailbox)
            finally:
                home.unwatch(answer)
            if not answer.record.left:
                return outcome
            if isinstance(outcome, EventStream):
                outcome.close()
            return None
        pending = execution.call(handler, payload, context, home.mailbox)
        if not isinstance(pending, Pending):
            return pending
        home.watch(pending, receive, pending.abandon)
        try:
            return await pending.outcome
        except asyncio.CancelledError:
            pending.cancel()
            raise
        finally:
            home.unwatch(pending)

    async def _expire(self, answer: "_Answer") -> None:
        """Tell a client whose invocation was cancelled because the service ends, where that still can be told."""
        answer.record.expired = True
        if not answer.started:
            refusal = shutting_down()
            await answer.value(encode(refusal.answer), refusal.status, [_CLOSE])

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
        if isinstance(error, Refusal):  # the payload does not fit its type
            raise error
        answer.record.error = error
        _keep_body(scope, answer.request_body)
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
        _keep_body(scope, answer.request_body)

        async def respond(receive: Receive, send: Send) -> None:
            await responder(scope, receive, send)

        async def watched_receive() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect" and not answer.finished:
                answer.record.left = True
            return message

        handler = self._agent.entrypoint
        home = self._home_of(asyncio.get_running_loop()).mailbox
        failure = await self._agent.execution.converse(
            handler.name if handler is not None else "a response", home, respond, watched_receive, answer.send
        )
        if failure is None:
            return
        answer.record.error = failure.error
        logger.error("Sending the handler's response raised", exc_info=failure.error)
        if answer.started:
            raise RuntimeError("the handler's response failed after it had begun") from failure.error
        await answer.value(encode(ErrorAnswer(message_of(failure.error))), 500)


async def _read_body(request: RequestHeaders, scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """Read the whole body. ``None`` where the client went away before it was complete.

    A middleware may have read it before us: Litestar keeps it in the scope's state, for whoever asks next.

    Raises:
        Refusal: The body is larger than the limit (status 413).
    """
    state: ScopeState | None = scope.get("state", _NO_STATE).get(CONNECTION_STATE_KEY)
    if state is not None and state.body is not Empty:
        if len(state.body) > limit:
            raise _too_large(limit)
        return state.body
    if request.content_length is not None and request.content_length > limit:
        if not request.expects:  # who expects a 100 has not begun to send
            await _discard(receive)
        raise _too_large(limit)
    message = await receive()
    if message["type"] != "http.request":
        return None
    body = message.get("body", b"")
    if message.get("more_body", False):
        whole = await _read_on(receive, body, limit)
        if whole is None:
            return None
        body = whole
    if len(body) > limit:
        raise _too_large(limit)
    if state is not None:
        state.body = body
    return body


async def _read_on(receive: Receive, body: bytes, limit: int) -> bytes | None:
    """Read what follows the first part of a body. ``None`` where the client went away before it was complete."""
    parts = [body]
    size = len(body)
    more = True
    while more:
        if size > limit:
            await _discard(receive)
            raise _too_large(limit)
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


def _keep_body(scope: Scope, body: bytes | None) -> None:
    """Have whoever makes a Litestar request of the scope find the body that was read."""
    if body is not None:
        ScopeState.from_scope(scope).body = body


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "Payload too large", f"The body exceeds the limit of {limit} bytes")


async def _discard(receive: Receive) -> None:
    """Let a client that still sends finish, for a while: it would not read the answer before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass


class Home:
    """The loop that serves the requests: how workers reach it, and which clients it watches for leaving.

    Only a client that has waited for a while is watched: most answers are there before that is worth a task.

    Args:
        mailbox: Reaches the loop.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._waiting: dict[object, tuple[float, Receive, Callable[[], object]]] = {}
        self._watches: dict[object, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, key: object, receive: Receive, left: Callable[[], object]) -> None:
        """Call a function if a client leaves.

        Args:
            key: What :meth:`unwatch` will be called with.
            receive: Receives from the client.
            left: The function.
        """
        loop = self.mailbox.loop
        self._waiting[key] = (loop.time(), receive, left)
        if self._timer is None:
            self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._begin_to_watch)

    def unwatch(self, key: object) -> None:
        """Let a client leave unnoticed.

        Args:
            key: What :meth:`watch` was called with.
        """
        if self._waiting.pop(key, None) is None and (watch := self._watches.pop(key, None)) is not None:
            watch.cancel()

    def _begin_to_watch(self) -> None:
        loop = self.mailbox.loop
        self._timer = None
        due = loop.time() - WATCH_AFTER_SECONDS
        while self._waiting:
            key, (since, receive, left) = next(iter(self._waiting.items()))
            if since > due:
                self._timer = loop.call_later(max(since - due, WATCH_TOGETHER_SECONDS), self._begin_to_watch)
                break
            del self._waiting[key]
            self._watches[key] = loop.create_task(_tell(receive, left))


async def _tell(receive: Receive, left: Callable[[], object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left()


class _Answer(Running):
    """The response of one invocation, with the ids of its request.

    Args:
        send: The ASGI send function.
        headers: What the application adds to the headers of every answer.
        record: What is recorded of the invocation.
        values: What is known of the request.
        loop: The loop that serves it.
    """

    __slots__ = ("_headers", "_send", "finished", "record", "request_body", "started")

    def __init__(
        self,
        send: Send,
        headers: Sequence[RawHeader],
        record: InvocationRecord,
        values: RequestValues,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__("invocation", values, loop)
        self._send = send
        self._headers = response_headers(values.request_id or "", values.session_id)
        if headers:
            self._headers += headers
        self.record = record
        self.request_body: bytes | None = None
        """What came with the request, once it is complete."""
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
        send = self._send
        gathered = gather(send, len(body))
        try:
            await send({"type": "http.response.start", "status": status, "headers": own})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            if gathered is not None:
                gathered.pass_on()

    async def stream(self, stream: EventStream, home: Home, receive: Receive) -> None:
        """Answer with events, until the last one or until the client goes away."""
        record = self.record
        self.kind = "stream"
        record.mode = "stream"
        record.status = 200
        send = self._send

        def close() -> None:
            if not stream.ended:
                record.left = True
                stream.close()

        home.watch(stream, receive, close)
        try:
            self.started = True
            await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *self._headers]})
            more = True
            while more:
                events, count = await stream.take()
                more = count > 0 and not stream.ended
                await send({"type": "http.response.body", "body": events, "more_body": more})
                if count:
                    record.chunks(count)
        except OSError:  # the ASGI specification, 2.4, has ``send`` raise it where the client is gone
            record.left = True
            logger.info("The client went away while its stream was running")
        except asyncio.CancelledError:
            if self.expired:
                stream.close()
                await self._end_expired_stream()
            raise
        finally:
            record.error = stream.error
            stream.close()
            home.unwatch(stream)

    async def _end_expired_stream(self) -> None:
        """End a stream cleanly, with one last event that says why: the service ends, and has waited long enough."""
        self.resume()
        event = encode_events([encode(StreamError(shutting_down().error, "ShuttingDown"))])
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
