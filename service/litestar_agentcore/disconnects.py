"""Clients that leave while they wait for an answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

from litestar.types import Receive

from litestar_agentcore.runtime.callbacks import CallbackQueue

if TYPE_CHECKING:
    import asyncio

WATCH_AFTER_SECONDS = 1.0
"""How long a client waits before it is watched whether it still does: most answers are there before that is worth a
task."""

WATCH_TOGETHER_SECONDS = 0.05
"""How far apart, at least, two looks are at who has waited for that long."""


class DisconnectWatcher:
    """Tells which clients of one loop leave.

    Args:
        callbacks: Reach the loop that serves the clients.
    """

    def __init__(self, callbacks: CallbackQueue) -> None:
        self.callbacks = callbacks
        """Reach the loop that serves the clients."""
        self._waiting: dict[object, tuple[float, Receive, Callable[[], object]]] = {}
        self._watches: dict[object, asyncio.Task[None]] = {}
        self._left: WeakSet[object] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, key: object, receive: Receive, left: Callable[[], object]) -> None:
        """Call a function if a client leaves.

        Args:
            key: What :meth:`unwatch` will be called with.
            receive: Receives from the client.
            left: The function.
        """
        loop = self.callbacks.loop
        self._waiting[key] = (loop.time(), receive, left)
        if self._timer is None:
            self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._begin_to_watch)

    def unwatch(self, key: object) -> None:
        """Let a client leave unnoticed.

        Args:
            key: What :meth:`watch` was called with.
        """
        if self._waiting.pop(key, None) is None and (watch := self._watches.pop(key, None)) is not None:
            watch.cancel()

    def has_left(self, key: object) -> bool:
        """Tell whether a client has left; from any thread. It is watched from the first call on.

        Args:
            key: What :meth:`watch` was called with.
        """
        if key in self._waiting:
            self.callbacks.call_soon(self._watch_now, key)
        return key in self._left

    def _watch_now(self, key: object) -> None:
        if (waiting := self._waiting.pop(key, None)) is not None:
            _, receive, left = waiting
            self._watches[key] = self.callbacks.loop.create_task(self._tell(key, receive, left))

    async def _tell(self, key: object, receive: Receive, left: Callable[[], object]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left.add(key)
        left()

    def _begin_to_watch(self) -> None:
        loop = self.callbacks.loop
        self._timer = None
        due = loop.time() - WATCH_AFTER_SECONDS
        while self._waiting:
            key, (since, _, _) = next(iter(self._waiting.items()))
            if since > due:
                self._timer = loop.call_later(max(since - due, WATCH_TOGETHER_SECONDS), self._begin_to_watch)
                break
            self._watch_now(key)
