"""Calls from other threads into a loop, in batches."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> bool:
    """Call a function on a loop of another thread.

    Args:
        loop: The loop to call it on.
        function: What to call there.
        *args: Its arguments.

    Returns:
        False where the loop is closed and nobody is there to be told.
    """
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False
    return True


class Mailbox:
    """What other threads have to say to a loop: handed over in batches, with one wake-up for each batch.

    Args:
        loop: The loop; any kind of one.
    """

    __slots__ = ("__weakref__", "_letters", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._letters: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop, soon, and in the order of the calls from each thread.

        Args:
            function: What to call there. It does not raise.
            *args: Its arguments.
        """
        self._letters.append((function, args))
        if not self._woken:
            self._woken = True
            post(self.loop, self._deliver)

    def _deliver(self) -> None:
        # Cleared before the letters are counted: whoever found it set has put his letter in before that.
        self._woken = False
        letters = self._letters
        try:
            for _ in range(len(letters)):
                function, args = letters.popleft()
                function(*args)
        finally:
            if letters and not self._woken:
                self._woken = True
                self.loop.call_soon(self._deliver)


_mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """The one mailbox of a loop.

    Args:
        loop: The loop, on whose thread this is called.
    """
    box = _mailboxes.get(loop)
    if box is None:
        for closed in [known for known in _mailboxes if known.is_closed()]:
            del _mailboxes[closed]
        box = _mailboxes[loop] = Mailbox(loop)
    return box
