"""Callbacks that other threads schedule on an event loop, in batches."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


def call_threadsafe(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> bool:
    """Call a function on the loop of another thread, as ``call_soon_threadsafe`` does.

    Args:
        loop: The loop to call it on.
        function: What to call there.
        *args: Its arguments.

    Returns:
        False where the loop is closed.
    """
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False
    return True


class CallbackQueue:
    """Callbacks from other threads for one loop, run in batches with one wake-up of the loop for each batch.

    Args:
        loop: The loop, of any implementation.
    """

    __slots__ = ("__weakref__", "_callbacks", "_scheduled", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._callbacks: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop, from any thread. The order of each thread's calls is kept.

        Args:
            function: What to call there. It must not raise.
            *args: Its arguments.
        """
        self._callbacks.append((function, args))
        if not self._scheduled:
            self._scheduled = True
            call_threadsafe(self.loop, self._run)

    def _run(self) -> None:
        # Cleared first: a thread that still finds it set has added its callback before the queue is read below.
        self._scheduled = False
        callbacks = self._callbacks
        try:
            for _ in range(len(callbacks)):
                function, args = callbacks.popleft()
                function(*args)
        finally:
            if callbacks and not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._run)


_queues: dict[asyncio.AbstractEventLoop, CallbackQueue] = {}


def callbacks_of(loop: asyncio.AbstractEventLoop) -> CallbackQueue:
    """The one callback queue of a loop.

    Args:
        loop: The loop, on whose thread this is called.
    """
    queue = _queues.get(loop)
    if queue is None:
        for closed in [each for each in _queues if each.is_closed()]:
            del _queues[closed]
        queue = _queues[loop] = CallbackQueue(loop)
    return queue
