"""What the commands print: answers on standard output, the rest on standard error, nothing that rewrites a terminal."""

import contextlib
import os
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""The control characters C0 and C1 and DEL, but for newline and tab."""

_HOUR, _DAY = 3600, 86400


def printable(text: str) -> str:
    r"""Show the control characters of a text, but for newline and tab, as ``\u001b``, lest they rewrite the terminal.

    Args:
        text: Anything that came from elsewhere.
    """
    return _CONTROLS.sub(lambda control: f"\\u{ord(control[0]):04x}", text.replace("\r\n", "\n"))


class PlainConsole(Console):
    """A console that lets the command decide what a closed pipe means: rich's own ends the process with 1."""

    def on_broken_pipe(self) -> None:
        """Let the error through, of which this is told while it is handled."""
        raise


def say(text: str, style: str = "") -> None:
    """Write a line to standard error.

    Args:
        text: The line, which may quote others.
        style: A style of rich's.
    """
    with contextlib.suppress(OSError):  # whoever read it has left, which is no reason to end
        PlainConsole(stderr=True).print(Text(printable(text), style=style), soft_wrap=True)


class Output:
    """Standard output, each piece of which is there as soon as it is written."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._in_line = False

    def write(self, text: str) -> None:
        """Write text, which need not be whole lines.

        Args:
            text: What came from an agent. At a terminal, control characters are shown and not obeyed.
        """
        if not text:
            return
        if self.is_terminal:
            text = printable(text)
        self._in_line = not text.endswith("\n")
        self.write_bytes(text.encode(sys.stdout.encoding, "backslashreplace"))

    def write_bytes(self, data: bytes) -> None:
        """Write bytes as they are.

        Args:
            data: The bytes.

        Raises:
            BrokenPipeError: Nobody reads them any more.
            OSError: They cannot be written, since the disk is full, say.
        """
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def line(self, text: str) -> None:
        """Write one line, on a line of its own.

        Args:
            text: The line, without its end.
        """
        self.end_line()
        self.write(text + "\n")

    def end_line(self) -> None:
        """End the line, if one has begun."""
        if self._in_line:
            self.write("\n")


def open_standard_output() -> None:
    """Write to nowhere where the command was started with its standard output closed, as in ``>&-``."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process


def discard_standard_output() -> None:
    """Lose what is still to be written and cannot be, lest the interpreter complains of it at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def duration(seconds: float) -> str:
    """A duration as people read it: ``12 ms``, ``3.4 s``, ``5 min 6 s``, ``2 h 3 min``, ``4 d 5 h``.

    Args:
        seconds: The duration in seconds.
    """
    seconds = max(seconds, 0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // 60} min {whole % 60} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // 60} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"
