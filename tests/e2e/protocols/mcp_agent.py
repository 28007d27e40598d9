"""An MCP server whose tools do what people's tools do, under both release lines of the library."""

# mypy: disallow-untyped-decorators=False

import asyncio
import os
import sys
import threading
import time
from typing import Any

from litestar_agentcore import BedrockAgentCoreContext
from litestar_agentcore.mcp import serve_mcp

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context
except ImportError:  # release 1
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer

server = MCPServer("tools")
notes: list[str] = []


@server.tool()
async def who(delay: float = 0.0) -> dict[str, Any]:
    """What a tool knows of the request that called it, before and after it has waited."""
    before = BedrockAgentCoreContext.get_request_id()
    await asyncio.sleep(delay)
    return {
        "request_id": BedrockAgentCoreContext.get_request_id(),
        "same": before == BedrockAgentCoreContext.get_request_id(),
        "session_id": BedrockAgentCoreContext.get_session_id(),
        "headers": BedrockAgentCoreContext.get_request_headers(),
        "thread": threading.current_thread().name,
        "loop": id(asyncio.get_running_loop()),
    }


@server.tool()
async def block(seconds: float) -> str:
    """Blocks, and has no business to."""
    await asyncio.sleep(0)
    time.sleep(seconds)
    return "done"


@server.tool()
async def count(context: Context, to: int, delay: float = 0.05) -> str:
    """Reports how far it is."""
    try:
        for number in range(to):
            await context.report_progress(number, to)
            await asyncio.sleep(delay)
    except asyncio.CancelledError:
        notes.append("cancelled")
        raise
    return "counted"


@server.tool()
async def traced(name: str) -> str:
    """Records a span of its own, as a framework does."""
    from opentelemetry import trace

    with trace.get_tracer("framework").start_as_current_span(name):
        await asyncio.sleep(0)
    return name


@server.tool()
def fail() -> str:
    """Raises."""
    raise LookupError("there is no such thing")


@server.tool()
def noted() -> list[str]:
    """What has been noted so far."""
    return notes


@server.resource("memo://{name}")
def memo(name: str) -> str:
    """A memo."""
    return f"The memo {name}"


@server.prompt()
def greet(name: str) -> str:
    """A greeting."""
    return f"Say hello to {name}"


if __name__ == "__main__":
    serve_mcp(server, port=int(sys.argv[1]), stateless=os.environ.get("STATELESS") != "no")
