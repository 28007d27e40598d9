"""What an exception of the author's code comes to. Asking for its text is the author's code too."""

from collections.abc import Callable
from typing import Any

import msgspec

OnError = Callable[[BaseException], Any]
"""Takes what a generator raised, on its side. Returns the stream's last event; ``None`` for one that tells of it."""


class Failure(msgspec.Struct, frozen=True):
    """A handler raised, and what its client is to be told."""

    error: BaseException
    answer: Any = None
    """What the edge made of it, on the handler's side, where the text of an exception may be asked for."""


def message_of(error: BaseException) -> str:
    """The text of an exception, even where its own ``__str__`` raises.

    Args:
        error: Whatever was raised.

    Returns:
        ``str(error)``, or the type's name where there is none to be had.
    """
    try:
        return str(error)
    except Exception:
        return type(error).__name__
