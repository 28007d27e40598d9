"""Time limits: many of one duration on one loop, and those of a stream, with no timer that is moved each time."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from litestar_agentcore.protocol.models import StreamError
from litestar_agentcore.protocol.settings import Settings

logger = logging.getLogger(__name__)

TOLERANCE_SECONDS = 0.001
"""How much too early a timer may come: uvloop's count whole milliseconds."""

LAST_EVENT_SECONDS = 5.0
"""How long a client may take to read the last event of a stream whose time is over, before it is cut off."""


class HasTimeLimit(Protocol):
    """Something whose time can be over."""

    def time_out(self) -> None:
        """Called when its time is over."""


class TimeoutQueue:
    """Timeouts of one duration on one loop, with one timer for all of them, since few are ever due.

    Args:
        loop: The loop, on which everything here is called.
        seconds: The duration, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._due: dict[HasTimeLimit, float] = {}  # the one that is due first comes first, since all last as long
        self._timer: asyncio.TimerHandle | None = None

    def start(self, limited: HasTimeLimit) -> None:
        """Have something timed out, unless :meth:`stop` is called for it before.

        Args:
            limited: What that is. It must not have been started already.
        """
        self._due[limited] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def restart(self, limited: HasTimeLimit) -> None:
        """Have the time of something that was started, and is not over, begin anew."""
        if self._due.pop(limited, None) is not None:
            self.start(limited)

    def stop(self, limited: HasTimeLimit) -> None:
        """Have something not timed out; without effect where it was."""
        self._due.pop(limited, None)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time() + TOLERANCE_SECONDS
        while self._due:
            limited, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                break
            del self._due[limited]
            limited.time_out()


class StreamLimits(msgspec.Struct, frozen=True):
    """The time limits of streams, in seconds; 0 for none."""

    keepalive: float
    """How long a stream may be silent before a comment is sent."""
    idle: float
    """How long a stream may go without an event before it is ended."""
    whole: float
    """How long a stream may take, from its request."""

    @classmethod
    def of(cls, settings: Settings) -> "StreamLimits | None":
        """The limits that the settings set, if any."""
        limits = cls(settings.sse_keepalive_seconds, settings.stream_idle_seconds, settings.stream_timeout_seconds)
        return limits if any(msgspec.structs.astuple(limits)) else None


class StreamTimer:
    """Tells the sender of one stream that it is to send a comment, or to end it.

    It is not moved with each event: when it is due, it looks at when the last one was.

    Args:
        limits: The limits.
        loop: The loop on which the stream is sent, and on which everything here is called.
        age: How long ago its request came, in seconds.
        wake: Wakes the sender.
        cut: Ends the sender, which has been woken without an event.
    """

    __slots__ = (
        "_commented_at", "_cut", "_ends_at", "_limits", "_loop", "_timer", "_wake", "active_at", "end", "is_cut",
        "time",
    )  # fmt: skip

    def __init__(
        self,
        limits: StreamLimits,
        loop: asyncio.AbstractEventLoop,
        age: float,
        wake: Callable[[], object],
        cut: Callable[[], object],
    ) -> None:
        self._limits = limits
        self._loop = loop
        self._wake = wake
        self._cut = cut
        self.time = loop.time
        self.active_at = self._commented_at = now = loop.time()
        """When the last event was sent, by :attr:`time`: for the sender to set."""
        self._ends_at = now - age + limits.whole
        self.end: StreamError | None = None
        """The last event, once the stream's time is over."""
        self.is_cut = False
        """Whether the sender was ended by force."""
        self._timer: asyncio.TimerHandle | None = loop.call_at(self._next(), self._look)

    def stop(self) -> None:
        """Tell nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> float:
        limits = self._limits
        due = []
        if limits.whole:
            due.append(self._ends_at)
        if limits.idle:
            due.append(self.active_at + limits.idle)
        if limits.keepalive:
            due.append(max(self.active_at, self._commented_at) + limits.keepalive)
        return min(due)

    def _look(self) -> None:
        limits = self._limits
        now = self._loop.time() + TOLERANCE_SECONDS
        if limits.whole and now >= self._ends_at:
            self._end(f"The stream took longer than {limits.whole:g} s")
        elif limits.idle and now >= self.active_at + limits.idle:
            self._end(f"The stream had no event for {limits.idle:g} s")
        else:
            if limits.keepalive and now >= max(self.active_at, self._commented_at) + limits.keepalive:
                self._commented_at = now
                self._wake()
            self._timer = self._loop.call_at(self._next(), self._look)

    def _end(self, reason: str) -> None:
        logger.warning("%s, and is ended", reason)
        self.end = StreamError(reason, "TimeoutError")
        self._wake()
        self._timer = self._loop.call_later(LAST_EVENT_SECONDS, self._end_by_force)

    def _end_by_force(self) -> None:
        self._timer = None
        self.is_cut = True
        self._cut()
