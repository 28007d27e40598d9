"""An AG-UI agent on our runtime, or one import line changed, the Python SDK: ``python ag_ui_agent.py PORT HANDLER``."""

import sys
from collections.abc import AsyncIterator
from typing import Any

from ag_ui.core import RunAgentInput, TextMessageContentEvent
from litestar_agentcore import AGUIApp

EVENTS = 100

app = AGUIApp()


@app.entrypoint
async def agent(run: RunAgentInput) -> AsyncIterator[Any]:
    for number in range(EVENTS):
        yield TextMessageContentEvent(message_id="message-2", delta=f"token {number}")


if __name__ == "__main__":
    app.run(int(sys.argv[1]), "127.0.0.1", access_log=False, log_level="warning", loop="uvloop", http="httptools")
