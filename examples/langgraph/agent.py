"""A LangGraph agent, compiled once, whose thread is the session."""

import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from openinference.instrumentation.langchain import LangChainInstrumentor
from scripted_model import ScriptedModel

LangChainInstrumentor().instrument()

app = BedrockAgentCoreApp()


class Ask(msgspec.Struct):
    """A question to the agent."""

    prompt: str
    stream: bool = False


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}, at {len(city) + 15} °C."


model = init_chat_model(os.environ["MODEL"]) if os.environ.get("MODEL") else ScriptedModel()
threads = InMemorySaver()
graph = create_agent(model, [weather], system_prompt="Be brief.", name="weather agent", checkpointer=threads)
forgetful_graph = create_agent(model, [weather], system_prompt="Be brief.", name="weather agent")


@app.session_end
def forget(session_id: str) -> None:
    """Drop the thread of a session that has ended."""
    threads.delete_thread(session_id)


async def events(steps: AsyncIterator[Any]) -> AsyncIterator[dict[str, Any]]:
    """Answer token by token."""
    async for message, _ in steps:
        if isinstance(message, AIMessageChunk) and message.text:
            yield {"token": message.text}
        elif isinstance(message, ToolMessage):
            yield {"tool": message.name, "result": message.text}


@app.entrypoint
async def invoke(payload: Ask, context: RequestContext) -> Any:
    """Answer a question."""
    question = {"messages": [HumanMessage(payload.prompt)]}
    config = {"configurable": {"thread_id": context.session_id}}
    agent = graph if context.session_id else forgetful_graph
    if payload.stream:
        return events(agent.astream(question, config, stream_mode="messages"))
    state = await agent.ainvoke(question, config)
    return {"answer": state["messages"][-1].text}


if __name__ == "__main__":
    app.run()
