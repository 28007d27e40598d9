"""The agent's event loop: one for all async handler code of an app, in a thread of its own."""

import asyncio
import concurrent.futures
import contextlib
import heapq
import logging
import os
import queue
import selectors
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any, TypeVarTuple, Unpack

from litestar_agentcore.runtime.callbacks import call_threadsafe
from litestar_agentcore.runtime.forking import end_stray_child
from litestar_agentcore.runtime.tasks import make_task
from litestar_agentcore.runtime.threads import ThreadPool
from litestar_agentcore.runtime.watchdog import Runner, Watchdog

logger = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

THREAD_NAME = "agentcore-loop"

CANCEL_SECONDS = 5.0
"""How long tasks that are cancelled at the end of a lifespan may take to end."""

IDLE_LOOK_SECONDS = 5.0
"""How often it is asked whether the last task of a loop that no app uses any more has ended."""


class _DaemonExecutor(concurrent.futures.Executor):
    """Serves ``asyncio.to_thread()`` with daemon threads: the interpreter waits for all others before it ends."""

    def __init__(self) -> None:
        self._pool = ThreadPool(min(32, (os.cpu_count() or 1) + 4), "agentcore-to-thread")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "concurrent.futures.Future[Any]":
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def call() -> None:
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    outcome.set_exception(error)

        self._pool.submit(call)
        return outcome

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.close()


class _Selector(selectors.DefaultSelector):
    """A selector that tells whether its loop waits or works, and since when, without the loop being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.has_callbacks: Callable[[], object] = bool
        self.watchdog: Watchdog | None = None
        self.waiting = False
        """Whether the loop has to be woken up for a callback that another thread adds."""
        self.turn_began = 0.0
        """When the loop began its present turn, in monotonic seconds; 0 while it waits."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for the files of the loop, for its next timer, or for a callback from another thread."""
        self.turn_began = 0.0
        end_stray_child()  # which must leave the parent's files alone
        # In this order: a thread that adds a callback asks afterwards whether the loop waits.
        self.waiting = timeout is None or timeout > 0
        events = super().select(0 if self.has_callbacks() else timeout)
        self.waiting = False
        self.turn_began = monotonic()
        if (watchdog := self.watchdog) is not None and watchdog.asleep:
            watchdog.wake()
        return events


class AgentEventLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, on which callbacks, tasks and timers may be scheduled from any thread.

    asyncio's own loses such a callback, or finds it when something else wakes the loop, since ``Future.set_result()``,
    ``Task.cancel()`` and ``create_task()`` all end in ``call_soon()``, which does not wake a loop that waits.
    """

    def __init__(self) -> None:
        self.turns = _Selector()
        super().__init__(self.turns)
        self._callbacks: Any = self._ready  # type: ignore[attr-defined]
        self.turns.has_callbacks = self._callbacks.__len__
        self._default_executor = _DaemonExecutor()
        self._wake_requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._batching: int | None = None
        self._waker: asyncio.AbstractEventLoop | None = None
        self._started: set[asyncio.Task[Any]] = set()
        self._ended = False
        self.thread: threading.Thread | None = None
        _loops.add(self)
        # On the object, since nest_asyncio replaces the methods of the class.
        self.run_until_complete = partial(_run_until_complete, self)  # type: ignore[method-assign]

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call a function in the loop's next turn; from any thread.

        From another thread the loop is woken by a third one: to wake it here would be a system call, in which the
        interpreter's lock passes to the loop, and ``Event.set()`` and its like are then found in the middle.
        """
        handle = self._schedule(callback, args, context)
        if self.turns.waiting and self._batching != threading.get_ident():
            self.turns.waiting = False
            self._wake_requests.put(True)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call a function in the loop's next turn, and wake the loop at once; from any thread."""
        handle = self._schedule(callback, args, context)
        self._wake()
        return handle

    def _schedule(self, callback: Any, args: Any, context: Context | None) -> asyncio.Handle:
        self._check_closed()  # type: ignore[attr-defined]
        if self.get_debug():
            self._check_callback(callback, "call_soon")  # type: ignore[attr-defined]
        handle: asyncio.Handle = self._call_soon(callback, args, context)  # type: ignore[attr-defined]
        return handle

    def wakes(self) -> None:
        """Wake the loop each time that :meth:`call_soon` asks for it, until the loop is closed; in a thread's body."""
        while self._wake_requests.get():
            self._write_to_self()  # type: ignore[attr-defined]

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call a function at a time of the loop's clock; from any thread."""
        if self._thread_id == threading.get_ident():  # type: ignore[attr-defined]
            return super().call_at(when, callback, *args, context=context)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self.call_soon(self._add_timer, timer)
        return timer

    def _add_timer(self, timer: Any) -> None:
        if not timer.cancelled():
            # Asked for here and now: asyncio replaces the list when many of its timers were cancelled.
            heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
            timer._scheduled = True  # noqa: SLF001

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        """Make a task, and keep it until its end: asyncio has but weak references, and handlers forget their tasks.

        A task factory is asked on the loop's own thread alone. An eager one begins a task on the thread that makes it,
        and from another thread that would break the tasks of the loop.
        """
        make: Callable[[], asyncio.Task[Any]]
        if self._thread_id == threading.get_ident():  # type: ignore[attr-defined]
            make = partial(super().create_task, coro, **options)
        else:
            options.pop("eager_start", None)
            make = partial(asyncio.Task, coro, loop=self, **options)
        task = make_task(coro, make)
        if not task.done():
            self._started.add(task)
            task.add_done_callback(self._started.discard)
        return task

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> "asyncio.Task[None]":
        """Make the task of a handler; from any thread. See :meth:`Execution.spawn`.

        Where another loop runs on the calling thread, this one is woken after that loop's turn: each wake-up releases
        the interpreter's lock, and calls that are made in one turn share it.
        """
        self._batching = threading.get_ident()
        task = asyncio.Task(coroutine, loop=self, name=name, context=context)
        self._batching = None
        if self.turns.waiting:
            caller = asyncio._get_running_loop()  # noqa: SLF001 - which does not raise, unlike its public twin
            if caller is None or caller is self:
                self._wake()
            elif self._waker is not caller:  # once a turn, or what is left of it wakes the loop again
                self._waker = caller
                caller.call_soon(self._wake_for_turn)
        return task

    def _wake_for_turn(self) -> None:
        self._waker = None
        self._wake()

    def _wake(self) -> None:
        if self.turns.waiting:
            self.turns.waiting = False
            self._write_to_self()  # type: ignore[attr-defined]

    def runs_forever(self) -> None:
        """Run until :meth:`end_when_idle`, whatever the code on the loop does to it, in the loop's thread."""
        asyncio.set_event_loop(self)
        while not self._ended:
            try:
                self.run_forever()
            except BaseException as error:
                # SystemExit, say, which asyncio lets through. The tasks of the other sessions go on.
                if not _is_emptied_queue(error):
                    logger.exception("A task tried to end the thread of the agent's event loop, which goes on")
            else:
                if not self._ended:
                    logger.warning("A handler stopped the agent's event loop, which goes on")
        self.turns.turn_began = 0.0  # it holds nobody up any more, however long it takes to close
        self.close()
        self._wake_requests.put(False)

    def close(self) -> None:
        """Close the loop once its thread has ended it.

        Raises:
            RuntimeError: It is still the loop of all handlers, even if one of them has just stopped it.
        """
        if not self._ended and self.thread is not None and self.thread.is_alive():
            raise RuntimeError("The agent's event loop runs every async handler, and cannot be closed by one of them")
        super().close()

    def end_when_idle(self) -> None:
        """End the thread and close the loop once no task is left on it."""
        if asyncio.all_tasks(self):
            self.call_later(IDLE_LOOK_SECONDS, self.end_when_idle)
        else:
            self._ended = True
            self.stop()

    def runner(self) -> Runner:
        """What the loop runs in its present turn; asked from another thread, by the watchdog."""
        thread = self.thread
        frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None  # noqa: SLF001
        handle = _handle_of(frame)
        context = getattr(handle, "_context", None)
        if (task := asyncio.current_task(self)) is None:
            return Runner(handle, "a callback", context, frame)
        # A task of :meth:`spawn` has the name of its handler.
        started = getattr(task.get_coro(), "__qualname__", None) if task in self._started else None
        return Runner(task, started or task.get_name(), context, frame)


_loops: "weakref.WeakSet[AgentEventLoop]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Run nothing more, in a process that was forked on the loop's thread: all that waits here is the parent's."""
    for loop in _loops:
        if loop.thread is threading.current_thread():
            loop._callbacks.clear()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _handle_of(frame: FrameType | None) -> object:
    """The callback that a loop runs, found in the frame that runs it: asyncio keeps it nowhere else."""
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


def _run_until_complete(loop: Any, future: Any) -> Any:
    if loop._thread_id in (None, threading.get_ident()):  # noqa: SLF001
        return type(loop).run_until_complete(loop, future)
    if asyncio.iscoroutine(future):
        future.close()
    raise RuntimeError(
        "The agent's event loop runs in another thread and cannot be run from this one. An async handler without"
        " an await runs in a thread of the pool: await what it wants to run, or make it a plain function"
    )


def _is_emptied_queue(error: BaseException) -> bool:
    """Tell what a nested run of the loop (nest_asyncio) leaves to the turn around it: it ran that turn's callbacks."""
    if not isinstance(error, IndexError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code is asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # noqa: SLF001


class AgentLoop:
    """The one loop of an app for async handler code. Made on first use, and kept as long as the app.

    Args:
        stall_seconds: How long something may hold the loop before the log names it, in seconds.
        on_stall: Called for each time that something holds the loop longer than that, on the watchdog's thread.
    """

    def __init__(self, stall_seconds: float, on_stall: Callable[[], object]) -> None:
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._lock = threading.Lock()
        self._loop: AgentEventLoop | None = None

    @property
    def loop(self) -> AgentEventLoop:
        """The loop, which runs."""
        return self._loop or self._start()

    def _start(self) -> AgentEventLoop:
        with self._lock:
            if self._loop is None:
                loop = AgentEventLoop()
                watchdog = loop.turns.watchdog = Watchdog(loop.turns, loop.runner, self._stall_seconds, self._on_stall)
                loop.thread = threading.Thread(target=loop.runs_forever, name=THREAD_NAME, daemon=True)
                loop.thread.start()
                threading.Thread(target=loop.wakes, name="agentcore-waker", daemon=True).start()
                # Neither thread refers to the app, so that an app that is garbage takes its threads along.
                weakref.finalize(self, _release, loop, watchdog).atexit = False
                self._loop = loop
            return self._loop

    @property
    def lag(self) -> float:
        """For how many seconds the loop has not turned; 0 where it waits for something to do."""
        began = self._loop.turns.turn_began if self._loop is not None else 0.0
        return max(monotonic() - began, 0.0) if began else 0.0

    async def turn(self, seconds: float) -> bool:
        """Wait until the loop has run all that was scheduled on it, tasks' first steps included; from another loop.

        Args:
            seconds: How long to wait.

        Returns:
            False where it took longer: something holds the loop.
        """
        loop = self._loop
        if loop is None:
            return True
        turned = asyncio.Event()
        # Twice: what the first turn runs may schedule the first step of a task, which belongs to it.
        loop.call_soon(loop.call_soon, call_threadsafe, asyncio.get_running_loop(), turned.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(turned.wait(), seconds)
        return turned.is_set()

    def cancel_all(self) -> None:
        """Cancel what runs on the loop, and wait a few seconds for it to end. Blocks; from another thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        # Now: a loop that is held until the app is started again must not lose what runs then.
        tasks = asyncio.all_tasks(loop)
        held = self.lag > self._stall_seconds
        deadline = monotonic() + (0.1 if held else CANCEL_SECONDS + 1)
        while True:
            ended = asyncio.run_coroutine_threadsafe(_cancel_all(tasks), loop)
            try:
                ended.result(max(deadline - monotonic(), 0.0))
            except concurrent.futures.CancelledError:
                continue  # a handler's ``finally`` cancels all tasks that there are
            except TimeoutError:
                logger.warning("The agent's event loop is still held by a handler that blocks it")
            return


def _release(loop: AgentEventLoop, watchdog: Watchdog) -> None:
    watchdog.stop()
    loop.call_soon(loop.end_when_idle)


async def _cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if not task.cancelling():  # else it is ending already
            task.cancel()
    if tasks:
        _, stuck = await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
        for task in stuck:
            logger.warning("A task did not end when it was cancelled: %r", task)


@types.coroutine
def task_begins() -> Generator[None, None, None]:
    """Wait for the first step of the task; the first thing in the ``try`` of a coroutine.

    A task that is cancelled before that step throws into its coroutine, which does not see it where it has not begun.
    So it is sent ``None`` before it is given to the task, and waits here.
    """
    yield
