"""One WebSocket connection, from the handshake to the close."""

import asyncio
import logging
from functools import partial
from typing import Any

from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Message, Receive, ReceiveMessage, Send

from litestar_agentcore.asgi_bridge import serve_on_agent_loop
from litestar_agentcore.authentication import Authentication
from litestar_agentcore.connections import NO_STATUS, ClientDisconnected, agent_websocket
from litestar_agentcore.protocol.context import RequestValues, current_request, enter_request
from litestar_agentcore.protocol.headers import RawHeader, RequestHeaders, response_headers
from litestar_agentcore.protocol.models import Refusal, shutting_down
from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.runtime.admission import Place
from litestar_agentcore.runtime.agent import Agent, WebSocketHandler
from litestar_agentcore.runtime.handler import name_of
from litestar_agentcore.runtime.running import Running

logger = logging.getLogger(__name__)

NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
"""Close codes of RFC 6455, section 7.4.1, and of the registry that it founded."""

_CLOSING_TURNS = 3
"""In how many turns of its loop a server closes a connection that was broken or refused before the handshake."""

AnySocket = WebSocket[Any, Any, Any]


class WebSocketConnection:
    """Hands one connection to the author's handler, on the agent's loop, and closes it when that is done.

    Args:
        agent: The agent that is talked to.
        socket: The connection, before the handshake.
        authentication: Who may talk to it; ``None`` for everybody.
        route: The template of its path, for spans.
    """

    def __init__(
        self, agent: Agent, socket: AnySocket, authentication: Authentication | None = None, route: str = "/ws"
    ) -> None:
        self._agent = agent
        self._route = route
        self._authentication = authentication
        self._subprotocol: str | None = None
        """The subprotocol to accept with where the handler names none."""
        self._scope = socket.scope
        self._receive = socket.receive
        self._send = socket.send
        self._accepted = False
        self._closed = False
        self._client_left = False
        self._running: Running | None = None
        self._disconnect: Any = None
        """The last message, once the client has left."""
        self._status = 403
        """The HTTP status of a handshake that is not accepted: a server's own, or the handler's."""

    async def serve(self) -> None:
        """Serve the connection until it is closed."""
        await self._serve_or_refuse()
        if self._disconnect is not None or not self._accepted:
            # Until it has closed it, uvicorn takes an application that has returned for one that has failed.
            for _ in range(_CLOSING_TURNS):
                await asyncio.sleep(0)

    async def _serve_or_refuse(self) -> None:
        agent = self._agent
        request = agent.headers.read(self._scope["headers"])
        if self._authentication is not None:
            try:
                self._subprotocol = await self._authentication.admit(self._scope, request)
            except Refusal as refused:
                await self._refuse(request.values, refused)
                return
        values = request.values
        if (refusal := self._check(request)) is not None:
            await self._refuse(values, refusal)
            return
        if agent.refuses_work:
            await self._refuse(values, shutting_down())
            return
        place = None
        if (admission := agent.websocket_admission) is not None:
            place = admission.enter(None, asyncio.get_running_loop())
            if place is None:
                await self._refuse(values, Refusal(503, "Too many WebSockets", headers=[(b"retry-after", b"1")]))
                return
        try:
            await self._serve(request)
        finally:
            if place is not None:
                self._release_when_ended(place)

    @property
    def handler(self) -> WebSocketHandler | None:
        """Who holds the conversation; ``None`` where nobody is registered yet."""
        return self._agent.websocket_handler

    def _check(self, request: RequestHeaders) -> Refusal | None:
        """The refusal of a handshake that makes no sense."""
        return request.refusal

    def _denial(self, refusal: Refusal) -> tuple[int, bytes, list[RawHeader]]:
        """The status, the body and the headers of the answer to a handshake that is refused."""
        return refusal.status, encode(refusal.answer), list(refusal.headers)

    async def _serve(self, request: RequestHeaders) -> None:
        agent, values = self._agent, request.values
        telemetry = agent.telemetry
        parent, experiment = telemetry.parent_of(request.carrier)
        token = enter_request(values, experiment)
        self._record = record = telemetry.websocket(self._scope, parent, request.host, request.user_agent, self._route)
        self._running = running = Running("WebSocket", values, asyncio.get_running_loop())
        agent.running.add(running)
        kept = None if values.session_id is None else agent.sessions.begin(values.session_id)
        try:
            await self._converse(values, running)
        except asyncio.CancelledError:
            running.outlive_client(partial(agent.running.discard, running))  # its ``finally`` may take a while
            if not running.expired:
                raise
            running.resume()
            await self._close(GOING_AWAY)
        finally:
            if not running.outlives_client:
                agent.running.discard(running)
            if kept is not None:
                agent.sessions.end(kept)
            record.end(101 if self._accepted else self._status)
            current_request.reset(token)

    def _release_when_ended(self, place: Place) -> None:
        """Give up a place when the handler's code has ended, which it may not have where it was cancelled."""
        if self._running is None or self._running.work is None:
            place.release()
        else:
            self._running.work.when_ended(place.release)

    async def _converse(self, values: RequestValues, running: Running) -> None:
        handler = self.handler
        if handler is None:
            logger.error("A WebSocket was opened, and no websocket handler is registered")
            await self._close(INTERNAL_ERROR)
            return

        async def run(receive: Receive, send: Send) -> None:
            await self._run(handler, values, receive, send)

        error = await serve_on_agent_loop(
            self._agent.execution, name_of(handler), run, self._receive_message, self._send_message, running
        )
        if error is None:
            await self._close(NORMAL_CLOSURE)
        elif not self._client_left:
            await self._close(INTERNAL_ERROR)

    async def _run(self, handler: WebSocketHandler, values: RequestValues, receive: Receive, send: Send) -> None:
        """Call the handler, on the agent's loop, and tell its own errors from those of a client that has left."""

        async def noting_receive() -> ReceiveMessage:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._client_left = True
            return message

        async def noting_send(message: Message) -> None:
            try:
                await send(message)
            except (OSError, WebSocketDisconnect):  # the ASGI specification, 2.4: the client is gone
                self._client_left = True
                raise

        socket = agent_websocket(self._scope, noting_receive, noting_send)
        try:
            await handler(socket, values.context(socket))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._client_left:
                logger.debug("The client left the WebSocket")
            else:
                self._record.fail(error)
                logger.exception("The websocket handler raised")
            raise

    async def _receive_message(self) -> ReceiveMessage:
        message: Any = await self._receive()
        limit = self._agent.settings.max_websocket_message_bytes
        if message["type"] == "websocket.receive" and _is_larger(message, limit):
            logger.warning("A WebSocket message exceeds the limit of %d bytes, and the connection is closed", limit)
            await self._close(MESSAGE_TOO_BIG)
            message = {"type": "websocket.disconnect", "code": MESSAGE_TOO_BIG, "reason": ""}
        if message["type"] == "websocket.disconnect":
            self._closed = True
            self._disconnect = message
        received: ReceiveMessage = message
        return received

    async def _send_message(self, message: Message) -> None:
        if (disconnect := self._disconnect) is not None:  # which is read before the handler asks for it
            raise ClientDisconnected(disconnect.get("code") or NO_STATUS, disconnect.get("reason") or "")
        if message["type"] == "websocket.accept":
            self._accepted = True
            if self._subprotocol is not None and not message["subprotocol"]:
                message = {**message, "subprotocol": self._subprotocol}
        elif message["type"] == "websocket.http.response.start":  # the handshake is denied
            self._closed = True
            self._status = message["status"]
        elif message["type"] == "websocket.close":
            self._closed = True
        try:
            await self._send(message)
        except (OSError, WebSocketDisconnect):
            self._closed = True
            raise

    async def _close(self, code: int) -> None:
        """Close the connection with a code that reaches the client, which takes an accepted handshake."""
        if self._closed:
            return
        self._closed = True
        if not self._accepted and code != NORMAL_CLOSURE:
            self._accepted = True
            await self._send({"type": "websocket.accept", "subprotocol": self._subprotocol, "headers": []})
        await self._send({"type": "websocket.close", "code": code, "reason": ""})

    async def _refuse(self, values: RequestValues, refusal: Refusal) -> None:
        """Answer a handshake that is not let in: with HTTP where the server can, else with a close code."""
        token = enter_request(values)
        logger.warning("The WebSocket was refused: %s", refusal.reason)
        current_request.reset(token)
        if "websocket.http.response" not in (self._scope.get("extensions") or {}):
            await self._close(TRY_AGAIN_LATER if refusal.status == 503 else POLICY_VIOLATION)
            return
        ids = response_headers(values.request_id or "", values.session_id)
        status, body, own = self._denial(refusal)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *ids, *own]
        start: Any = {"type": "websocket.http.response.start", "status": status, "headers": headers}
        await self._send(start)
        end: Any = {"type": "websocket.http.response.body", "body": body, "more_body": False}
        await self._send(end)


_MOST_UTF_8_BYTES = 4
"""Of one character."""


def _is_larger(message: Any, limit: int) -> bool:
    text = message.get("text")
    if text is None:
        return len(message.get("bytes") or b"") > limit
    return len(text) * _MOST_UTF_8_BYTES > limit and len(text.encode()) > limit
