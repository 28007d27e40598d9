"""The way of one invocation, each step once: headers, body, handler, answer, and one place where it ends."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from agentcore_telemetry.recording import InvocationRecord
from litestar.types import Receive, Scope, Send
from litestar.utils.scope.state import ScopeState

from litestar_agentcore.answer import CLOSE, Answer, ErrorResponse, RawHeader
from litestar_agentcore.asgi_bridge import serve_on_agent_loop
from litestar_agentcore.authentication import Authentication
from litestar_agentcore.connections import agent_request
from litestar_agentcore.debug_actions import debug_action
from litestar_agentcore.disconnects import DisconnectWatcher
from litestar_agentcore.errors import BrokenResponseError
from litestar_agentcore.lost_connections import ClientSend, client_send
from litestar_agentcore.protocol.context import RequestValues, current_request, enter_request
from litestar_agentcore.protocol.headers import RequestHeaders
from litestar_agentcore.protocol.models import (
    Refusal,
    session_stopped,
    shutting_down,
    timed_out,
    too_many_invocations,
    too_slow_body,
)
from litestar_agentcore.protocol.serialization import decode_body
from litestar_agentcore.request_body import discard_body, keep_body, read_body
from litestar_agentcore.responses import as_responder
from litestar_agentcore.runtime.admission import Admission
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.callbacks import callbacks_of
from litestar_agentcore.runtime.execution import HandlerCall
from litestar_agentcore.runtime.failure import Failure, message_of
from litestar_agentcore.runtime.handler import Handler
from litestar_agentcore.runtime.sessions import KeptSession
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream
from litestar_agentcore.runtime.timeouts import StreamLimits, TimeoutQueue

if TYPE_CHECKING:
    from litestar import Response

logger = logging.getLogger(__name__)

BeginRecord = Callable[[Any, Any, str | None, str | None], InvocationRecord]
"""Begins to record an invocation: its scope, the parent of its span, its ``Host`` and its ``User-Agent``."""

_CLOSING_STATUSES = frozenset({408, 413, 431, 503})
"""With these, the client had better ask elsewhere, or on another connection."""

_REJECTED_STATUSES = frozenset({429, 503})

OVERLOAD_LOG_SECONDS = 10.0
"""How often, at the most, the log says that invocations are refused for want of a place; the metrics count each."""

_MOMENT_SECONDS = 0.02
"""How long the body of an invocation that is refused unread may take to come before its connection is closed: clients
send head and body one after the other."""

_LINGER_SECONDS = 2.0
"""How long a client that is answered while it still sends its body may go on: it might not read the answer before."""


class Exchange(Protocol):
    """Answers the requests of a route, as an ASGI application that can be given headers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[RawHeader] = ()) -> None:
        """Serve one request.

        Args:
            scope: The ASGI scope.
            receive: The ASGI receive function.
            send: The ASGI send function.
            headers: Headers for the answer, beside its own.
        """


class _Clients:
    """The clients that one loop serves.

    Args:
        loop: The loop.
        body_idle_seconds: How long a body may make no progress; 0 for any time.
    """

    __slots__ = ("bodies", "disconnects", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, body_idle_seconds: float) -> None:
        self.loop = loop
        self.disconnects = DisconnectWatcher(callbacks_of(loop))
        self.bodies = TimeoutQueue(loop, body_idle_seconds) if body_idle_seconds else None


class InvocationExchange:
    """Answers ``POST /invocations`` as an ASGI application.

    Args:
        agent: The agent that is invoked.
        debug: Whether payloads may ask for debug actions.
        authentication: Who may invoke it; ``None`` for everybody.
    """

    answer_type: ClassVar[type[Answer]] = Answer
    """In what form the answers leave."""

    def __init__(self, agent: Agent, debug: bool, authentication: Authentication | None = None) -> None:
        self._agent = agent
        self._debug = debug
        self._authentication = authentication
        settings = agent.settings
        self._begin_record: BeginRecord = agent.telemetry.invocation
        self._max_body_bytes = settings.max_body_bytes
        self._stream_limits = StreamLimits.of(settings)
        self._invocation_seconds = settings.invocation_timeout_seconds
        self._body_idle_seconds = settings.body_idle_seconds
        self._cancels_left = settings.cancel_on_disconnect
        self._clients: _Clients | None = None
        self._overloaded = 0
        self._overload_logged_at = -OVERLOAD_LOG_SECONDS

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
        record = self._begin_record(scope, parent, request.host, request.user_agent)
        loop = asyncio.get_running_loop()
        send = client_send(send)
        headers = [*headers, CLOSE] if agent.shutting_down else headers
        answer = self.answer_type(
            scope, send, headers, record, values, agent.running, loop, agent.settings.expose_errors
        )
        kept = None
        if self._invocation_seconds:
            answer.limit_time(loop, self._invocation_seconds)
        try:
            try:
                if self._authentication is not None:
                    await self._authentication.admit(scope, request)
                kept = self._begin_session(values)  # only of a caller that is let in
                await self._invoke(request, scope, receive, answer, self._clients_of(loop))
            except Refusal as refused:
                await self._refuse(refused, request, scope, receive, answer)
            except asyncio.CancelledError:
                if not (answer.timed_out or answer.expired):
                    raise
                answer.resume()
                await self._end_cancelled(request, scope, receive, answer)
        except BaseException as error:
            if record.error is None and record.interrupted is None:
                record.fail(error)
            if answer.started:  # which keeps Litestar from answering a second time
                ScopeState.from_scope(scope).response_started = True
            raise
        finally:
            if isinstance(send, ClientSend) and send.lost:
                record.leave()
            answer.end()
            if kept is not None:
                agent.sessions.end(kept)
            record.end()
            current_request.reset(token)

    @property
    def handler(self) -> Handler | None:
        """What is invoked; ``None`` where nothing is registered yet."""
        return self._agent.entrypoint

    def _begin_session(self, values: RequestValues) -> KeptSession | None:
        agent = self._agent
        if values.session_id is None or agent.refuses_work:
            return None
        return agent.sessions.begin(values.session_id)

    def _clients_of(self, loop: asyncio.AbstractEventLoop) -> "_Clients":
        clients = self._clients
        if clients is None or clients.loop is not loop:
            clients = self._clients = _Clients(loop, self._body_idle_seconds)
        return clients

    async def _invoke(
        self,
        request: RequestHeaders,
        scope: Scope,
        receive: Receive,
        answer: Answer,
        clients: "_Clients",
    ) -> None:
        agent = self._agent
        disconnects = clients.disconnects
        self._check(request)
        body = answer.request_body = await read_body(
            request, scope, receive, self._max_body_bytes, clients.bodies, answer
        )
        if body is None:
            logger.info("The client went away before its request was complete")
            await answer.close_without_client()
            return
        if self._debug and (action_answer := await debug_action(agent, body)) is not None:
            await answer.value(action_answer)
            return
        handler = self.handler
        if handler is None:
            decode_body(body)
            raise Refusal(500, "No entrypoint defined")
        payload = decode_body(body) if handler.decode is None else body
        admission = agent.admission
        if admission is not None and not await self._admit(admission, disconnects, receive, answer):
            logger.info("The client went away before there was a place for its invocation")
            await answer.close_without_client()
            return
        context = None
        if handler.context is not None:
            keep_body(scope, body)
            context = request.values.context(agent_request(scope, partial(disconnects.has_left, answer)))
        outcome = await self._outcome(handler, payload, context, disconnects, receive, answer)
        if isinstance(outcome, bytes):
            await answer.value(outcome)
        elif isinstance(outcome, EventStream):
            here = agent.execution.runs_here(handler)
            await answer.stream(outcome, disconnects, receive, self._stream_limits, iterate_here=here)
        elif isinstance(outcome, Failure):
            await self._answer_failure(outcome, scope, receive, answer)
        elif outcome is None:
            logger.info("The client went away before the handler had an answer for it")
            await answer.close_without_client()
        else:
            await self._respond(outcome, scope, receive, answer, handler.name)

    def _check(self, request: RequestHeaders) -> None:
        """Raise the refusal of a request whose body need not be read for that."""
        if request.refusal is not None:
            raise request.refusal
        agent = self._agent
        if agent.refuses_work:
            raise shutting_down()
        admission = agent.admission
        # Debug actions are never refused, and whether this is one is only known when the body is.
        if admission is not None and not self._debug and admission.is_full(request.values.session_id):
            raise too_many_invocations(admission.retry_after)

    async def _admit(
        self, admission: Admission, disconnects: DisconnectWatcher, receive: Receive, answer: Answer
    ) -> bool:
        """Take a place, or wait for one. False where the client leaves before there is one.

        Raises:
            Refusal: There is none, and none came free in time (status 429).
        """
        place = answer.place = admission.enter(answer.values.session_id, disconnects.callbacks.loop)
        if place is None:
            raise too_many_invocations(admission.retry_after)
        if place.held:
            return True
        disconnects.watch(answer, receive, place.release)
        try:
            held = await place.wait()
        finally:
            disconnects.unwatch(answer)
        if place.timed_out:
            raise too_many_invocations(admission.retry_after)
        return held

    async def _outcome(
        self,
        handler: Handler,
        payload: Any,
        context: Any,
        disconnects: DisconnectWatcher,
        receive: Receive,
        answer: Answer,
    ) -> Any:
        """What the handler comes to; ``None`` where the client leaves first.

        The handler then runs on, and its outcome is dropped, unless the settings have it cancelled.
        """
        execution = self._agent.execution
        if not execution.has_room_for(handler):
            raise Refusal(503, "Service busy", "Every thread is taken by a stream whose client reads slowly")
        start = partial(handler.call, payload, context)
        call = answer.work = HandlerCall(execution, handler.name, handler.kind, start, disconnects.callbacks, answer)
        here = execution.runs_here(handler)
        left = answer.record.leave if here else partial(call.abandon, cancel=self._cancels_left)
        disconnects.watch(answer, receive, left)
        try:
            outcome = await (call.run_here() if here else call.run())
        except asyncio.CancelledError:
            if not here:
                answer.list_until_handler_ended()
            raise
        finally:
            disconnects.unwatch(answer)
        if outcome is None:
            answer.list_until_handler_ended()
        elif here and answer.record.left:
            if isinstance(outcome, EventStream):
                outcome.close()
            if isinstance(outcome, AsyncEventStream):
                await outcome.iterate()  # which closes its generator
            return None
        return outcome

    async def _refuse(
        self, refused: Refusal, request: RequestHeaders, scope: Scope, receive: Receive, answer: Answer
    ) -> None:
        answer.begin()
        status = refused.status
        if status == 429:
            self._log_overload()
        else:
            logger.warning("The invocation was refused with status %d: %s", status, refused.reason)
        answer.record.rejected = status in _REJECTED_STATUSES
        headers = list(refused.headers)
        before_end = None
        unread = status in {408, 429} and answer.request_body is None
        if unread:
            answer.end()  # there is nothing to wait for, nor to cancel
        if unread and status == 429 and not request.expects:  # who expects a 100 has not begun to send
            unread = not await discard_body(scope, receive, _MOMENT_SECONDS)
        if unread or status in _CLOSING_STATUSES:
            headers.append(CLOSE)
        if unread and not request.expects:
            before_end = partial(discard_body, scope, receive, _LINGER_SECONDS)
        await answer.refuse(refused, headers, before_end)

    def _log_overload(self) -> None:
        """Log that invocations find no place: not each, which under overload would be hundreds of lines a second."""
        self._overloaded += 1
        now = monotonic()
        if now - self._overload_logged_at >= OVERLOAD_LOG_SECONDS:
            logger.warning("No place for invocations: %d refused with status 429 since this was said", self._overloaded)
            self._overloaded, self._overload_logged_at = 0, now

    async def _end_cancelled(self, request: RequestHeaders, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Tell a client why its invocation is ended, where that still can be told."""
        if answer.timed_out:
            await self._time_out(request, scope, receive, answer)
        else:
            await self._expire(answer)

    async def _time_out(self, request: RequestHeaders, scope: Scope, receive: Receive, answer: Answer) -> None:
        """Tell a client that its body, or the handler, took too long."""
        if answer.request_body is None:
            await self._refuse(too_slow_body(), request, scope, receive, answer)
            return
        answer.record.interrupt("timeout")
        refusal = timed_out(self._invocation_seconds)
        logger.warning("The invocation took longer than %g s, and is cancelled", self._invocation_seconds)
        await answer.refuse(refusal)

    async def _expire(self, answer: Answer) -> None:
        """Tell a client whose invocation was cancelled because the service ends, where that still can be told."""
        answer.record.interrupt("cancelled")
        if not answer.started:
            refusal = session_stopped() if answer.stopped else shutting_down()
            await answer.refuse(refusal, None if answer.stopped else [CLOSE])

    async def _answer_failure(self, failure: Failure, scope: Scope, receive: Receive, answer: Answer) -> None:
        error = failure.error
        if isinstance(error, Refusal):
            raise error
        keep_body(scope, answer.request_body)
        if isinstance(error, Exception):
            for hook in scope["litestar_app"].after_exception:
                await hook(error, scope)
        if isinstance(failure.answer, ErrorResponse):
            await answer.value(failure.answer.body, failure.answer.status, failure.answer.headers)
            return
        response: Response[Any] = failure.answer(scope["litestar_app"].request_class(scope), error)
        await self._respond(as_responder(response), scope, receive, answer, "an exception handler")

    async def _respond(self, responder: Any, scope: Scope, receive: Receive, answer: Answer, name: str) -> None:
        """Send a response that the author made, from the agent's loop: its code is the author's."""
        keep_body(scope, answer.request_body)
        message: str | None = None

        async def respond(receive: Receive, send: Send) -> None:
            nonlocal message
            try:
                await responder(scope, receive, send)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                message = message_of(error)
                answer.note(error)
                logger.exception("Sending the handler's response raised")
                raise

        async def watched_receive() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect" and not answer.finished:
                answer.record.leave()
            return message

        execution = self._agent.execution
        try:
            error = await serve_on_agent_loop(execution, name, respond, watched_receive, answer.send, answer)
        except asyncio.CancelledError:
            answer.list_until_handler_ended()
            raise
        if error is None:
            return
        if answer.started:
            raise BrokenResponseError("the handler's response failed after it had begun") from error
        await answer.value(answer.internal_error(message or type(error).__name__), 500)
