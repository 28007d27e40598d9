"""A Strands agent: one ``Agent`` for each session, which remembers the conversation."""

import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from scripted_model import ScriptedModel
from strands import Agent, tool
from strands.models import BedrockModel

app = BedrockAgentCoreApp()
model = BedrockModel(model_id=os.environ["MODEL"]) if os.environ.get("MODEL") else ScriptedModel()
agents: dict[str, Agent] = {}


class Ask(msgspec.Struct):
    """A question to the agent."""

    prompt: str
    stream: bool = False


@tool
def weather(city: str) -> str:
    """Tell the weather in a city.

    Args:
        city: The city's name.
    """
    return f"It is sunny in {city}, at {len(city) + 15} °C."


def agent_of(session_id: str | None) -> Agent:
    """The agent of a session; a new one for a request that belongs to none."""
    if session_id in agents:
        return agents[session_id]
    agent = Agent(name="weather agent", model=model, tools=[weather], system_prompt="Be brief.", callback_handler=None)
    if session_id:
        agents[session_id] = agent
    return agent


@app.session_end
def forget(session_id: str) -> None:
    """Drop the agent of a session that has ended."""
    agents.pop(session_id, None)


async def events(agent: Agent, prompt: str) -> AsyncIterator[dict[str, Any]]:
    """Answer token by token."""
    async for event in agent.stream_async(prompt):
        if "data" in event:
            yield {"token": event["data"]}
        for content in event.get("message", {}).get("content", ()):
            if "toolUse" in content:
                yield {"tool": content["toolUse"]["name"], "input": content["toolUse"]["input"]}


@app.entrypoint
async def invoke(payload: Ask, context: RequestContext) -> Any:
    """Answer a question."""
    agent = agent_of(context.session_id)
    if payload.stream:
        return events(agent, payload.prompt)
    result = await agent.invoke_async(payload.prompt)
    return {"answer": str(result).strip()}


if __name__ == "__main__":
    app.run()
