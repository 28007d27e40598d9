"""An agent that is served by several worker processes, and says which of them has answered."""

import asyncio
import os
import sys
import time
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp(debug=True)


@app.entrypoint
async def agent(payload: dict[str, Any]) -> Any:
    match payload.get("do"):
        case "task":
            return app.add_async_task(payload["name"])
        case "finish":
            return app.complete_async_task(payload["id"])
        case "fork":
            return fork_and_sleep()
        case "sleep":
            await asyncio.sleep(payload["seconds"])
        case "force":
            app.force_ping_status(payload["status"])
        case "clear":
            app.clear_forced_ping_status()
    return {"pid": os.getpid(), "parent": os.getppid()}


def fork_and_sleep() -> int:
    """A child that outlives this process for a while, and has inherited all that it had open."""
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    return child


if __name__ == "__main__":
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else None
    app.run(port=int(sys.argv[1]), workers=workers)
