"""Asks an MCP server what the library's own client can ask, and prints what came of it as JSON."""

import asyncio
import json
import sys
from typing import Any

from mcp import ClientSession

try:
    from mcp.client.streamable_http import streamable_http_client
except ImportError:
    from mcp.client.streamable_http import streamablehttp_client as streamable_http_client


def text_of(result: Any) -> str:
    return "".join(part.text for part in result.content)


async def main(url: str) -> dict[str, Any]:
    progress: list[float] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        progress.append(done)

    async with streamable_http_client(url) as streams, ClientSession(streams[0], streams[1]) as session:
        await session.initialize()
        tools = sorted(tool.name for tool in (await session.list_tools()).tools)
        delays = [0.05 * (number % 3) for number in range(6)]
        answers = await asyncio.gather(*(session.call_tool("who", {"delay": delay}) for delay in delays))
        counted = await session.call_tool("count", {"to": 3}, progress_callback=on_progress)
        failed = await session.call_tool("fail", {})
        resource = await session.read_resource("memo://first")
        prompt = await session.get_prompt("greet", {"name": "Ada"})
        return {
            "tools": tools,
            "who": [json.loads(text_of(answer)) for answer in answers],
            "counted": text_of(counted),
            "progress": progress,
            "failed": [bool(getattr(failed, "isError", None) or getattr(failed, "is_error", None)), text_of(failed)],
            "resource": resource.contents[0].text,
            "prompt": prompt.messages[0].content.text,
        }


print(json.dumps(asyncio.run(main(sys.argv[1]))))
