"""The payload of an invocation, as people give it on a command line."""

import json
import sys
from pathlib import Path

import msgspec
import rich_click as click

_JSON_BEGINS = ("{", "[", '"')
"""What begins so was meant to be JSON."""

_EXCERPT = 20


class Payload(msgspec.Struct, frozen=True):
    """The body of a request."""

    body: bytes
    is_wrapped_text: bool = False
    """Whether it was a text, and became a field of an object."""


def read_payload(words: tuple[str, ...], key: str) -> Payload:
    """Read a payload from a command's arguments, a file (``@name``) or standard input (``-``, or no argument).

    Args:
        words: The arguments.
        key: What becomes the name of a text that is not JSON.

    Returns:
        The payload.

    Raises:
        click.UsageError: There is none, or it was meant to be JSON and is not.
    """
    if words in ((), ("-",), ("@-",)):
        if sys.stdin is None or (not words and sys.stdin.isatty()):
            raise click.UsageError(
                """There is no payload. Give it as an argument ('{"prompt": "hi"}'), as @file, or on standard input."""
            )
        return payload_of(sys.stdin.buffer.read(), key, "on standard input")
    if len(words) == 1 and words[0].startswith("@"):
        path = Path(words[0][1:])
        try:
            return payload_of(path.read_bytes(), key, f"in {path}")
        except OSError as error:
            raise click.UsageError(f"The payload cannot be read from {str(path)!r}: {error.strerror}.") from None
    return payload_of(" ".join(words).encode("utf-8", "surrogateescape"), key, "that was given")


def payload_of(raw: bytes, key: str, source: str) -> Payload:
    """Make the body of a request: JSON as it is, a text as an object with one field.

    Args:
        raw: What was given.
        key: The field's name.
        source: Where it is from, for the error's sentence.

    Returns:
        The payload.

    Raises:
        click.UsageError: It is empty, was meant to be JSON and is not, or is no text.
    """
    if not raw.strip():
        raise click.UsageError(f"The payload {source} is empty.")
    try:
        json.loads(raw)
    except json.JSONDecodeError as error:
        text = error.doc
        if text.lstrip().startswith(_JSON_BEGINS):
            raise click.UsageError(_explained(error, source)) from None
    except UnicodeDecodeError:
        raise click.UsageError(f"The payload {source} is neither JSON nor text in UTF-8.") from None
    except (ValueError, RecursionError):  # JSON beyond this interpreter's limits, which the server's may take
        return Payload(raw)
    else:
        return Payload(raw)
    return Payload(json.dumps({key: text.strip()}).encode(), is_wrapped_text=True)


def _explained(error: json.JSONDecodeError, source: str) -> str:
    rest = error.doc[error.pos :]
    at = f"before {rest[:_EXCERPT]!r}" if rest.strip() else "at its end"
    return (
        f"The payload {source} is not JSON: {error.msg}, in line {error.lineno}, column {error.colno}, {at}. "
        """In a shell, single quotes keep JSON as it is: '{"prompt": "hi"}'."""
    )
