"""``litestar agent chat``."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import rich_click as click

from litestar_agentcore.cli.client import ANSWER_SECONDS, CallError, Connection, ExitCode, connection_options
from litestar_agentcore.cli.invocation import (
    SESSION_ID_FORM,
    Form,
    Invocation,
    check_session_id,
    new_session_id,
    perform,
    prepare,
)
from litestar_agentcore.cli.terminal import Output, duration, say
from litestar_agentcore.protocol.headers import is_identifier

_PROMPT = "> "
_MOST_LINES = 1000
_PLACE = "{message}"
_HELP = """\
/session [ID]   show the session, or go on with another
/new            begin a new session
/help           show this
/quit           end, as Ctrl-D does
Ctrl-C ends the answer that is coming; //text sends /text."""


@click.command("chat")
@click.option("--session", callback=check_session_id, help="The session to go on with; a new one by default.")
@click.option("--key", default="prompt", show_default=True, help="The payload's field that a message goes into.")
@click.option(
    "--template",
    metavar="JSON",
    help="The payload, in whose strings {message} stands for the message, in place of --key.",
)
@click.option("--events", is_flag=True, help="Print all events as they are, not their text alone.")
@click.option(
    "--history/--no-history", default=True, show_default=True, help="Whether messages are kept for the next time."
)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing of session, trace and times.")
@connection_options(ANSWER_SECONDS)
def chat(
    session: str | None,
    key: str,
    template: str | None,
    events: bool,
    history: bool,
    quiet: bool,
    connection: Connection,
) -> None:
    """Talk with the agent, in one session.

    Each line is sent as {"prompt": LINE}, and the text of the answer is printed as it comes. Lines can come from a pipe
    too; then the first that fails ends the command, with the exit codes of invoke.
    """
    conversation = _Conversation(connection, _Template(key, template), events, quiet, session or new_session_id())
    if sys.stdin is not None and sys.stdin.isatty():
        conversation.at_terminal(_Keyboard(history))
    elif sys.stdin is not None:
        conversation.from_pipe()


class _Template:
    """Makes payloads of messages."""

    def __init__(self, key: str, template: str | None) -> None:
        if template is None:
            self._payload: Any = {key: _PLACE}
            return
        try:
            self._payload = json.loads(template)
        except ValueError as error:
            raise click.BadParameter(f"the template is not JSON: {error}.", param_hint="'--template'") from None
        if self.fill("") == self._payload:
            raise click.BadParameter(
                f"""the template has no {_PLACE} in a string, as in '{{"input": "{_PLACE}"}}'.""",
                param_hint="'--template'",
            )

    def fill(self, message: str) -> Any:
        return _filled(self._payload, message)


def _filled(value: Any, message: str) -> Any:
    if isinstance(value, str):
        return value.replace(_PLACE, message)
    if isinstance(value, list):
        return [_filled(item, message) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, message) for key, item in value.items()}
    return value


class _Conversation:
    def __init__(
        self, connection: Connection, template: _Template, every_event: bool, quiet: bool, session: str
    ) -> None:
        self._connection = connection
        self._template = template
        self._every_event = every_event
        self._quiet = quiet
        self._session = session
        self._output = Output()
        self._ended = False

    def at_terminal(self, keyboard: "_Keyboard") -> None:
        self._note(f"Session {self._session} at {self._connection.shown_url}")
        self._note("/help says what there is, Ctrl-D ends.")
        for line in keyboard.lines():
            if not self._command(line):
                try:
                    self._say(line.removeprefix("/") if line.startswith("//") else line)
                except CallError as error:
                    error.show()
                except KeyboardInterrupt:
                    say("Ended by Ctrl-C", style="dim")
            if self._ended:
                break

    def from_pipe(self) -> None:
        self._note(f"Session {self._session}")
        for number, raw in enumerate(sys.stdin.buffer, 1):
            try:
                line = raw.decode().strip()
            except UnicodeDecodeError:
                raise CallError(f"Line {number} of standard input is not UTF-8.", ExitCode.USAGE) from None
            if line and not self._command(line):
                self._say(line.removeprefix("/") if line.startswith("//") else line)
            if self._ended:
                break

    def _command(self, line: str) -> bool:
        """Do what a line asks for that is a command and no message."""
        if not line.startswith("/") or line.startswith("//"):
            return False
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/quit" | "/exit":
                self._ended = True
            case "/help":
                say(_HELP)
            case "/new":
                self._session = new_session_id()
                say(f"Session {self._session}")
            case "/session" if argument and not is_identifier(argument):
                say(f"A session id is {SESSION_ID_FORM}.")
            case "/session":
                self._session = argument or self._session
                say(f"Session {self._session}")
            case _:
                say(f"There is no command {name}, and nothing was sent. See /help; /{line} sends the line.")
        return True

    def _say(self, message: str) -> None:
        body = json.dumps(self._template.fill(message)).encode()
        invocation = prepare(self._connection, body, self._session)
        try:
            perform(self._connection, invocation, self._output, Form.TEXT, self._every_event)
        finally:
            if invocation.status:
                self._note(_footer(invocation))

    def _note(self, text: str) -> None:
        if not self._quiet:
            say(text, style="dim")


def _footer(invocation: Invocation) -> str:
    footer = duration(monotonic() - invocation.started)
    if invocation.events is not None and invocation.first is not None:
        footer += f", the first event after {duration(invocation.first)}"
    footer += f", trace {invocation.trace_id}"
    if invocation.withheld:
        footer += f"\n{invocation.withheld} of the events had no text; --events prints them"
    return footer


class _Keyboard:
    """The lines that somebody types, with line editing and history where this interpreter and terminal have it."""

    def __init__(self, history: bool) -> None:
        self._readline = _import_readline() if sys.stdout.isatty() else None
        self._history = _History() if history and self._readline is not None else None
        if self._readline is not None:
            self._readline.set_auto_history(False)
            for line in self._history.read() if self._history is not None else ():
                self._readline.add_history(line)

    def lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._read().strip()
            except KeyboardInterrupt:
                say("")
                continue
            except EOFError:
                say("")
                return
            if not line:
                continue
            self._remember(line)
            yield line

    def _read(self) -> str:
        if sys.stdout.isatty():
            return input(_PROMPT)
        sys.stderr.write(_PROMPT)  # ``input`` would write it to standard output
        sys.stderr.flush()
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line

    def _remember(self, line: str) -> None:
        if self._readline is None:
            return
        last = self._readline.get_current_history_length()
        if last and self._readline.get_history_item(last) == line:
            return
        self._readline.add_history(line)
        if self._history is not None:
            self._history.append(line)


def _import_readline() -> ModuleType | None:
    """Import what gives ``input`` line editing. Not at the top: it may write to the terminal, and may not be there."""
    try:
        import readline
    except ImportError:
        return None
    return readline


class _History:
    """The messages of earlier conversations, in a file that only the user can read."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_STATE_HOME", "")
        directory = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
        self._file = directory / "litestar-agentcore" / "chat_history"

    def read(self) -> list[str]:
        """The newest lines, to which the file is cut where it has become long."""
        try:
            lines = self._file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError:
            return []
        if len(lines) > 2 * _MOST_LINES:
            with contextlib.suppress(OSError), self._open(os.O_TRUNC) as descriptor:
                os.write(descriptor, "".join(f"{line}\n" for line in lines[-_MOST_LINES:]).encode())
        return lines[-_MOST_LINES:]

    def append(self, line: str) -> None:
        """Keep a line. Where the file cannot be written (a pod's may not be), it is not kept."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._open(os.O_APPEND) as descriptor:
                os.write(descriptor, (line.replace("\n", " ") + "\n").encode("utf-8", "replace"))

    @contextlib.contextmanager
    def _open(self, flag: int) -> Iterator[int]:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | flag, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            yield descriptor
        finally:
            os.close(descriptor)
