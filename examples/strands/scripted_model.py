"""A model that follows a script, so that the example needs no key and no network."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from strands.models import Model


class ScriptedModel(Model):
    """Asks the tool about the city that a prompt ends in, and else says how many questions it has heard."""

    def update_config(self, **model_config: Any) -> None:
        """Has nothing to configure."""

    def get_config(self) -> dict[str, Any]:
        """What the model is called in traces."""
        return {"model_id": "scripted"}

    def structured_output(self, output_model: Any, prompt: Any, system_prompt: Any = None, **kwargs: Any) -> Any:
        """Is not in the script."""
        raise NotImplementedError

    async def stream(self, messages: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Reply to the last message."""
        last = messages[-1]["content"][-1]
        yield {"messageStart": {"role": "assistant"}}
        if city := re.search(r"\bin (\w+)\W*$", last.get("text", "")):
            yield {
                "contentBlockStart": {"start": {"toolUse": {"name": "weather", "toolUseId": f"use-{len(messages)}"}}}
            }
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps({"city": city[1]})}}}}
            stop_reason = "tool_use"
        else:
            questions = sum(message["role"] == "user" and "text" in message["content"][-1] for message in messages)
            text = f"You have asked {questions} questions. Ask me about the weather in a city."
            if "toolResult" in last:
                text = last["toolResult"]["content"][0]["text"]
            yield {"contentBlockStart": {"start": {}}}
            for word in re.findall(r"\S+\s*", text):
                yield {"contentBlockDelta": {"delta": {"text": word}}}
                await asyncio.sleep(0.05)
            stop_reason = "end_turn"
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": stop_reason}}
        usage = {"inputTokens": 20, "outputTokens": 10, "totalTokens": 30}
        yield {"metadata": {"usage": usage, "metrics": {"latencyMs": 1}}}
