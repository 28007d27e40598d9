"""An agent of the OpenAI Agents SDK, with an SDK session for each session."""

import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from agents import Agent, Runner, SessionSettings, SQLiteSession, function_tool
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor
from scripted_model import ScriptedModel

OpenAIAgentsInstrumentor().instrument()  # in the place of the SDK's own export to OpenAI

app = BedrockAgentCoreApp()
sessions: dict[str, SQLiteSession] = {}


class Ask(msgspec.Struct):
    """A question to the agent."""

    prompt: str
    stream: bool = False


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}, at {len(city) + 15} °C."


agent = Agent(
    name="weather agent",
    instructions="Be brief.",
    model=os.environ.get("MODEL") or ScriptedModel(),
    tools=[weather],
)


def session_of(session_id: str | None) -> SQLiteSession | None:
    """The conversation of a session, of which the model hears the last 40 items."""
    if session_id is not None and session_id not in sessions:
        sessions[session_id] = SQLiteSession(session_id, session_settings=SessionSettings(limit=40))
    return sessions.get(session_id)


@app.session_end
def forget(session_id: str) -> None:
    """Drop the conversation of a session that has ended."""
    if session := sessions.pop(session_id, None):
        session.close()


async def events(prompt: str, session: SQLiteSession | None) -> AsyncIterator[dict[str, Any]]:
    """Answer token by token."""
    result = Runner.run_streamed(agent, prompt, session=session)
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield {"token": event.data.delta}
        elif event.type == "run_item_stream_event" and event.name == "tool_called":
            yield {"tool": event.item.raw_item.name, "input": event.item.raw_item.arguments}


@app.entrypoint
async def invoke(payload: Ask, context: RequestContext) -> Any:
    """Answer a question."""
    session = session_of(context.session_id)
    if payload.stream:
        return events(payload.prompt, session)
    result = await Runner.run(agent, payload.prompt, session=session)
    return {"answer": result.final_output}


if __name__ == "__main__":
    app.run()
