"""The loops that async handlers run on: one in a thread of its own, or the one that accepts requests."""

import asyncio
import concurrent.futures
import logging
import os
import selectors
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple, Protocol

from litestar_agentcore.runtime.mailbox import Mailbox, post
from litestar_agentcore.runtime.threads import ThreadPool

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long tasks that are left on a worker loop get to end once they were cancelled."""

BATCH_SECONDS = 0.01
"""How long a loop begins one call after another before it looks after its sockets and timers again."""


class Loop(Protocol):
    """Where a coroutine can run."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> "LoopCall":
        """Run a coroutine, in a context, known by a name."""

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop's thread, soon."""


class Watching(Protocol):
    """Who looks at loops while something runs there, and sleeps else."""

    asleep: bool

    def wake(self) -> None:
        """Look at the loops again."""


class LoopCall:
    """A coroutine that is to run on a loop, seen from outside."""

    __slots__ = ("_cancelled", "_task", "context", "coroutine", "loop", "name")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> None:
        self.loop = loop
        self.coroutine = coroutine
        self.context = context
        self.name = name
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel it, from any thread, whether it has begun or not."""
        self._cancelled = True
        self.loop.call(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def begin(self, start: "Callable[[LoopCall], asyncio.Task[None]]") -> None:
        """Begin, on the loop's thread, unless it was cancelled before.

        Args:
            start: Makes the task.
        """
        if self._cancelled:
            self.coroutine.close()
        else:
            self._task = start(self)


class Holder(NamedTuple):
    """Who holds a loop."""

    name: str
    """The handler, or the coroutine that it started."""
    context: Context | None
    """The context that this runs in, where it is known."""
    frame: FrameType | None
    """The innermost frame of the loop's thread."""


class _TurnSelector(selectors.DefaultSelector):
    """A selector that knows whether its loop waits or works, and since when.

    Nobody has to wake a loop that is awake, and a watchdog sees a loop that does not turn without ever asking it.

    Args:
        has_mail: Tells whether another thread has left something for the loop.
        deliver: Has the loop look at it in this turn.
    """

    def __init__(self, has_mail: Callable[[], object], deliver: Callable[[], object]) -> None:
        super().__init__()
        self._has_mail = has_mail
        self._deliver = deliver
        self.waiting = False
        self.working_since = 0.0
        """When the loop came back from here, in monotonic seconds; 0 while it is here."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for the files of the loop, its next timer, or mail."""
        self.working_since = 0.0
        if timeout is None or timeout > 0:
            # In this order, since whoever leaves mail asks afterwards whether the loop waits.
            self.waiting = True
            events = super().select(0 if self._has_mail() else timeout)
            self.waiting = False
        else:
            events = super().select(timeout)
        self.working_since = monotonic()
        if self._has_mail():
            self._deliver()
        return events


class _EventLoop(asyncio.SelectorEventLoop):
    """Gives what handlers leave to ``asyncio.to_thread()`` to daemon threads: the interpreter waits for all others.

    Args:
        selector: Waits for the loop's files.
        name: What its threads' names begin with.
    """

    def __init__(self, selector: selectors.BaseSelector, name: str) -> None:
        super().__init__(selector)
        self._threads = ThreadPool(min(32, (os.cpu_count() or 1) + 4), f"{name}-thread")
        self._own_executor = False

    def set_default_executor(self, executor: Any) -> None:
        """Have another executor instead."""
        self._own_executor = True
        super().set_default_executor(executor)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """Call a function in a thread."""
        if executor is not None or self._own_executor:
            return super().run_in_executor(executor, func, *args)
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def call() -> None:
            if outcome.set_running_or_notify_cancel():
                try:
                    result = func(*args)
                except BaseException as error:
                    outcome.set_exception(error)
                else:
                    outcome.set_result(result)

        self._threads.submit(call)
        return asyncio.wrap_future(outcome, loop=self)

    def close(self) -> None:
        """End the threads as well."""
        super().close()
        self._threads.stop()


class WorkerLoop:
    """An event loop in a thread of its own, on which async handlers run.

    It lives on between invocations, so a task that a handler starts outlives the handler's return.

    Args:
        name: What its thread is called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: deque[LoopCall] = deque()
        self._letters: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._beginning: LoopCall | None = None
        self.watchdog: Watching | None = None
        """Who is to look at the loop while something runs there."""
        self._waker: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[asyncio.Task[Any], tuple[str, Context]] = {}
        self._selector = _TurnSelector(self._has_mail, self._deliver_soon)
        self._loop = _EventLoop(self._selector, name)
        self._loop.set_task_factory(self._make_task)  # type: ignore[arg-type]  # typeshed wants a generic function
        self.held_since = 0.0
        """The beginning of the turn in which the watchdog found the loop held, in monotonic seconds; else 0."""
        self.idle_since = monotonic()
        """When something last ran here."""
        self.stopped = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except BaseException:  # ``sys.exit()`` in a task must not take the other sessions' handlers with it
                logger.exception("A task on %s tried to end its thread", self.name)
            else:
                break
        self._loop.close()
        self._ended.set()

    @property
    def load(self) -> int:
        """How many calls and tasks there are, begun or not."""
        return len(self._tasks) + len(self._calls)

    @property
    def waiting_calls(self) -> int:
        """How many calls have not begun."""
        return len(self._calls)

    @property
    def has_timers(self) -> bool:
        """Whether something is to be called later, of which no task may know."""
        return any(not timer.cancelled() for timer in tuple(getattr(self._loop, "_scheduled", ())))

    @property
    def working_since(self) -> float:
        """When the present turn of the loop began, in monotonic seconds; 0 where it waits for something to do."""
        return self._selector.working_since

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> LoopCall:
        """Run a coroutine on the loop.

        Args:
            coroutine: What to run; it handles its own errors.
            context: The context that it runs in.
            name: What people know it by.

        Returns:
            A handle to cancel it with.

        Raises:
            RuntimeError: The loop has been stopped.
        """
        if self.stopped:
            coroutine.close()
            raise RuntimeError("the worker loop has been stopped")
        call = LoopCall(self, coroutine, context, name)
        self._calls.append(call)
        if self._selector.waiting:
            self._wake_after_this_turn()
        # Asked after the call was added, since the watchdog looks for calls after it has said that it sleeps.
        if (watchdog := self.watchdog) is not None and watchdog.asleep:
            watchdog.wake()
        return call

    def _wake_after_this_turn(self) -> None:
        """Wake the loop once the caller's own loop has handled what it has before it.

        To wake a thread is to give up the interpreter's lock, and what comes first is better handed over together.
        """
        try:
            caller = asyncio.get_running_loop()
        except RuntimeError:  # a thread of the pool
            self._wake()
            return
        if self._waker is not caller:
            self._waker = caller
            caller.call_soon(self._wake_now)

    def _wake_now(self) -> None:
        self._waker = None
        if self._selector.waiting:
            self._wake()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop's thread, soon.

        Args:
            function: What to call; it does not raise.
            *args: Its arguments.
        """
        self._letters.append((function, args))
        if self._selector.waiting:
            self._wake()

    def take_over(self, other: "WorkerLoop") -> None:
        """Take the calls that another loop has not begun.

        Args:
            other: That loop, which somebody holds.
        """
        while True:
            try:
                call = other.give_up_call()
            except IndexError:
                break
            call.loop = self
            self._calls.append(call)
        if self._selector.waiting:
            self._wake()

    def give_up_call(self) -> LoopCall:
        """Let go of a call that has not begun.

        Raises:
            IndexError: There is none, or the loop has just begun it itself.
        """
        return self._calls.popleft()

    def holder(self) -> Holder:
        """Who holds the loop now. For another thread to ask."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - documented, and its only name
        if (beginning := self._beginning) is not None:
            return Holder(beginning.name, beginning.context, frame)
        task = asyncio.current_task(self._loop)
        if task is not None:
            kept = self._tasks.get(task)
            return Holder(kept[0], kept[1], frame) if kept is not None else Holder(task.get_name(), None, frame)
        return Holder("a callback", _context_of_callback(frame), frame)

    def stop(self) -> None:
        """Cancel what still runs, wait a few seconds for it to end, and end the thread."""
        if self.stopped:
            return
        self.stopped = True
        self.call(self._begin_to_stop)
        # A loop that is held does not hear of it. Its thread is a daemon and ends with the process.
        if not self._ended.wait(0.1 if self.held_since else STOP_SECONDS + 1):
            logger.warning("%s is still held by a handler that blocks it, and is left behind", self.name)

    def _begin_to_stop(self) -> None:
        self._loop.create_task(self._wind_down())

    async def _wind_down(self) -> None:
        stuck: set[asyncio.Task[Any]] = set()
        try:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                if not task.cancelling():  # who has been told already is tidying up
                    task.cancel()
            if left:
                _, stuck = await asyncio.wait(left, timeout=STOP_SECONDS)
                for task in stuck:
                    logger.warning("A task did not end when it was cancelled: %r", task)
            if not stuck:
                await self._loop.shutdown_asyncgens()
        finally:
            if stuck:  # asyncio complains of tasks that end with their loop: it goes on until the process ends
                self._ended.set()
            else:
                self._loop.stop()

    def _wake(self) -> None:
        self._selector.waiting = False
        post(self._loop, bool)

    def _has_mail(self) -> bool:
        return bool(self._calls or self._letters)

    def _deliver_soon(self) -> None:
        self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        letters, calls, selector = self._letters, self._calls, self._selector
        while letters:
            function, args = letters.popleft()
            function(*args)
        now = monotonic()
        until = now + BATCH_SECONDS
        while calls and now < until:
            try:
                self._beginning = call = calls.popleft()
            except IndexError:  # another loop has taken them over
                break
            call.begin(self._start)
            selector.working_since = now = monotonic()
        self._beginning = None
        self.idle_since = now

    def _start(self, call: LoopCall) -> "asyncio.Task[None]":
        task = _start_eagerly(self._loop, call.coroutine, call.context)
        if not task.done():
            self._keep(task, call.name, call.context)
        return task

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> "asyncio.Task[Any]":
        if (context := options.get("context")) is None:
            context = options["context"] = copy_context()
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        if not task.done():
            self._keep(task, getattr(coroutine, "__qualname__", task.get_name()), context)
        return task

    def _keep(self, task: "asyncio.Task[Any]", name: str, context: Context) -> None:
        """Keep a task until its end: asyncio itself has but weak references, and handlers forget what they start."""
        self._tasks[task] = (name, context)
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        del self._tasks[task]
        self.idle_since = self._selector.working_since


def _context_of_callback(frame: FrameType | None) -> Context | None:
    """The context of the callback that a loop runs, as the frame says that runs it: asyncio keeps it nowhere else."""
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001
            context = getattr(frame.f_locals.get("self"), "_context", None)
            return context if isinstance(context, Context) else None
        frame = frame.f_back
    return None


def _start_eagerly(
    loop: asyncio.BaseEventLoop, coroutine: Coroutine[Any, Any, None], context: Context
) -> "asyncio.Task[None]":
    """Make a task and run its first step at once: most handlers need no other."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
    task = asyncio.Task(coroutine, loop=loop, context=context)
    # What Python 3.12 added, by hand: a new task has queued its first step. Another thread may have queued something
    # behind it in this very moment; then both are left to the loop.
    ready: deque[asyncio.Handle] = loop._ready  # type: ignore[attr-defined]  # noqa: SLF001
    handle: Any = ready.pop()
    if getattr(handle._callback, "__self__", None) is task:  # noqa: SLF001
        handle._run()  # noqa: SLF001
    else:
        ready.append(handle)
    return task


class AcceptingLoop:
    """The loop that accepts requests, for handlers that are trusted never to block it.

    Args:
        mailbox: Reaches it.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> LoopCall:
        """Run a coroutine on the loop.

        Args:
            coroutine: What to run; it handles its own errors.
            context: The context that it runs in.
            name: What people know it by.

        Returns:
            A handle to cancel it with.
        """
        call = LoopCall(self, coroutine, context, name)
        self._mailbox.post(call.begin, self._start)
        return call

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop, soon.

        Args:
            function: What to call; it does not raise.
            *args: Its arguments.
        """
        self._mailbox.post(function, *args)

    def _start(self, call: LoopCall) -> "asyncio.Task[None]":
        task = self._mailbox.loop.create_task(call.coroutine, name=call.name, context=call.context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
