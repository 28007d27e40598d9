"""A model that follows a script, so that the example needs no key and no network."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult


class ScriptedModel(BaseChatModel):
    """Asks the tool about the city that a prompt ends in, and else says how many questions it has heard."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> "ScriptedModel":
        """Take what tools there are; the script has one."""
        return self

    def _generate(self, messages: list[BaseMessage], *arguments: Any, **options: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=reply_to(messages))])

    async def _astream(
        self, messages: list[BaseMessage], *arguments: Any, **options: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        reply = reply_to(messages)
        if reply.tool_calls:
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_calls=reply.tool_calls))
        for word in re.findall(r"\S+\s*", reply.text):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
            await asyncio.sleep(0.05)


def reply_to(messages: list[BaseMessage]) -> AIMessage:
    """Reply to the last message."""
    last = messages[-1]
    if last.type == "tool":
        return AIMessage(last.text)
    if city := re.search(r"\bin (\w+)\W*$", last.text):
        return AIMessage("", tool_calls=[{"name": "weather", "args": {"city": city[1]}, "id": f"call-{len(messages)}"}])
    questions = sum(message.type == "human" for message in messages)
    return AIMessage(f"You have asked {questions} questions. Ask me about the weather in a city.")
