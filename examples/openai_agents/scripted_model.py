"""A model that follows a script, so that the example needs no key and no network."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from agents import Model, ModelResponse, Usage, generation_span
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
)


class ScriptedModel(Model):
    """Asks the tool about the city that a prompt ends in, and else says how many questions it has heard."""

    async def get_response(self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - the SDK's name
        """Reply to the last item."""
        with generation_span(model="scripted"):
            return ModelResponse(output=[reply_to(input)], usage=Usage(requests=1), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Reply to the last item word by word."""
        with generation_span(model="scripted"):
            async for event in stream(reply_to(input)):
                yield event


async def stream(reply: ResponseFunctionToolCall | ResponseOutputMessage) -> AsyncIterator[Any]:
    """The events in which a reply comes."""
    about = {"item_id": "message", "output_index": 0, "content_index": 0, "logprobs": [], "sequence_number": 0}
    if isinstance(reply, ResponseOutputMessage):
        for word in re.findall(r"\S+\s*", reply.content[0].text):
            yield ResponseTextDeltaEvent(delta=word, type="response.output_text.delta", **about)
            await asyncio.sleep(0.05)
    response = Response(
        id="response",
        created_at=0,
        model="scripted",
        object="response",
        output=[reply],
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
    )
    yield ResponseCompletedEvent(response=response, sequence_number=1, type="response.completed")


def reply_to(heard: Any) -> ResponseFunctionToolCall | ResponseOutputMessage:
    """What follows upon a prompt, or upon a list of items of which the last is a prompt or what a tool gave."""
    items = [{"role": "user", "content": heard}] if isinstance(heard, str) else heard
    last = items[-1]
    if city := re.search(r"\bin (\w+)\W*$", str(last.get("content"))):
        arguments = json.dumps({"city": city[1]})
        return ResponseFunctionToolCall(
            arguments=arguments, call_id=f"call-{len(items)}", name="weather", type="function_call"
        )
    questions = sum(item.get("role") == "user" for item in items)
    said = last.get("output") or f"You have asked {questions} questions. Ask me about the weather in a city."
    text = ResponseOutputText(annotations=[], text=said, type="output_text")
    return ResponseOutputMessage(id="message", content=[text], role="assistant", status="completed", type="message")
