"""How many invocations run at the same time, in all and for each session, and who waits for a place."""

import asyncio
import math
import threading
from collections import Counter
from enum import Enum

from litestar_agentcore.protocol.settings import Settings
from litestar_agentcore.runtime.callbacks import call_threadsafe


class _State(Enum):
    WAITING = "waiting"
    HELD = "held"
    RELEASED = "released"


class Place:
    """A place that an invocation holds, or waits for. Made by :meth:`Admission.enter`.

    Args:
        admission: What it belongs to.
        session: The session of the invocation, where it has one.
        loop: The loop on which it is waited for.
    """

    __slots__ = ("_admission", "loop", "session", "state", "timed_out", "waiter")

    def __init__(self, admission: "Admission", session: str | None, loop: asyncio.AbstractEventLoop) -> None:
        self._admission = admission
        self.session = session
        self.loop = loop
        self.state = _State.HELD
        self.waiter: asyncio.Future[None] | None = None
        self.timed_out = False
        """Whether it was given up because the time to wait for it was over."""

    @property
    def held(self) -> bool:
        """Whether the invocation may run."""
        return self.state is _State.HELD

    async def wait(self) -> bool:
        """Wait for it, on its loop.

        Returns:
            True once it is held; False where it was given up meanwhile, by :meth:`release` or because it took too long.
        """
        if self.waiter is not None:
            seconds = self._admission.queue_seconds
            timer = self.loop.call_later(seconds, self._time_out) if seconds else None
            try:
                await self.waiter
            finally:
                if timer is not None:
                    timer.cancel()
        return self.held

    def release(self) -> None:
        """Give it to the next, or give up waiting for it; from any thread. A second call does nothing."""
        self._admission.release(self)

    def _time_out(self) -> None:
        self.timed_out = self._admission.release(self, only_waiting=True)


class Admission:
    """A number of places, and a bounded queue for those who find none free.

    Who waits is served in the order in which they came, but for those whose session has all the places that it may
    have: these are passed over until one of their session's is free. Where sessions are limited, none may have more
    than half of the queue.

    Several loops may use it, and a handler's code ends on any thread, so all state is guarded by one lock, which is
    never held while anything waits.

    Args:
        limit: How many places there are; ``None`` for any number.
        session_limit: How many of them one session may have; ``None`` for all.
        queue_size: How many may wait.
        queue_seconds: How long they may wait; 0 for as long as they like.
    """

    def __init__(
        self, limit: int | None, session_limit: int | None = None, queue_size: int = 0, queue_seconds: float = 0.0
    ) -> None:
        self._limit = math.inf if limit is None else limit
        self._session_limit = session_limit
        self._queue_size = queue_size
        self._session_queue_size = max(queue_size // 2, 1)
        self.queue_seconds = queue_seconds
        """How long an invocation may wait, in seconds; 0 where that is not limited."""
        self._lock = threading.Lock()
        self._held = 0
        self._held_by: Counter[str] = Counter()
        self._waiting: dict[Place, None] = {}  # in the order in which they came
        self._waiting_of: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """How many places are held."""
        return self._held

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    @property
    def retry_after(self) -> int:
        """The ``Retry-After`` of a refusal, in whole seconds; at least 1."""
        return max(math.ceil(self.queue_seconds), 1) if self._queue_size else 1

    def is_full(self, session: str | None) -> bool:
        """Tell whether there is neither a place nor room in the queue now.

        Args:
            session: The session of the invocation, where it has one.
        """
        with self._lock:
            return not (self._has_place(session) or self._has_room(session))

    def enter(self, session: str | None, loop: asyncio.AbstractEventLoop) -> Place | None:
        """Take a place, or wait for one.

        Args:
            session: The session of the invocation, where it has one.
            loop: The loop that serves it, on which this is called.

        Returns:
            The place, which may have to be waited for, and is to be released in any case; ``None`` where the queue is
            full.
        """
        place = Place(self, session, loop)
        with self._lock:
            # A place is free only while none of those that wait may have it, so none is overtaken.
            if self._has_place(session):
                self._take(place)
            elif self._has_room(session):
                place.state = _State.WAITING
                place.waiter = loop.create_future()
                self._waiting[place] = None
                if session is not None and self._session_limit is not None:
                    self._waiting_of[session] += 1
            else:
                return None
        return place

    def release(self, place: Place, *, only_waiting: bool = False) -> bool:
        """Take a place back, and give it to the next; from any thread.

        Args:
            place: The place, or what waits for one.
            only_waiting: Whether to leave it as it is where it is held.

        Returns:
            Whether this call has taken it back.
        """
        with self._lock:
            if place.state is _State.WAITING:
                self._remove(place)
                place.state = _State.RELEASED
                _wake(place)
                return True
            if place.state is _State.RELEASED or only_waiting:
                return False
            self._take_back(place)
            while (following := self._next()) is not None:
                self._remove(following)
                self._take(following)
                if _wake(following):
                    break
                self._take_back(following)  # its loop is closed
            return True

    # -- With the lock held

    def _has_place(self, session: str | None) -> bool:
        if self._held >= self._limit:
            return False
        return session is None or self._session_limit is None or self._held_by[session] < self._session_limit

    def _has_room(self, session: str | None) -> bool:
        if len(self._waiting) >= self._queue_size:
            return False
        if session is None or self._session_limit is None:
            return True
        return self._waiting_of[session] < self._session_queue_size

    def _next(self) -> Place | None:
        return next((place for place in self._waiting if self._has_place(place.session)), None)

    def _take(self, place: Place) -> None:
        place.state = _State.HELD
        self._held += 1
        if place.session is not None and self._session_limit is not None:
            self._held_by[place.session] += 1

    def _take_back(self, place: Place) -> None:
        place.state = _State.RELEASED
        self._held -= 1
        if place.session is not None and self._session_limit is not None:
            _decrement(self._held_by, place.session)

    def _remove(self, place: Place) -> None:
        del self._waiting[place]
        if place.session is not None and self._session_limit is not None:
            _decrement(self._waiting_of, place.session)


def admission_of(settings: Settings) -> Admission | None:
    """The places that the settings give invocations; ``None`` where any number may run."""
    limit, session_limit = settings.max_concurrent_invocations, settings.max_concurrent_per_session
    if limit is None and session_limit is None:
        return None
    return Admission(limit, session_limit, settings.queue_size, settings.queue_timeout_seconds)


def _decrement(counter: Counter[str], session: str) -> None:
    counter[session] -= 1
    if not counter[session]:
        del counter[session]  # or it would grow with each session that ever was


def _wake(place: Place) -> bool:
    return call_threadsafe(place.loop, _settle, place.waiter)


def _settle(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
