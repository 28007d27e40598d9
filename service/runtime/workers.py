"""Where handlers run, away from the loop that accepts requests: a loop for async ones, threads for plain ones."""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long tasks that are left on a worker loop get to end once they were cancelled."""


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


class WorkerLoop:
    """An event loop in a thread of its own, on which async handlers run.

    It lives on between invocations, so a task that a handler starts outlives the handler's return.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop.set_task_factory(self._make_task)  # type: ignore[arg-type]  # typeshed wants a generic function
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except BaseException:  # ``sys.exit()`` in a task must not take the other sessions' handlers with it
                logger.exception("A task on %s tried to end its thread", self._thread.name)
            else:
                break
        self._loop.close()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> "asyncio.Task[Any]":
        """Make a task and keep it: asyncio itself keeps but weak references, and handlers forget what they start."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context) -> "WorkerTask":
        """Run a coroutine on the loop.

        Args:
            coroutine: What to run; it handles its own errors.
            context: The context that it runs in.

        Returns:
            A handle to cancel it with.
        """
        task = WorkerTask(self)
        if not post(self._loop, self._begin, task, coroutine, context):
            coroutine.close()
            raise RuntimeError("the worker loop has been stopped")
        return task

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop's thread, soon."""
        post(self._loop, function, *args)

    def _begin(self, handle: "WorkerTask", coroutine: Coroutine[Any, Any, None], context: Context) -> None:
        if handle.cancelled:
            coroutine.close()
            return
        task = self._loop.create_task(coroutine, context=context)
        handle.task = task

    def stop(self) -> None:
        """Cancel what still runs, wait a few seconds for it to end, and end the thread."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):
            asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop)
        self._thread.join(STOP_SECONDS + 1)
        if self._thread.is_alive():
            logger.warning("%s is still held by a handler that blocks it, and is left behind", self._thread.name)

    async def _wind_down(self) -> None:
        try:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            if left:
                _, stuck = await asyncio.wait(left, timeout=STOP_SECONDS)
                for task in stuck:
                    logger.warning("A task did not end when it was cancelled: %r", task)
            await self._loop.shutdown_asyncgens()
        finally:
            self._loop.stop()


class WorkerTask:
    """A coroutine on a worker loop, seen from outside."""

    __slots__ = ("_worker", "cancelled", "task")

    def __init__(self, worker: WorkerLoop) -> None:
        self._worker = worker
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Cancel it, from any thread, whether it has begun or not."""
        self._worker.call(self._cancel)

    def _cancel(self) -> None:
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()


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


class Workers:
    """The places where handlers run. Made on first use, so an app that was only constructed costs no thread.

    Args:
        sync_threads: The most threads for plain handlers.
    """

    def __init__(self, sync_threads: int) -> None:
        self._sync_threads = sync_threads
        self._lock = threading.Lock()
        self._loop: WorkerLoop | None = None
        self._pool: ThreadPool | None = None
        self._closers: ThreadPool | None = None

    @property
    def loop(self) -> WorkerLoop:
        """The loop that async handlers run on."""
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    self._loop = WorkerLoop("agentcore-worker")
        return self._loop

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
        return int(self._loop is not None)

    @property
    def queue_length(self) -> int:
        """How many plain invocations wait for a thread."""
        return self._pool.queue_length if self._pool is not None else 0

    def stop(self) -> None:
        """End the threads and all that runs on the loop, within some seconds. The next use starts anew."""
        with self._lock:
            loop, pool, closers = self._loop, self._pool, self._closers
            self._loop = self._pool = self._closers = None
        for threads in (pool, closers):
            if threads is not None:
                threads.stop()
        if loop is not None:
            loop.stop()


CLOSER_THREADS = 8
