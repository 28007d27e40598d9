"""``/ws``."""

from typing import Any

from litestar import Controller, WebSocket, websocket

from litestar_agentcore.authentication import Authentication
from litestar_agentcore.protocol.headers import handshake_headers
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.websocket import WebSocketConnection


def websocket_controller(agent: Agent, authentication: Authentication | None) -> type[Controller]:
    """Make the controller that holds the conversations of an agent.

    Args:
        agent: The agent.
        authentication: Who may talk to it; ``None`` for everybody.

    Returns:
        A Litestar controller.
    """

    class WebSocketController(Controller):
        @websocket("/ws", name="agentcore-ws")
        async def converse(self, socket: WebSocket[Any, Any, Any]) -> None:
            socket.scope["headers"] = handshake_headers(socket.scope["headers"], socket.scope.get("query_string", b""))
            await WebSocketConnection(agent, socket, authentication).serve()

    return WebSocketController
