"""Threads for handlers that may block."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

from litestar_agentcore.runtime.forking import end_stray_child

logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""How long a thread that has nothing to do is kept."""


_NextCalls = queue.SimpleQueue[Callable[[], object] | None]
"""Gives the next call to one thread; ``None`` has it end."""


class ThreadPool:
    """A bounded number of threads that run calls at the same time, and a queue for the calls that find none free.

    A call that waits for a client may be parked: another call then runs in its place.

    The threads are daemons: a handler that never returns must not keep the process from ending, as one in a
    ``concurrent.futures.ThreadPoolExecutor`` would.

    Args:
        size: How many calls may run at the same time.
        name: What the threads' names begin with.
        park_limit: How many calls may be parked besides.
    """

    def __init__(self, size: int, name: str, park_limit: int = 0) -> None:
        self._size = size
        self._name = name
        self._park_limit = park_limit
        self._lock = threading.Lock()
        self._free = size  # below 0 while calls that are about to end run besides
        self._calls: deque[Callable[[], object]] = deque()
        self._returning: deque[threading.Lock] = deque()
        self._idle: list[_NextCalls] = []
        self._started = 0
        self._closed = False
        self.parked = 0
        """How many calls are parked."""

    @property
    def running(self) -> int:
        """How many calls run; those that wait in their place because no more may be parked are among them."""
        return self._size - self._free

    @property
    def queue_length(self) -> int:
        """How many calls wait for a thread."""
        return len(self._calls)

    @property
    def is_full(self) -> bool:
        """Whether every place is taken, those for parked calls included, or promised to calls that were parked."""
        return self._free <= 0 and self.parked + len(self._returning) >= self._park_limit

    def submit(self, call: Callable[[], object]) -> None:
        """Run a call in a thread as soon as there is room for it; the calls begin in their order.

        Args:
            call: What to run; it handles its own errors.
        """
        with self._lock:
            self._calls.append(call)
            self._fill_places()

    def _fill_places(self) -> None:
        """Give each free place to who has waited for one the longest."""
        while self._free > 0 and (self._returning or self._calls):
            self._free -= 1
            if self._returning:
                self._returning.popleft().release()
            else:
                self._begin(self._calls.popleft())

    def _begin(self, call: Callable[[], object]) -> None:
        if self._idle:
            self._idle.pop().put(call)
        else:
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._run, args=(call,), name=name, daemon=True).start()

    def _run(self, call: Callable[[], object] | None) -> None:
        next_calls: _NextCalls = queue.SimpleQueue()
        while call is not None:
            try:
                call()
            except BaseException:  # a call handles its own errors; one that slips through must not cost a thread
                logger.exception("A call in %s raised", threading.current_thread().name)
            call = None
            end_stray_child()
            with self._lock:
                self._free += 1
                self._idle.append(next_calls)
                self._fill_places()
            try:
                call = next_calls.get(timeout=0 if self._closed else IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if next_calls in self._idle:
                        self._idle.remove(next_calls)
                        return
                call = next_calls.get()  # given in this very moment

    def park(self, wait: Callable[[], object], is_urgent: Callable[[], bool]) -> None:
        """Wait, in the thread of a call, while another call runs in its place, where one more may be parked.

        Args:
            wait: What to wait with; it returns once the call may go on.
            is_urgent: Tells, after that, whether the call need not wait for a place: it is about to end.
        """
        with self._lock:
            parks = self.parked < self._park_limit
            if parks:
                self.parked += 1
                self._free += 1
                self._fill_places()
        wait()
        if not parks:
            return
        with self._lock:
            self.parked -= 1
            if is_urgent():
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._returning.append(turn)
            self._fill_places()
        turn.acquire()

    def trim(self) -> None:
        """End the threads that have nothing to do."""
        with self._lock:
            idle, self._idle = self._idle, []
        for next_calls in idle:
            next_calls.put(None)

    def close(self) -> None:
        """End every thread as soon as it has nothing to do, those included whose call runs now."""
        self._closed = True
        self.trim()
