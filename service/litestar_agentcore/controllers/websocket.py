"""``/ws``."""

from typing import Any

from litestar import Controller, WebSocket, websocket

from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.websocket import WebSocketConnection


def websocket_controller(agent: Agent) -> type[Controller]:
    """Make the controller that holds the conversations of an agent.

    Args:
        agent: The agent.

    Returns:
        A Litestar controller.
    """

    class WebSocketController(Controller):
        @websocket("/ws", name="agentcore-ws")
        async def converse(self, socket: WebSocket[Any, Any, Any]) -> None:
            await WebSocketConnection(agent, socket).serve()

    return WebSocketController
