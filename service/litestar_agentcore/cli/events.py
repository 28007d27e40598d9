"""What an agent answers: the events of a stream, and the text in them.

Event streams are parsed as the HTML Living Standard, section 9.2.6, "Interpreting an event stream", has it, except that
an event without its last empty line is not lost.
"""

import json
import re
from typing import Any

import msgspec

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_TOKEN_KEYS = ("data", "token", "text", "content", "chunk", "delta")
"""Where an event that is an object has a piece of an answer's text; of a Strands agent's events, ``data``."""

_ANSWER_KEYS = ("answer", "result", "response", "output", "text", "content", "completion", "message")
"""Where a whole answer that is an object has its text."""

_NOT_THE_ANSWER = re.compile(
    r"tool|_call|function|argument|reasoning|thinking|audio\.delta|[._-](done|end|completed)$", re.IGNORECASE
)
"""The ``type`` of events whose text is no piece of the answer: what a tool is called with, what the model thinks, and
the whole once more at its end, as OpenAI's ``response.output_text.done`` has it."""

_DEEPEST = 4


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event of a stream.

    Ids and retry times are left out: they are for clients that connect again, which would invoke the agent anew.
    """

    data: str
    name: str = "message"


class EventStreamParser:
    """Makes events of the bytes of a stream, however they are cut into pieces."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._after_carriage_return = False
        self._at_start = True
        self._data: list[str] = []
        self._name = ""

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Take the next bytes of the stream.

        Args:
            piece: The bytes.

        Returns:
            The events that are complete with them.
        """
        if not piece:
            return []
        text = piece[1:] if self._after_carriage_return and piece.startswith(b"\n") else piece
        self._after_carriage_return = piece.endswith(b"\r")
        *ends, rest = _LINE_END.split(text)
        events = []
        for end in ends:
            line = b"".join([*self._line, end])
            self._line.clear()
            if (event := self._take(line)) is not None:
                events.append(event)
        if rest:
            self._line.append(rest)
        return events

    def close(self) -> ServerSentEvent | None:
        """Say that the stream has ended.

        Returns:
            What there is of an event that the end has cut off.
        """
        if self._line:
            self._take(b"".join(self._line))
            self._line.clear()
        return self._dispatch()

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")  # a comment's name is empty
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(text)
        elif name == b"event":
            self._name = text
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return ServerSentEvent("\n".join(data), name or "message") if data else None


class NotJSON(msgspec.Struct, frozen=True):
    """In the place of the value of a text that is not JSON."""


NOT_JSON = NotJSON()


def value_of(text: str | bytes) -> Any:
    """Decode what an agent says.

    Args:
        text: The data of an event, or the body of an answer.

    Returns:
        Its value, or ``NOT_JSON``.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOT_JSON


def event_text(value: Any) -> str | None:
    """Find the piece of an answer's text that an event brings.

    Args:
        value: The event's value.

    Returns:
        The text; ``None`` where the event is about something else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return None
    if isinstance(kind := value.get("type"), str) and _NOT_THE_ANSWER.search(kind):
        return None
    for key in _TOKEN_KEYS:
        if isinstance(text := value.get(key), str):
            return text
    delta = value.get("delta")
    return event_text(delta) if isinstance(delta, dict) and "delta" not in delta else None


def answer_text(value: Any, depth: int = _DEEPEST) -> str | None:
    """Find the text of a whole answer: a string, a field of that kind, or a message whose content is a list of texts.

    Args:
        value: The answer's value.
        depth: How deep to look.

    Returns:
        The text; ``None`` where there is none.
    """
    if isinstance(value, str):
        return value
    if depth == 0:
        return None
    if isinstance(value, list):
        texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "".join(texts) if texts else None
    if isinstance(value, dict):
        for key in _ANSWER_KEYS:
            if (text := answer_text(value.get(key), depth - 1)) is not None:
                return text
    return None


def error_of(value: Any) -> str | None:
    """What an event says that went wrong, where it is one of those with which a stream ends that has failed.

    Args:
        value: The event's value.

    Returns:
        The error, with its type where there is one; ``None`` for any other event.
    """
    if not isinstance(value, dict):
        return None
    if value.get("type") == "RUN_ERROR" and isinstance(message := value.get("message"), str):  # of AG-UI
        return f"{value['code']}: {message}" if value.get("code") else message
    if not isinstance(error := value.get("error"), str):
        return None
    kind = value.get("error_type")
    if isinstance(kind, str):
        return f"{kind}: {error}"
    return error or None
