"""Threads for handlers that are not ``async`` and may block."""

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)


class ThreadPool:
    """A bounded number of threads for handlers that may block, and a queue for the calls that find none free.

    The threads are daemons: a handler that never returns must not keep the process from ending, as one in a
    ``concurrent.futures.ThreadPoolExecutor`` would.

    Args:
        size: The most threads there may be.
        name: What their names begin with.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._stopped = False

    @property
    def queue_length(self) -> int:
        """How many calls wait for a thread."""
        return len(self._calls)

    def submit(self, call: Callable[[], object]) -> None:
        """Run a call in a thread of the pool as soon as one is free.

        Args:
            call: What to run; it handles its own errors.

        Raises:
            RuntimeError: The pool has been stopped.
        """
        with self._changed:
            if self._stopped:
                raise RuntimeError("the thread pool has been stopped")
            self._calls.append(call)
            if self._idle >= len(self._calls):
                self._changed.notify()
            elif self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._calls and not self._stopped:
                    self._changed.wait()
                self._idle -= 1
                if not self._calls:
                    return
                call = self._calls.popleft()
            try:
                call()
            except BaseException:  # a call handles its own errors; one that slips through must not cost a thread
                logger.exception("A call in %s raised", threading.current_thread().name)
            del call

    def stop(self) -> None:
        """Take no more calls. What is queued still runs, what is idle ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
