"""One invocation of an agent, whose answer is printed as it comes."""

import re
import secrets
import uuid
from enum import Enum
from http import HTTPStatus
from time import monotonic
from typing import Any, Literal

import httpx
import msgspec
import rich_click as click
from rich.highlighter import JSONHighlighter
from rich.text import Text

from litestar_agentcore.cli.ag_ui import RunPrinter
from litestar_agentcore.cli.client import CallError, Connection, ExitCode, refused
from litestar_agentcore.cli.events import NOT_JSON, EventStreamParser, answer_text, error_of, event_text, value_of
from litestar_agentcore.cli.terminal import Output, PlainConsole, duration, printable, say
from litestar_agentcore.protocol.headers import SESSION_ID, is_identifier

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_ACCEPTED = "text/event-stream, application/json, */*;q=0.5"
_LONGEST_HIGHLIGHTED = 100_000
_MOST_WITHHELD = 1000

_TEXTUAL_TYPES = (
    "application/xml",
    "application/x-ndjson",
    "application/jsonl",
    "application/javascript",
    "application/yaml",
)


SESSION_ID_FORM = "1 to 256 visible ASCII characters without spaces"
"""What a session id is, for people."""


class Form(Enum):
    """How an answer is printed."""

    AUTO = "auto"
    """Strings as text, everything else as JSON, one line an event."""

    JSON = "json"
    """Everything as JSON, one line an event."""

    TEXT = "text"
    """The text in it alone, or all of it where there is none."""

    RAW = "raw"
    """The bytes as they come."""


class Invocation(msgspec.Struct):
    """What is sent, and what there is to say of its answer so far."""

    body: bytes
    headers: dict[str, str]
    """Those of this command. The user's own win."""

    session_id: str
    trace_id: str
    started: float = 0.0
    first: float | None = None
    """How long its first event, or the head of an answer that is no stream, took, in seconds."""

    events: int | None = None
    """How many have come; ``None`` where the answer is no stream."""

    withheld: int = 0
    """How many events without text have not been printed."""

    status: str = ""

    path: str = "invocations"
    """Where it is sent, from the agent's URL on."""

    protocol: Literal["http", "ag-ui"] = "http"

    def timing(self) -> str:
        """How many events there have been, and how long they took."""
        parts = []
        if self.events is not None:
            parts.append(f"{self.events} event" + "s" * (self.events != 1))
        if self.first is not None and self.events is not None:
            parts.append(f"the first after {duration(self.first)}")
        parts.append(f"{duration(monotonic() - self.started)} in all")
        return ", ".join(parts)


def new_session_id() -> str:
    """A session id that AWS's clients would take too: those have at least 33 characters."""
    return str(uuid.uuid4())


def check_session_id(_: click.Context, __: click.Parameter, session_id: str | None) -> str | None:
    """Refuse a session id that no agent takes, as a callback of click's."""
    if session_id is not None and not is_identifier(session_id):
        raise click.BadParameter(f"a session id is {SESSION_ID_FORM}.")
    return session_id


def prepare(connection: Connection, body: bytes, session_id: str) -> Invocation:
    """Make an invocation, with a trace of its own unless a header of the user's says which.

    Args:
        connection: Where the agent is.
        body: The payload.
        session_id: The session.

    Returns:
        The invocation.
    """
    trace_id = secrets.token_hex(16)
    headers = {
        "content-type": "application/json",
        "accept": _ACCEPTED,
        SESSION_ID.lower(): session_id,
        "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
    }
    for name, value in connection.headers:
        headers.pop(name.lower(), None)
        if name.lower() == "traceparent":
            trace_id = _trace_id_of(value.decode("latin-1")) or trace_id
        elif name.lower() == SESSION_ID.lower():
            session_id = value.decode("latin-1")
    return Invocation(body, headers, session_id, trace_id)


def perform(
    connection: Connection, invocation: Invocation, output: Output, form: Form, every_event: bool = False
) -> None:
    """Invoke the agent, and print the answer as it comes.

    Args:
        connection: Where the agent is.
        invocation: What is sent. What there is to say of the answer is put there.
        output: Where the answer goes.
        form: How it is printed.
        every_event: With ``Form.TEXT``, whether events without text are printed too.

    Raises:
        CallError: There was no answer, it was an error, or its end did not come.
    """

    def in_answer() -> str | None:
        if not invocation.status:
            return None
        if invocation.events is None:
            return "The answer was cut off"
        return f"The stream was cut off after {invocation.timing()}"

    invocation.started = monotonic()
    try:
        with (
            connection.errors_explained(in_answer),
            connection.client() as client,
            client.stream("POST", invocation.path, content=invocation.body, headers=invocation.headers) as response,
        ):
            _print_answer(connection, invocation, response, output, form, every_event)
    finally:
        if form is not Form.RAW:
            output.end_line()


def _print_answer(
    connection: Connection,
    invocation: Invocation,
    response: httpx.Response,
    output: Output,
    form: Form,
    every_event: bool,
) -> None:
    code = response.status_code
    known = code in HTTPStatus.__members__.values()
    invocation.status = f"{code} {response.reason_phrase or (HTTPStatus(code).phrase if known else '')}".strip()
    invocation.trace_id = _trace_id_of(response.headers.get("traceparent", "")) or invocation.trace_id
    invocation.session_id = response.headers.get(SESSION_ID, invocation.session_id)
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_stream = media_type == "text/event-stream" and response.is_success
    if form is Form.RAW:
        for chunk in response.iter_bytes():
            output.write_bytes(chunk)
    if not response.is_success:
        raise refused(connection, response, with_body=form is not Form.RAW)
    if is_stream:
        invocation.events = 0
    else:
        invocation.first = monotonic() - invocation.started
    if form is Form.RAW:
        return
    if is_stream:
        _print_events(invocation, response, output, form, every_event)
    elif media_type == "application/json" or media_type.endswith("+json"):
        _print_json(response.read(), output, form)
    elif not media_type or media_type.startswith("text/") or media_type in _TEXTUAL_TYPES:
        for text in response.iter_text():
            output.write(text)
    else:
        _pass_binary(response, media_type, output)


def _pass_binary(response: httpx.Response, media_type: str, output: Output) -> None:
    if output.is_terminal:
        size = sum(map(len, response.iter_bytes()))
        say(f"{size:,} bytes of {media_type}, which are not for a terminal: write them to a file (> file).")
    else:
        for chunk in response.iter_bytes():
            output.write_bytes(chunk)


def _print_json(body: bytes, output: Output, form: Form) -> None:
    value = value_of(body)
    text = body.decode("utf-8", "replace").strip()
    found = None
    if form is Form.TEXT:
        found = answer_text(value)
    elif form is Form.AUTO and isinstance(value, str):
        found = value
    if found is not None:
        output.line(found)
    elif not text:
        return
    elif output.is_terminal and value is not NOT_JSON:
        _print_indented(body, output)
    else:
        output.line(text)


def _print_indented(body: bytes, output: Output) -> None:
    try:
        text = msgspec.json.format(body, indent=2).decode("utf-8", "replace")
    except (msgspec.MsgspecError, ValueError, RecursionError):  # NaN, say, which is not quite JSON
        text = body.decode("utf-8", "replace").strip()
    if len(text) > _LONGEST_HIGHLIGHTED:
        output.line(text)
    else:
        PlainConsole().print(JSONHighlighter()(Text(printable(text))), soft_wrap=True)


def _print_events(
    invocation: Invocation, response: httpx.Response, output: Output, form: Form, every_event: bool
) -> None:
    events: _EventPrinter | RunPrinter = _EventPrinter(invocation, output, form, every_event)
    if invocation.protocol == "ag-ui" and form is not Form.JSON:
        events = RunPrinter(output, text_only=form is Form.TEXT)
    parser = EventStreamParser()

    def take(data: str) -> None:
        if invocation.first is None:
            invocation.first = monotonic() - invocation.started
        invocation.events = (invocation.events or 0) + 1
        events.take(data)

    try:
        for chunk in response.iter_bytes():
            for event in parser.feed(chunk):
                take(event.data)
        if (broken_off := parser.close()) is not None:
            take(broken_off.data)
            raise CallError(
                f"The stream was cut off in the middle of an event, after {invocation.timing()}.", ExitCode.CUT_OFF
            )
    finally:
        events.end()
    if events.error is not None:
        raise CallError(f"The stream ended with an error: {events.error}", ExitCode.ERROR_EVENT)


class _EventPrinter:
    """Prints the events of a stream in one of the forms."""

    def __init__(self, invocation: Invocation, output: Output, form: Form, every_event: bool) -> None:
        self.error: str | None = None
        """What the last event says that went wrong, if it is such an event."""

        self._invocation = invocation
        self._output = output
        self._form = form
        self._every_event = every_event
        self._withheld: list[str] = []
        self._has_text = False

    def take(self, data: str) -> None:
        value = value_of(data)
        self.error = error_of(value)
        if (text := self._text_of(data, value)) is not None:
            self._has_text = True
            self._output.write(text)
        elif self._form is not Form.TEXT or self._every_event:
            self._output.line(_on_one_line(data, value))
        elif self.error is None:
            self._invocation.withheld += 1
            if not self._has_text and len(self._withheld) < _MOST_WITHHELD:
                self._withheld.append(_on_one_line(data, value))

    def end(self) -> None:
        """Print what was withheld in favour of text that has not come."""
        if not self._has_text:
            self._invocation.withheld -= len(self._withheld)
            for line in self._withheld:
                self._output.line(line)

    def _text_of(self, data: str, value: Any) -> str | None:
        if self._form is Form.JSON or self.error is not None:
            return None
        if value is NOT_JSON:
            return data
        if self._form is Form.TEXT and not self._every_event:
            return event_text(value)
        return value if isinstance(value, str) else None


def _on_one_line(data: str, value: Any) -> str:
    if value is NOT_JSON:
        return msgspec.json.encode(data).decode()
    return data if "\n" not in data else " ".join(map(str.strip, data.splitlines()))


def _trace_id_of(traceparent: str) -> str | None:
    match = _TRACEPARENT.fullmatch(traceparent.strip().lower())
    return match[1] if match else None
