"""A model that follows a script, so that the example needs no key and no network."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

from pydantic_ai import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel


def reply_to(messages: list[ModelMessage]) -> ToolCallPart | TextPart:
    """Ask the tool about the city that a prompt ends in, and else say how many questions there were."""
    questions = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        return TextPart(str(last.content))
    if city := re.search(r"\bin (\w+)\W*$", str(questions[-1].content)):
        return ToolCallPart("weather", {"city": city[1]})
    return TextPart(f"You have asked {len(questions)} questions. Ask me about the weather in a city.")


def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Reply to the last message."""
    return ModelResponse(parts=[reply_to(messages)])


async def stream_reply(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """Reply to the last message word by word."""
    part = reply_to(messages)
    if isinstance(part, ToolCallPart):
        yield {0: DeltaToolCall(part.tool_name, json.dumps(part.args), tool_call_id=part.tool_call_id)}
        return
    for word in re.findall(r"\S+\s*", part.content):
        yield word
        await asyncio.sleep(0.05)


scripted_model = FunctionModel(reply, stream_function=stream_reply, model_name="scripted")
