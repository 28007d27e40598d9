"""An executor that echoes, over A2A: served by this runtime, by the Python SDK, or by the library alone."""

import sys
from importlib import import_module
from typing import Any

import uvicorn
from a2a.helpers import new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface


class Echo(AgentExecutor):  # type: ignore[misc]  # which is Any where the library is not installed
    async def execute(self, context: Any, event_queue: Any) -> None:
        await event_queue.enqueue_event(new_text_message(context.get_user_input()))

    async def cancel(self, context: Any, event_queue: Any) -> None:
        raise NotImplementedError


def library(executor: Any, card: Any) -> Any:
    """The library alone, with the ``/ping`` that is waited for."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    handler = DefaultRequestHandler(executor, InMemoryTaskStore(), card)
    ping = Route("/ping", lambda request: JSONResponse({"status": "Healthy"}))
    return Starlette(routes=[ping, *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True)])


def main(runtime: str, port: int) -> None:
    interface = AgentInterface(protocol_binding="JSONRPC", protocol_version="1.0", url=f"http://127.0.0.1:{port}/")
    card = AgentCard(
        name="echo",
        description="Echoes",
        version="1",
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text"],
        default_output_modes=["text"],
        supported_interfaces=[interface],
    )
    if runtime == "ours":
        from litestar_agentcore import build_a2a_app

        build_a2a_app(Echo(), card).run(port, access_log=False)
        return
    if runtime == "sdk":
        app: Any = import_module("bedrock_agentcore.runtime").build_a2a_app(Echo(), card)
    else:
        app = library(Echo(), card)
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
