"""The way of one invocation, each step once: headers, body, handler, answer, and one place where it ends."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from litestar.types import Receive, Scope, Send
from litestar.utils.scope.state import ScopeState

from litestar_agentcore.answer import CLOSE, Answer, ErrorResponse, RawHeader
from litestar_agentcore.asgi_bridge import serve_on_agent_loop
from litestar_agentcore.authentication import Authentication
from litestar_agentcore.connections import agent_request
from litestar_agentcore.debug_actions import debug_action
from litestar_agentcore.disconnects import DisconnectWatcher
from litestar_agentcore.errors import BrokenResponseError
from litestar_agentcore.protocol.context import current_request, enter_request
from litestar_agentcore.protocol.headers import RequestHeaders
from litestar_agentcore.protocol.models import Refusal, shutting_down
from litestar_agentcore.protocol.serialization import decode_body, encode
from litestar_agentcore.request_body import keep_body, read_body
from litestar_agentcore.responses import as_responder
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.callbacks import callbacks_of
from litestar_agentcore.runtime.execution import HandlerCall
from litestar_agentcore.runtime.failure import Failure, message_of
from litestar_agentcore.runtime.handler import Handler
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream

if TYPE_CHECKING:
    from litestar import Response

logger = logging.getLogger(__name__)

_CLOSING_STATUSES = frozenset({413, 503})
"""With these, the client had better ask elsewhere, or on another connection."""


class InvocationExchange:
    """Answers ``POST /invocations`` as an ASGI application.

    Args:
        agent: The agent that is invoked.
        debug: Whether payloads may ask for debug actions.
        authentication: Who may invoke it; ``None`` for everybody.
    """

    def __init__(self, agent: Agent, debug: bool, authentication: Authentication | None = None) -> None:
        self._agent = agent
        self._debug = debug
        self._authentication = authentication
        self._disconnects: DisconnectWatcher | None = None

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
        answer = Answer(scope, send, headers, record, values, agent.running, loop, agent.settings.expose_errors)
        try:
            try:
                await self._invoke(request, scope, receive, answer, self._disconnects_of(loop))
            except Refusal as refused:
                logger.warning("The invocation was refused with status %d: %s", refused.status, refused.reason)
                record.rejected = refused.status == 503
                closing = [CLOSE] if refused.status in _CLOSING_STATUSES else []
                await answer.value(encode(refused.answer), refused.status, [*closing, *refused.headers])
            except asyncio.CancelledError:
                if not answer.expired:
                    raise
                answer.resume()
                await self._expire(answer)
        except BaseException as error:
            if record.error is None:
                record.fail(error)
            if answer.started:  # which keeps Litestar from answering a second time
                ScopeState.from_scope(scope).response_started = True
            raise
        finally:
            answer.end()
            record.end()
            current_request.reset(token)

    def _disconnects_of(self, loop: asyncio.AbstractEventLoop) -> DisconnectWatcher:
        disconnects = self._disconnects
        if disconnects is None or disconnects.callbacks.loop is not loop:
            disconnects = self._disconnects = DisconnectWatcher(callbacks_of(loop))
        return disconnects

    async def _invoke(
        self,
        request: RequestHeaders,
        scope: Scope,
        receive: Receive,
        answer: Answer,
        disconnects: DisconnectWatcher,
    ) -> None:
        agent = self._agent
        if self._authentication is not None:
            await self._authentication.admit(scope, request)
        if request.refusal is not None:
            raise request.refusal
        if agent.refuses_work:
            raise shutting_down()
        body = answer.request_body = await read_body(request, scope, receive, agent.settings.max_body_bytes)
        if body is None:
            logger.info("The client went away before its request was complete")
            await answer.unheard()
            return
        if self._debug and (action_answer := await debug_action(agent, body)) is not None:
            await answer.value(action_answer)
            return
        handler = agent.entrypoint
        if handler is None:
            decode_body(body)
            raise Refusal(500, "No entrypoint defined")
        payload = decode_body(body) if handler.decode is None else body
        context = None
        if handler.context is not None:
            keep_body(scope, body)
            context = request.values.context(agent_request(scope, partial(disconnects.has_left, answer)))
        outcome = await self._outcome(handler, payload, context, disconnects, receive, answer)
        if isinstance(outcome, bytes):
            await answer.value(outcome)
        elif isinstance(outcome, EventStream):
            here = agent.execution.runs_here(handler)
            await answer.stream(outcome, disconnects, receive, iterate_here=here)
        elif isinstance(outcome, Failure):
            await self._answer_failure(outcome, scope, receive, answer)
        elif outcome is None:
            logger.info("The client went away before the handler had an answer for it")
            await answer.unheard()
        else:
            await self._respond(outcome, scope, receive, answer)

    async def _outcome(
        self,
        handler: Handler,
        payload: Any,
        context: Any,
        disconnects: DisconnectWatcher,
        receive: Receive,
        answer: Answer,
    ) -> Any:
        """What the handler comes to; ``None`` where the client leaves first. The handler then runs on unheard."""
        execution = self._agent.execution
        if not execution.has_room_for(handler):
            raise Refusal(503, "Service busy", "Every thread is taken by a stream whose client reads slowly")
        call = HandlerCall(execution, handler, payload, context, disconnects.callbacks, answer)
        here = execution.runs_here(handler)
        disconnects.watch(answer, receive, answer.record.leave if here else call.abandon)
        try:
            outcome = await (call.run_here() if here else call.run())
        finally:
            disconnects.unwatch(answer)
        if outcome is None:
            answer.list_until(call)
        elif here and answer.record.left:
            if isinstance(outcome, EventStream):
                outcome.close()
            if isinstance(outcome, AsyncEventStream):
                await outcome.iterate()  # which closes its generator
            return None
        return outcome

    async def _expire(self, answer: Answer) -> None:
        """Tell a client whose invocation was cancelled because the service ends, where that still can be told."""
        answer.record.expired = True
        if not answer.started:
            refusal = shutting_down()
            await answer.value(encode(refusal.answer), refusal.status, [CLOSE])

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
        await self._respond(as_responder(response), scope, receive, answer)

    async def _respond(self, responder: Any, scope: Scope, receive: Receive, answer: Answer) -> None:
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
                answer.record.left = True
            return message

        handler = self._agent.entrypoint
        name = handler.name if handler is not None else "a response"
        error = await serve_on_agent_loop(self._agent.execution, name, respond, watched_receive, answer.send)
        if error is None:
            return
        if answer.started:
            raise BrokenResponseError("the handler's response failed after it had begun") from error
        await answer.value(answer.internal_error(message or type(error).__name__), 500)
