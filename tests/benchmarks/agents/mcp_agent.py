"""A tool that echoes, over MCP: served by this runtime, or by the library alone."""

# mypy: disallow-untyped-decorators=False

import sys

import uvicorn
from mcp.server import MCPServer

server = MCPServer("echo")


@server.tool()
async def echo(prompt: str) -> str:
    """Echo a prompt."""
    return prompt


def main(runtime: str, port: int) -> None:
    if runtime == "ours":
        from litestar_agentcore import mcp_app

        mcp_app(server, json_response=True).run(port, access_log=False)
        return
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    app = server.streamable_http_app(stateless_http=True, json_response=True)
    app.routes.append(Route("/ping", lambda request: JSONResponse({"status": "Healthy"})))
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
