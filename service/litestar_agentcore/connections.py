"""Litestar's request and WebSocket with what agents written for Starlette ask of theirs.

Starlette itself is not needed, and not imported. Where the program has loaded it, its exception and state classes are
the ones that agents see.
"""

import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, cast

from litestar import Request, WebSocket
from litestar.connection import ASGIConnection
from litestar.connection.base import empty_receive, empty_send
from litestar.datastructures import Headers, MultiDict
from litestar.exceptions import SerializationException, WebSocketDisconnect
from litestar.serialization import default_serializer
from litestar.types import Message, Receive, Scope, Send, Serializer
from litestar.types.asgi_types import WebSocketMode

from litestar_agentcore.protocol.headers import RawHeader, sendable_headers
from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.responses import as_responder

NO_STATUS = 1005
ABNORMAL_CLOSURE = 1006
"""Close codes of RFC 6455, section 7.4.1, of connections that ended without a code, and without a close frame."""


def agent_request(scope: Scope, client_left: Callable[[], bool]) -> "AgentRequest":
    """Make the request of an invocation.

    Args:
        scope: Its ASGI scope.
        client_left: Tells whether its client has left. Called from any thread.

    Returns:
        A request that is also of the ``request_class`` of the application.
    """
    chosen = scope["litestar_app"].request_class
    request: AgentRequest = (AgentRequest if chosen is Request else combined(AgentRequest, chosen))(scope)
    request.client_left = client_left
    return request


def agent_websocket(scope: Scope, receive: Receive, send: Send) -> "AgentWebSocket":
    """Make the WebSocket of a handler.

    Args:
        scope: Its ASGI scope.
        receive: The ASGI receive function.
        send: The ASGI send function.

    Returns:
        A WebSocket that is also of the ``websocket_class`` of the application.
    """
    websocket: AgentWebSocket = combined(AgentWebSocket, scope["litestar_app"].websocket_class)(scope, receive, send)
    return websocket


def combined(own: Any, chosen: Any) -> Any:
    """A class of this module and an application's own as one, in which what the application's defines wins.

    Args:
        own: :class:`AgentRequest` or :class:`AgentWebSocket`.
        chosen: The application's ``request_class`` or ``websocket_class``.
    """
    if issubclass(own, chosen):
        return own
    return chosen if issubclass(chosen, own) else _subclass(chosen, own)


@lru_cache(maxsize=100)
def _subclass(chosen: Any, own: Any) -> Any:
    return type(chosen.__name__, (chosen, own), {"__module__": chosen.__module__})


class ConnectionHeaders(Headers):
    """Headers, also under the names that Starlette's have.

    Args:
        raw: The headers of the ASGI scope.
    """

    def __init__(self, raw: Iterable[RawHeader]) -> None:
        self.raw = list(raw)
        """Names and values as they arrived, in order."""
        super().__init__(self.raw)

    def getlist(self, key: str) -> list[str]:
        """All values of a header, in order; empty where there is none."""
        return self.getall(key, [])


class ConnectionQuery(MultiDict[Any]):
    """Query parameters, also under the name that Starlette's have."""

    def getlist(self, key: str) -> list[Any]:
        """All values of a parameter, in order; empty where there is none."""
        return self.getall(key, [])


class _AgentConnection(ASGIConnection[Any, Any, Any, Any]):
    _headers: ConnectionHeaders | None = None

    @property
    def headers(self) -> ConnectionHeaders:
        """The headers of the request."""
        if self._headers is None:
            self._headers = ConnectionHeaders(self.scope["headers"])
        return self._headers

    @property
    def query_params(self) -> ConnectionQuery:
        """The query parameters of the URL."""
        return ConnectionQuery(super().query_params)

    def __getitem__(self, key: str) -> Any:
        return self.scope[key]  # type: ignore[literal-required]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scope)


class AgentRequest(_AgentConnection, Request[Any, Any, Any]):
    """The request of an invocation."""

    client_left: Callable[[], bool]

    async def is_disconnected(self) -> bool:
        """Whether the client has left."""
        return self.client_left()


class WebSocketState(Enum):
    """The states of either side of a WebSocket, where Starlette's enum of that name is not loaded."""

    CONNECTING = 0
    CONNECTED = 1
    DISCONNECTED = 2
    RESPONSE = 3


class ClientDisconnected(WebSocketDisconnect):
    """The client left the WebSocket.

    Args:
        code: The close code of RFC 6455, section 7.4.
        reason: The text that came with it.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(detail=f"The client left the WebSocket with code {code}", code=code)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.detail


class InvalidJSON(SerializationException, json.JSONDecodeError):
    """A message of a WebSocket is not JSON."""

    def __init__(self, msg: str, doc: str, pos: int) -> None:
        json.JSONDecodeError.__init__(self, msg, doc, pos)
        self.detail = ValueError.__str__(self)

    def __str__(self) -> str:
        return self.detail


class AgentWebSocket(_AgentConnection, WebSocket[Any, Any, Any]):
    """The WebSocket of a handler of ``/ws``."""

    def __init__(self, scope: Scope, receive: Receive = empty_receive, send: Send = empty_send) -> None:
        super().__init__(scope, receive, send)
        self._application_state = WebSocketState.CONNECTING
        self._code = NO_STATUS
        self._reason = ""

    @property
    def client_state(self) -> Any:
        """Whether the client is connected: a member of Starlette's ``WebSocketState``, or of ours."""
        states = {"init": WebSocketState.CONNECTING, "disconnect": WebSocketState.DISCONNECTED}
        return _public_state(states.get(self.connection_state, WebSocketState.CONNECTED))

    @property
    def application_state(self) -> Any:
        """What the handler did: a member of Starlette's ``WebSocketState``, or of ours."""
        return _public_state(self._application_state)

    def receive_wrapper(self, receive: Receive) -> Receive:
        """Wrap ``receive`` to follow the state of the connection."""
        receive_message = super().receive_wrapper(receive)

        async def wrapped_receive() -> Any:
            if self.connection_state == "disconnect":
                raise self._disconnected()
            message = await receive_message()
            if message["type"] == "websocket.disconnect":
                self._code = message.get("code") or NO_STATUS
                self._reason = cast("dict[str, Any]", message).get("reason") or ""
            return message

        return wrapped_receive

    def send_wrapper(self, send: Send) -> Send:
        """Wrap ``send`` to follow the state of the connection."""

        async def wrapped_send(message: Message) -> None:
            if self.connection_state == "disconnect":
                raise self._disconnected()
            if self._application_state is WebSocketState.DISCONNECTED:
                raise RuntimeError(f"The WebSocket is closed, and {message['type']} cannot be sent any more")
            self._application_state = _state_after(message, self._application_state)
            try:
                await send(message)
            except (OSError, WebSocketDisconnect) as error:  # OSError: the ASGI specification, 2.4
                self.connection_state = "disconnect"
                self._code = getattr(error, "code", ABNORMAL_CLOSURE)
                raise self._disconnected() from error

        return wrapped_send

    def _disconnected(self) -> WebSocketDisconnect:
        starlettes = getattr(sys.modules.get("starlette.websockets"), "WebSocketDisconnect", None)
        kind = ClientDisconnected if starlettes is None else _disconnected_for(starlettes)
        return kind(self._code, self._reason)

    async def accept(  # type: ignore[override] # mypy sees a conflict where every call of Litestar's form is allowed
        self,
        subprotocol: str | None = None,
        headers: Headers | Mapping[str, Any] | Iterable[tuple[bytes, bytes]] | None = None,
        *,
        subprotocols: str | None = None,
    ) -> None:
        """Accept the connection.

        Args:
            subprotocol: The subprotocol to speak, one of those that the client offers.
            headers: Headers for the answer to the handshake.
            subprotocols: Litestar's name of ``subprotocol``.

        Raises:
            WebSocketDisconnect: The client has left.
        """
        if self.connection_state == "init":
            await self.receive()
        if self._application_state is not WebSocketState.CONNECTING:
            return
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        chosen = subprotocols if subprotocol is None else subprotocol
        await self.send({"type": "websocket.accept", "subprotocol": chosen, "headers": sendable_headers(pairs)})

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Close the connection. Does nothing where it is closed already, or the client has left.

        Args:
            code: The close code of RFC 6455, section 7.4.
            reason: A text for the client.
        """
        if self.connection_state == "disconnect" or self._application_state is WebSocketState.DISCONNECTED:
            return
        with contextlib.suppress(WebSocketDisconnect):
            await super().close(code, reason)

    async def send_denial_response(self, response: Any) -> None:
        """Answer the handshake with an HTTP response in the place of :meth:`accept`.

        Args:
            response: A Litestar or Starlette response.

        Raises:
            RuntimeError: The server does not have the ASGI extension ``websocket.http.response``.
            TypeError: It is no response.
        """
        if "websocket.http.response" not in (self.scope.get("extensions") or {}):
            raise RuntimeError("The server cannot answer a WebSocket handshake with an HTTP response")
        if (respond := as_responder(response)) is None:
            raise TypeError(f"A denial takes a response, and {type(response).__name__} is none")

        async def send(message: Any) -> None:
            if not message["type"].startswith("websocket."):  # as Litestar's responses have it
                message = message | {"type": f"websocket.{message['type']}"}
            await self.send(message)

        await respond(self.scope, self.receive, send)

    async def receive_data(self, mode: WebSocketMode) -> Any:
        """Receive a message.

        Args:
            mode: ``text`` or ``binary``.

        Raises:
            WebSocketDisconnect: The client has left.
        """
        if self.connection_state == "init":
            await self.accept()
        message = await self.receive()
        if message["type"] == "websocket.disconnect":
            raise self._disconnected()
        return message.get("text") or "" if mode == "text" else message.get("bytes") or b""

    async def receive_json(self, mode: WebSocketMode = "text") -> Any:
        """Receive a message that is JSON, as ``json.loads`` takes it.

        Args:
            mode: ``text`` or ``binary``.

        Raises:
            json.JSONDecodeError: It is not JSON; Litestar's ``SerializationException`` as well.
            WebSocketDisconnect: The client has left.
        """
        return _decoded(await self.receive_data(mode))

    def iter_text(self) -> AsyncGenerator[str, None]:
        """The text messages, until the client leaves."""
        return self.iter_data("text")

    def iter_bytes(self) -> AsyncGenerator[bytes, None]:
        """The binary messages, until the client leaves."""
        return self.iter_data("binary")

    async def iter_json(self, mode: WebSocketMode = "text") -> AsyncGenerator[Any, None]:
        """The messages, each decoded as :meth:`receive_json` does, until the client leaves."""
        async for data in self.iter_data(mode):
            yield _decoded(data)

    async def send_json(
        self,
        data: Any,
        mode: WebSocketMode = "text",
        encoding: str = "utf-8",
        serializer: Serializer = default_serializer,
    ) -> None:
        """Send a value as JSON, encoded as the answers of ``/invocations`` are.

        Args:
            data: Any value.
            mode: ``text`` or ``binary``.
            encoding: Has no effect on JSON; as Litestar has it.
            serializer: An encoder hook of msgspec, to encode with that instead.

        Raises:
            WebSocketDisconnect: The client has left.
        """
        if serializer is default_serializer:
            await self.send_data(encode(data), mode)
        else:
            await super().send_json(data, mode, encoding, serializer)


def _decoded(data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise InvalidJSON(error.msg, error.doc, error.pos) from None


def _state_after(message: Message, state: WebSocketState) -> WebSocketState:
    kind: str = message["type"]
    if kind == "websocket.accept":
        return WebSocketState.CONNECTED
    if kind == "websocket.close" or (
        kind == "websocket.http.response.body" and not cast("dict[str, Any]", message).get("more_body", False)
    ):
        return WebSocketState.DISCONNECTED
    return WebSocketState.RESPONSE if kind == "websocket.http.response.start" else state


def _public_state(state: WebSocketState) -> Any:
    return getattr(sys.modules.get("starlette.websockets"), "WebSocketState", WebSocketState)[state.name]


@lru_cache(maxsize=1)
def _disconnected_for(starlettes: type[Exception]) -> type[ClientDisconnected]:
    """What is caught as Litestar's exception and as Starlette's."""
    return type("WebSocketDisconnect", (ClientDisconnected, starlettes), {})
