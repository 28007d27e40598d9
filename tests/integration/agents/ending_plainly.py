"""An agent whose handler is not async."""

import sys
import time

import msgspec
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


class Ask(msgspec.Struct):
    seconds: float


@app.entrypoint
def agent(ask: Ask) -> str:
    time.sleep(ask.seconds)
    return "done"


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
