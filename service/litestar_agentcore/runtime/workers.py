"""The places where handlers run, and who gets the next call: a loop that turns, and never one that somebody holds."""

import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from time import monotonic
from typing import Any

from litestar_agentcore.runtime.loops import AcceptingLoop, Loop, LoopCall, WorkerLoop
from litestar_agentcore.runtime.mailbox import Mailbox
from litestar_agentcore.runtime.threads import ThreadPool
from litestar_agentcore.runtime.watchdog import Watchdog

CLOSER_THREADS = 8

IDLE_SECONDS = 10.0
"""How long a worker loop beside the first one may have nothing to do before it is ended."""


class Workers:
    """The loops and threads that handlers run on. Made on first use: an app that was only constructed has none.

    Async handlers run on the first worker loop. Only while a handler holds that do others stand in for it, because
    what a handler keeps from call to call (an HTTP client's connections, say) belongs to the loop that it was made on.

    Args:
        sync_threads: The most threads for plain handlers.
        stall_seconds: How long a worker loop may go without turning before it gets no more work.
        max_loops: The most worker loops there may be.
        inline: Whether async handlers run on the loop that accepts requests.
        on_stall: Called each time a handler is found to hold a worker loop.
    """

    def __init__(
        self,
        *,
        sync_threads: int,
        stall_seconds: float,
        max_loops: int,
        inline: bool,
        on_stall: Callable[[], object],
    ) -> None:
        self._sync_threads = sync_threads
        self._stall_seconds = stall_seconds
        self._max_loops = max_loops
        self._on_stall = on_stall
        self.inline = inline
        self._lock = threading.Lock()
        self._loops: tuple[WorkerLoop, ...] = ()
        self._names = 0
        self._retiring: list[WorkerLoop] = []
        self._watchdog: Watchdog | None = None
        self._accepting: dict[Mailbox, AcceptingLoop] = {}
        self._pool: ThreadPool | None = None
        self._closers: ThreadPool | None = None

    def loop_for(self, home: Mailbox) -> Loop:
        """The loop that an async handler is to run on.

        Args:
            home: Reaches the loop that accepts requests.
        """
        if not self.inline:
            return self._turning_loop()
        with self._lock:
            if (loop := self._accepting.get(home)) is None:
                self._accepting = {box: held for box, held in self._accepting.items() if not box.loop.is_closed()}
                loop = self._accepting[home] = AcceptingLoop(home)
        return loop

    def spawn(self, home: Mailbox, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> LoopCall:
        """Run a coroutine where async handlers run.

        Args:
            home: Reaches the loop that accepts requests.
            coroutine: What to run; it handles its own errors.
            context: The context that it runs in.
            name: What people know it by.

        Returns:
            A handle to cancel it with.
        """
        return self.loop_for(home).spawn(coroutine, context, name)

    def _turning_loop(self) -> WorkerLoop:
        loops = self._loops
        return loops[0] if loops and not loops[0].held_since else self._stand_in()

    def _stand_in(self) -> WorkerLoop:
        with self._lock:
            for loop in self._loops:
                if not loop.held_since:
                    return loop
            if len(self._loops) >= self._max_loops:
                return min(self._loops, key=lambda loop: loop.load)
            self._names += 1
            loop = WorkerLoop("agentcore-worker" if self._names == 1 else f"agentcore-worker-{self._names}")
            self._loops += (loop,)
            if self._watchdog is None:
                self._watchdog = Watchdog(lambda: self._loops, self._stall_seconds, self._stalled, self._tidy)
            loop.watchdog = self._watchdog
            return loop

    def _stalled(self, _: WorkerLoop) -> None:
        self._on_stall()

    def _tidy(self) -> float | None:
        """Move work away from loops that are held, and end extra loops that are idle; called by the watchdog."""
        if any(loop.held_since and loop.waiting_calls for loop in self._loops):
            target = self._stand_in()
            if not target.held_since:
                for loop in self._loops:
                    if loop.held_since:
                        target.take_over(loop)
        # Taken from the list a while before it is ended: somebody may just have chosen it.
        with self._lock:
            retiring, self._retiring = self._retiring, []
            chosen = [loop for loop in retiring if loop.load]
            self._loops += tuple(chosen)
        for loop in retiring:
            if loop not in chosen:
                loop.stop()
        with self._lock:
            if len(self._loops) < 2:
                return None
            kept = next((loop for loop in self._loops if not loop.held_since), None)
            idle = [loop for loop in self._loops if loop is not kept and self._is_idle(loop)]
            self._retiring = idle
            self._loops = tuple(loop for loop in self._loops if loop not in idle)
        return min(self._stall_seconds, IDLE_SECONDS) if idle else IDLE_SECONDS / 4

    @staticmethod
    def _is_idle(loop: WorkerLoop) -> bool:
        busy = loop.held_since or loop.load or loop.working_since or loop.has_timers
        return not busy and monotonic() - loop.idle_since > IDLE_SECONDS

    @property
    def pool(self) -> ThreadPool:
        """The threads that plain handlers run in."""
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = ThreadPool(self._sync_threads, "agentcore-sync")
        return self._pool

    @property
    def closers(self) -> ThreadPool:
        """A few threads more that close abandoned generators, however busy the handlers' own are."""
        if self._closers is None:
            with self._lock:
                if self._closers is None:
                    self._closers = ThreadPool(CLOSER_THREADS, "agentcore-closer")
        return self._closers

    @property
    def loops(self) -> int:
        """How many worker loops are alive."""
        return len(self._loops) + len(self._retiring)

    @property
    def queue_length(self) -> int:
        """How many plain invocations wait for a thread."""
        return self._pool.queue_length if self._pool is not None else 0

    def stop(self) -> None:
        """End the threads and all that runs on the loops, within some seconds. The next use starts anew."""
        with self._lock:
            loops, pool, closers, watchdog = self._loops, self._pool, self._closers, self._watchdog
            loops += tuple(self._retiring)
            self._loops, self._retiring, self._names = (), [], 0
            self._pool = self._closers = self._watchdog = None
        if watchdog is not None:
            watchdog.stop()
        for threads in (pool, closers):
            if threads is not None:
                threads.stop()
        stoppers = [threading.Thread(target=loop.stop, daemon=True) for loop in loops]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
