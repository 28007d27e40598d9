"""A LlamaIndex agent, with a memory for each session."""

import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCall
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.memory import Memory
from llama_index.core.utils import get_tokenizer
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from scripted_model import ScriptedModel

LlamaIndexInstrumentor().instrument()
logging.getLogger("openinference").setLevel(logging.ERROR)  # it warns of each token where traces are not recorded

app = BedrockAgentCoreApp()
tokenizer = get_tokenizer()  # takes its time to load, so not in the first request
memories: dict[str, Memory] = {}


class Ask(msgspec.Struct):
    """A question to the agent."""

    prompt: str
    stream: bool = False


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}, at {len(city) + 15} °C."


def language_model() -> FunctionCallingLLM:
    """The model that ``MODEL`` names, or the scripted one."""
    if name := os.environ.get("MODEL"):
        from llama_index.llms.openai import OpenAI  # of the package llama-index-llms-openai

        return OpenAI(model=name)
    return ScriptedModel()


agent = FunctionAgent(name="weather agent", tools=[weather], llm=language_model(), system_prompt="Be brief.")


def memory_of(session_id: str | None) -> Memory | None:
    """The memory of a session, of which the model hears the last 4,000 tokens."""
    if session_id is not None and session_id not in memories:
        memories[session_id] = Memory.from_defaults(session_id, token_limit=4000, tokenizer_fn=tokenizer)
    return memories.get(session_id)


@app.session_end
def forget(session_id: str) -> None:
    """Drop the memory of a session that has ended."""
    memories.pop(session_id, None)


async def events(prompt: str, memory: Memory | None) -> AsyncIterator[dict[str, Any]]:
    """Answer token by token."""
    run = agent.run(prompt, memory=memory)
    async for event in run.stream_events():
        if isinstance(event, AgentStream) and event.delta:
            yield {"token": event.delta}
        elif type(event) is ToolCall:
            yield {"tool": event.tool_name, "input": event.tool_kwargs}
    await run  # raises what the run has


@app.entrypoint
async def invoke(payload: Ask, context: RequestContext) -> Any:
    """Answer a question."""
    memory = memory_of(context.session_id)
    if payload.stream:
        return events(payload.prompt, memory)
    return {"answer": str(await agent.run(payload.prompt, memory=memory))}


if __name__ == "__main__":
    app.run()
