"""The registry of background tasks: what an agent still does after it has answered."""

import asyncio
import functools
import inspect
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from operator import itemgetter
from threading import Lock
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec
from agentcore_telemetry.metrics import TaskOutcome
from agentcore_telemetry.recording import TaskRecord, Telemetry

from litestar_agentcore.protocol.context import RequestValues, current_request
from litestar_agentcore.runtime.callbacks import call_threadsafe
from litestar_agentcore.runtime.handler import is_coroutine_function, name_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_ID_BITS = 30
"""Ids of tasks have the process in front where there are several, and still fit JavaScript's numbers."""


class ActiveTask(msgspec.Struct, eq=False):
    """A task that has begun and not ended."""

    name: str
    metadata: Mapping[str, Any] | None
    began: float
    """On the monotonic clock, in seconds."""
    values: RequestValues
    """The ids and headers of the request that started it."""
    runner: "asyncio.Task[Any] | None"
    """The asyncio task that it is, where there is one."""
    registry: "TaskRegistry"
    task_id: int
    record: TaskRecord | None = None
    """Its span; made once the task is counted."""

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def expire(self, *, stopped: bool = False) -> None:
        """Count it as lost and cancel it: the service's time to shut down is over.

        Args:
            stopped: Whether its session is stopped instead.
        """
        if not self.registry.finish(self.task_id, "lost"):
            return
        token = current_request.set(self.values)
        logger.warning(
            "The task %s of session %s was still running %s, %.1f s old, and is lost; metadata: %s",
            self.name,
            self.values.session_id,
            "when that was stopped" if stopped else "at shutdown",
            self.age,
            self.metadata,
        )
        current_request.reset(token)
        if self.runner is not None:
            call_threadsafe(self.runner.get_loop(), self.runner.cancel)


class TaskBoard(Protocol):
    """Where other worker processes see the tasks of this one. Called with a lock held."""

    def add_task(self, task_id: int, name: str, began: float) -> None:
        """List a task, which began at this time of the monotonic clock, in seconds."""

    def remove_task(self, task_id: int) -> None:
        """Take a task from the list."""


class TaskRegistry:
    """Counts the active tasks of an agent. Safe to use from any thread.

    Args:
        telemetry: Records each task.
        on_change: Called after the first task begins and after the last one ends.
    """

    def __init__(self, telemetry: Telemetry, on_change: Callable[[], None]) -> None:
        self._telemetry = telemetry
        self._on_change = on_change
        self._active: dict[int, ActiveTask] = {}
        self._not_begun: dict[object, ActiveTask] = {}
        """By the asyncio task, or by its coroutine as long as there is no such task yet."""
        self._lock = Lock()
        self._ids = itertools.count(1)
        self._board: TaskBoard | None = None
        self._foreign_jobs: Callable[[], tuple[int, list[tuple[str, float]]]] = lambda: (0, [])

    def __len__(self) -> int:
        return len(self._active)

    def add(
        self, name: str, metadata: Mapping[str, Any] | None = None, runner: "asyncio.Task[Any] | None" = None
    ) -> int:
        """Count a task as active.

        Args:
            name: Its name in metrics, spans and the log.
            metadata: Anything else, for the log.
            runner: The asyncio task that it is, which is cancelled at a shutdown or with its session.

        Returns:
            The id to complete it with.
        """
        return self._add(name, metadata, runner).task_id

    def _add(self, name: str, metadata: Mapping[str, Any] | None, runner: "asyncio.Task[Any] | None") -> ActiveTask:
        task_id = next(self._ids)
        task = ActiveTask(name, metadata, time.monotonic(), current_request.get(), runner, self, task_id)
        with self._lock:
            self._active[task_id] = task
            if self._board is not None:
                self._board.add_task(task_id, name, task.began)
            first = len(self._active) == 1
        if first:
            self._on_change()
        # After it is counted: the first span of all loads the tracer, and an answer must not overtake the count.
        record = self._telemetry.task(name)
        with self._lock:
            task.record = record
            ended = task_id not in self._active  # meanwhile, by another thread
        if ended:
            record.end("lost")
        return task

    def complete(self, task_id: int) -> bool:
        """Count a task as ended.

        Args:
            task_id: What :meth:`add` returned.

        Returns:
            False, after a warning in the log, where no such task is active.
        """
        if self.finish(task_id, "completed"):
            return True
        logger.warning("Task %s cannot be completed: no such task is active", task_id)
        return False

    def finish(self, task_id: int, outcome: TaskOutcome, error: BaseException | None = None) -> bool:
        """Count a task as ended.

        Args:
            task_id: Which one.
            outcome: How it ended.
            error: What it raised, if anything.

        Returns:
            False where it has ended before.
        """
        with self._lock:
            task = self._active.pop(task_id, None)
            if task is not None and self._board is not None:
                self._board.remove_task(task_id)
            record = task.record if task is not None else None
            last = task is not None and not self._active
        if task is None:
            return False
        if record is not None:
            record.end(outcome, error)
        if last:
            self._on_change()
        logger.debug("Task %s %s after %.3f s", task.name, outcome, task.age)
        return True

    def running(self) -> list[ActiveTask]:
        """The active tasks, oldest first."""
        with self._lock:
            return list(self._active.values())

    def share(self, board: TaskBoard, foreign_jobs: Callable[[], tuple[int, list[tuple[str, float]]]]) -> None:
        """List the tasks where other worker processes see them, and theirs in :meth:`info`.

        Args:
            board: Where to list them.
            foreign_jobs: Tells how many tasks the others have, and the name and the beginning of each.
        """
        with self._lock:
            for task_id, task in self._active.items():
                board.add_task(task_id, task.name, task.began)
            self._board = board
            self._foreign_jobs = foreign_jobs
            # An id of one process means nothing to another, and must not mean another task there.
            self._ids = itertools.count((os.getpid() << _ID_BITS) + next(self._ids))

    def unshare(self) -> None:
        """Be alone again. Takes no lock, so that a forked process can do so."""
        self._board = None
        self._foreign_jobs = lambda: (0, [])

    def info(self) -> dict[str, Any]:
        """The active tasks in the form of the contract, those of other worker processes included.

        Returns:
            ``{"active_count": n, "running_jobs": [{"name": ..., "duration": seconds}]}``, oldest first.
        """
        count, foreign = self._foreign_jobs()
        now = time.monotonic()
        own = [(task.name, task.began) for task in self.running()]
        jobs = sorted([*foreign, *own], key=itemgetter(1))
        return {
            "active_count": count + len(own),
            "running_jobs": [{"name": name, "duration": now - began} for name, began in jobs],
        }

    def make(
        self, coroutine: Coroutine[Any, Any, R], name: str, make: "Callable[[], asyncio.Task[R]]"
    ) -> "asyncio.Task[R]":
        """Make an asyncio task that counts as active from before it is made: another thread may run it at once."""
        task = self._add(name, None, None)
        self._not_begun[coroutine] = task
        try:
            runner = make()
        except BaseException as error:
            self._not_begun.pop(coroutine, None)
            self.finish(task.task_id, "failed", error)
            raise
        with self._lock:
            task.runner = runner
            if self._not_begun.pop(coroutine, None) is not None:
                self._not_begun[runner] = task  # by which it is found also where a task factory wraps the coroutine
        runner.add_done_callback(self._forget)
        return runner

    def _forget(self, runner: "asyncio.Task[Any]") -> None:
        if (task := self._not_begun.pop(runner, None)) is not None:  # it was cancelled before its first step
            self.finish(task.task_id, "failed", asyncio.CancelledError())
        elif not runner.cancelled():
            runner.exception()  # which is in the log: asyncio need not log that it was never retrieved

    def begin(self, name: str) -> ActiveTask:
        """Count what begins in the current asyncio task, unless :meth:`make` has done so."""
        runner = asyncio.current_task()
        task = None
        if runner is not None:
            with self._lock:
                task = self._not_begun.pop(runner, None) or self._not_begun.pop(runner.get_coro(), None)
        return task or self._add(name, None, runner)

    def track(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """Wrap an async function so that it counts as an active task while it runs.

        Args:
            function: A coroutine function, a partial of one, or an object whose ``__call__`` is one.

        Returns:
            A coroutine function of the same name, signature and docstring.

        Raises:
            ValueError: The function is of another kind.
        """
        name = name_of(function)
        if not is_coroutine_function(function):
            raise ValueError(f"@async_task can only be applied to async functions, and {name!r} is none")
        return _tracked(self, name, function)


def _tracked(
    registry: TaskRegistry, name: str, function: Callable[P, Awaitable[R]]
) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(function)
    async def tracked(*args: P.args, **kwargs: P.kwargs) -> R:
        task = registry.begin(name)
        token = task.record.activate() if task.record is not None else None
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, Exception) and _runs_alone():
                logger.exception("Async task %s failed", name)
            registry.finish(task.task_id, "failed", error)
            raise
        else:
            registry.finish(task.task_id, "completed")
            return result
        finally:
            if task.record is not None:
                task.record.deactivate(token)

    return tracked


_TRACKED_CODE = next(
    constant for constant in _tracked.__code__.co_consts if getattr(constant, "co_name", None) == "tracked"
)


def _runs_alone() -> bool:
    """Tell a tracked function that is a task of its own from one whose caller waits for it, and has its error."""
    runner = asyncio.current_task()
    return runner is not None and getattr(runner.get_coro(), "cr_code", None) is _TRACKED_CODE


def make_task(coroutine: Any, make: "Callable[[], asyncio.Task[R]]") -> "asyncio.Task[R]":
    """Make an asyncio task, and count it as active if its coroutine was wrapped by :meth:`TaskRegistry.track`."""
    # All wrapped functions share one code object; the registry and the name are in the closure.
    if getattr(coroutine, "cr_code", None) is _TRACKED_CODE and inspect.getcoroutinestate(coroutine) == "CORO_CREATED":
        closure = coroutine.cr_frame.f_locals
        registry: TaskRegistry = closure["registry"]
        return registry.make(coroutine, closure["name"], make)
    return make()
