"""A model that follows a script, so that the example needs no key and no network."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.mock import MockFunctionCallingLLM


def reply_to(messages: Sequence[ChatMessage], **options: Any) -> ChatMessage:
    """Ask the tool about the city that a prompt ends in, and else say how many questions there were."""
    last = messages[-1]
    if last.role == "tool":
        return ChatMessage(last.content, role="assistant")
    if city := re.search(r"\bin (\w+)\W*$", last.content or ""):
        call = ToolCallBlock(tool_call_id=f"call-{len(messages)}", tool_name="weather", tool_kwargs={"city": city[1]})
        return ChatMessage(role="assistant", blocks=[call])
    questions = sum(message.role == "user" for message in messages)
    return ChatMessage(f"You have asked {questions} questions. Ask me about the weather in a city.", role="assistant")


class ScriptedModel(MockFunctionCallingLLM):
    """LlamaIndex's own mock, with a script, and streams that come word by word."""

    def __init__(self, **options: Any) -> None:
        super().__init__(response_generator=reply_to, is_chat_model=True, **options)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **options: Any) -> AsyncIterator[ChatResponse]:
        """Reply to the last message word by word."""

        async def stream() -> AsyncIterator[ChatResponse]:
            reply, said = reply_to(messages), ""
            for word in re.findall(r"\S+\s*", reply.content or ""):
                said += word
                yield ChatResponse(message=ChatMessage(said, role="assistant"), delta=word)
                await asyncio.sleep(0.05)
            yield ChatResponse(message=reply, delta="")

        return stream()
