"""A Pydantic AI agent, which is given the last turns of the session as its history."""

import os
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

import msgspec
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from pydantic_ai import (
    Agent,
    AgentRunResultEvent,
    FunctionToolCallEvent,
    ModelMessage,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from scripted_model import scripted_model

Agent.instrument_all()

app = BedrockAgentCoreApp()
agent = Agent(os.environ.get("MODEL") or scripted_model, name="weather agent", instructions="Be brief.")

Turns = deque[list[ModelMessage]]
conversations: defaultdict[str, Turns] = defaultdict(lambda: deque(maxlen=20))


class Ask(msgspec.Struct):
    """A question to the agent."""

    prompt: str
    stream: bool = False


@agent.tool_plain
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}, at {len(city) + 15} °C."


@app.session_end
def forget(session_id: str) -> None:
    """Drop the conversation of a session that has ended."""
    conversations.pop(session_id, None)


async def events(prompt: str, turns: Turns) -> AsyncIterator[dict[str, Any]]:
    """Answer token by token."""
    async with agent.run_stream_events(prompt, message_history=list(chain(*turns))) as run:
        async for event in run:
            match event:
                case (
                    PartStartEvent(part=TextPart(content=text))
                    | PartDeltaEvent(delta=TextPartDelta(content_delta=text))
                ):
                    yield {"token": text}
                case FunctionToolCallEvent(part=call):
                    yield {"tool": call.tool_name, "input": call.args_as_dict()}
                case AgentRunResultEvent(result=result):
                    turns.append(result.new_messages())


@app.entrypoint
async def invoke(payload: Ask, context: RequestContext) -> Any:
    """Answer a question."""
    turns = conversations[context.session_id] if context.session_id else Turns()
    if payload.stream:
        return events(payload.prompt, turns)
    result = await agent.run(payload.prompt, message_history=list(chain(*turns)))
    turns.append(result.new_messages())
    return {"answer": result.output}


if __name__ == "__main__":
    app.run()
