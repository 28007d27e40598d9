"""Runs of AG-UI: the input that a prompt becomes, and how the events of a run are printed."""

import json
import uuid
from typing import Any

from litestar_agentcore.cli.events import error_of, value_of
from litestar_agentcore.cli.terminal import Output

_TEXTS = ("TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_CHUNK")
_MESSAGE_ENDS = ("TEXT_MESSAGE_START", "TEXT_MESSAGE_END")
_LONGEST_RESULT = 2000


def run_input(payload: bytes, key: str, session_id: str) -> bytes:
    """Make a ``RunAgentInput``.

    Args:
        payload: JSON. An object's fields are the input's own, but for a text under ``key``, which becomes the message
            of a user, as any other text does.
        key: The field that a prompt has.
        session_id: The session, which is the thread where nothing else is said.

    Returns:
        The body of the request. A payload that is no object or text is sent as it is, so that the agent refuses it.
    """
    value = value_of(payload)
    if isinstance(value, str):
        value = {key: value}
    if not isinstance(value, dict):
        return payload
    given = dict(value)
    if "messages" not in given and isinstance(given.get(key), str):
        given["messages"] = [{"id": str(uuid.uuid4()), "role": "user", "content": given.pop(key)}]
    own = {"threadId": session_id, "runId": str(uuid.uuid4()), "state": {}, "tools": [], "context": []}
    return json.dumps({**own, "forwardedProps": {}, **given}).encode()


class RunPrinter:
    """Prints the text of a run as it comes, and what tools were called with and gave.

    Args:
        output: Where it goes.
        text_only: Whether tools are left out.
    """

    def __init__(self, output: Output, *, text_only: bool) -> None:
        self.error: str | None = None
        """Why the run failed, where it did."""
        self.withheld = 0
        """How many events were about something else."""
        self._output = output
        self._text_only = text_only
        self._calls: dict[str, tuple[str, list[str]]] = {}
        """By the id of a tool call, the tool's name and the pieces of its arguments."""
        self._last = ""

    def take(self, data: str) -> None:
        """Print an event.

        Args:
            data: Its JSON.
        """
        value = value_of(data)
        event: dict[str, Any] = value if isinstance(value, dict) else {}
        kind = event.get("type")
        self.error = error_of(event) or self.error
        if kind in _TEXTS:
            self._output.write(str(event.get("delta") or ""))
        elif kind in _MESSAGE_ENDS:
            self._output.end_line()
        elif not self._take_tool(str(kind), event) and self.error is None:
            self.withheld += 1

    def _take_tool(self, kind: str, event: dict[str, Any]) -> bool:
        call = str(event.get("toolCallId", self._last))
        if kind in ("TOOL_CALL_START", "TOOL_CALL_CHUNK") and call not in self._calls:
            self._end_call(self._last)  # chunks have no end of their own
            self._last = call
            self._calls[call] = (str(event.get("toolCallName")), [])
        if kind in ("TOOL_CALL_ARGS", "TOOL_CALL_CHUNK") and call in self._calls:
            self._calls[call][1].append(str(event.get("delta") or ""))
        elif kind == "TOOL_CALL_END":
            self._end_call(call)
        elif kind == "TOOL_CALL_RESULT":
            self._end_call(call)
            self._line(f"-> {event.get('content')}"[:_LONGEST_RESULT])
        return kind.startswith("TOOL_CALL_")

    def _end_call(self, call: str) -> None:
        if (found := self._calls.pop(call, None)) is not None:
            self._line(f"{found[0]}({''.join(found[1])})")

    def _line(self, text: str) -> None:
        if not self._text_only:
            self._output.line(" ".join(text.split()))

    def end(self) -> None:
        """Print what has no end of its own."""
        for call in list(self._calls):
            self._end_call(call)
