import asyncio
import sys
import time
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
async def ask_the_model(payload: Any) -> str:
    await asyncio.sleep(0)
    call_without_await(payload["seconds"])
    return "done"


def call_without_await(seconds: float) -> None:
    time.sleep(seconds)


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
