"""Sessions: what runs for each, how it is stopped, and the author's hook that is called when one has ended."""

import asyncio
import concurrent.futures
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from litestar_agentcore.protocol.context import RequestValues, current_request
from litestar_agentcore.runtime.callbacks import call_threadsafe
from litestar_agentcore.runtime.execution import Execution
from litestar_agentcore.runtime.handler import is_coroutine_function, name_of
from litestar_agentcore.runtime.running import Running
from litestar_agentcore.runtime.tasks import ActiveTask, TaskRegistry

logger = logging.getLogger(__name__)

SessionEndHook = Callable[[str], Any]
Works = list[Running | ActiveTask]

MAX_KEPT = 10_000
"""How many sessions are kept at most. Beyond it, a tenth, those that were idle for longest, is ended."""

STOP_SECONDS = 5.0
"""How long :meth:`Sessions.stop` waits for what it has cancelled, and then for the hook."""

SHUTDOWN_SECONDS = 3.0
"""How long the hooks have at a shutdown at the least."""

_LOOK_SECONDS = 0.01


class Session(msgspec.Struct, frozen=True):
    """What runs for a session at one moment."""

    id: str
    began: float
    """When the session, or the oldest of its work that still runs, began, on the monotonic clock, in seconds."""
    last_active: float
    """When it was last active, on the monotonic clock, in seconds; now, where anything runs for it."""
    invocations: int
    """How many invocations run for it, streams aside."""
    streams: int
    websockets: int
    tasks: int
    """How many background tasks are active for it."""


Listed = list[Session]


class KeptSession:
    """A session that is kept after its last work has ended."""

    __slots__ = ("began", "last_active", "was_busy")

    def __init__(self, now: float) -> None:
        self.began = self.last_active = now
        self.was_busy = False
        """Whether something ran for it when that was last looked at."""


class _HookCall:
    """One call of the hook that has begun."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.task: asyncio.Task[None] | None = None

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def give_up(self, seconds: float) -> None:
        logger.warning("The session end hook for session %s did not end within %.1f s", self.session_id, seconds)
        if self.task is not None:
            call_threadsafe(self.task.get_loop(), self.task.cancel)


class Sessions:
    """The sessions for which something runs, or which are kept. All methods may be called from any thread.

    A session is kept after its last work has ended where ``idle_seconds`` are set or a hook is registered. Iterating
    gives the ids.

    Args:
        running: The invocations, streams and WebSockets that are served.
        tasks: The background tasks.
        execution: Where the hook runs.
        idle_seconds: After how many seconds without work a session is ended; 0 for never.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        running: set[Running],
        tasks: TaskRegistry,
        execution: Execution,
        idle_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._running = running
        self._tasks = tasks
        self._execution = execution
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._kept: dict[str, KeptSession] = {}
        self._hook: SessionEndHook | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._hook_calls: set[_HookCall] = set()
        """Those of async hooks that run: asyncio itself has but weak references to their tasks."""
        self.keeps = idle_seconds > 0
        """Whether sessions are kept."""

    def register_hook(self, function: SessionEndHook) -> None:
        """Call this function once a session has ended.

        Args:
            function: A plain or async function of the session's id.

        Raises:
            TypeError: It is not callable with one argument, or is a generator function.
        """
        if not callable(function):
            raise TypeError(f"A session_end hook must be callable, and {function!r} is not")
        name = name_of(function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"The session_end hook {name} must be a plain or async function, and is a generator")
        try:
            inspect.signature(function).bind(None)
        except (TypeError, ValueError) as error:
            raise TypeError(f"The session_end hook {name} must take (session_id): {error}") from None
        self._hook = function
        self.keeps = True

    # -- Listing

    def list(self) -> Listed:
        """All sessions, the oldest first."""
        works: dict[str, Works] = {session_id: [] for session_id in self._kept.copy()}
        for work in self._work():
            if (session_id := work.values.session_id) is not None:
                works.setdefault(session_id, []).append(work)
        return sorted((self._describe(*item) for item in works.items()), key=lambda session: session.began)

    def get(self, session_id: str) -> Session | None:
        """A session, or ``None`` where nothing runs for it and it is not kept."""
        works = self._work_of(session_id)
        return self._describe(session_id, works) if works or session_id in self._kept else None

    def __iter__(self) -> Iterator[str]:
        return iter([session.id for session in self.list()])

    def __len__(self) -> int:
        return len(self._busy() | self._kept.copy().keys())

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._kept or session_id in self._busy()

    def _work(self) -> Works:
        return [*self._running.copy(), *self._tasks.running()]

    def _work_of(self, session_id: str) -> Works:
        return [work for work in self._work() if work.values.session_id == session_id]

    def _busy(self) -> set[str]:
        return {work.values.session_id for work in self._work() if work.values.session_id is not None}

    def _describe(self, session_id: str, works: Works) -> Session:
        now = self._clock()
        kept = self._kept.get(session_id)
        kinds = Counter("task" if isinstance(work, ActiveTask) else work.kind for work in works)
        return Session(
            id=session_id,
            began=min([work.began for work in works] + ([kept.began] if kept is not None else []), default=now),
            last_active=kept.last_active if kept is not None and not works else now,
            invocations=kinds["invocation"],
            streams=kinds["stream"],
            websockets=kinds["WebSocket"],
            tasks=kinds["task"],
        )

    # -- Keeping, on the loop that accepts requests

    def begin(self, session_id: str) -> KeptSession | None:
        """Keep the session of work that begins, which is listed already. On the loop that serves it.

        Returns:
            What :meth:`end` takes; ``None`` where sessions are not kept.
        """
        if not self.keeps:
            return None
        kept = self._kept.get(session_id)
        if kept is None:
            kept = self._kept.setdefault(session_id, KeptSession(self._clock()))
            if len(self._kept) > MAX_KEPT:
                self._make_room()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            if self._idle_seconds:
                self._look_later(loop)
        return kept

    def end(self, kept: KeptSession) -> None:
        """Have the session's idle time begin: its work has ended."""
        kept.last_active = self._clock()

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(self._idle_seconds / 4, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:  # and not one of a lifespan before
            self.end_idle()
            self._look_later(loop)

    def end_idle(self) -> None:
        """End the sessions that have been idle for long enough, without waiting for their hooks."""
        now, busy = self._clock(), self._busy()
        for session_id, kept in self._kept.copy().items():
            if session_id in busy:
                kept.was_busy = True
            elif kept.was_busy:  # what ended meanwhile may be a task, or a handler whose client had left
                kept.was_busy = False
                kept.last_active = now
            elif now - kept.last_active >= self._idle_seconds:
                self._end_kept(session_id)

    def _make_room(self) -> None:
        busy = self._busy()
        idle = [(kept.last_active, session_id) for session_id, kept in self._kept.copy().items()]
        for _, session_id in sorted(entry for entry in idle if entry[1] not in busy)[: MAX_KEPT // 10]:
            self._end_kept(session_id)

    def _end_kept(self, session_id: str) -> _HookCall | None:
        """Keep a session no longer, and begin its hook."""
        if self._kept.pop(session_id, None) is None or self._hook is None:
            return None
        return self._call_hook(self._hook, session_id)

    # -- The hook

    def _call_hook(self, hook: SessionEndHook, session_id: str) -> _HookCall:
        call = _HookCall(session_id)
        context = Context()
        context.run(current_request.set, RequestValues(session_id=session_id))
        if is_coroutine_function(hook):
            self._spawn(_await_hook(lambda: hook(session_id), call), context, call)
            return call

        def run() -> None:
            try:
                result = hook(session_id)
                if inspect.isawaitable(result):
                    self._spawn(_await_hook(lambda: result, call), context, call)
                    return
            except BaseException:
                logger.exception("The session end hook raised for session %s", session_id)
            call.end()

        self._execution.pool.submit(partial(context.run, run))
        return call

    def _spawn(self, coroutine: Any, context: Context, call: _HookCall) -> None:
        def end(_: "asyncio.Task[None]") -> None:
            self._hook_calls.discard(call)
            call.end()  # also where it was cancelled before its first step

        def spawn() -> None:
            self._hook_calls.add(call)
            call.task = self._execution.spawn(coroutine, context, "session_end")
            call.task.add_done_callback(end)

        if self._execution.inline and self._loop is not None:
            call_threadsafe(self._loop, spawn)
        else:
            spawn()

    # -- Stopping

    async def stop(self, session_id: str) -> bool:
        """Cancel all that runs for a session, wait until it has ended, and call the hook.

        May be awaited on any loop; ``asyncio.run(sessions.stop(...))`` from a thread without one. Plain handlers cannot
        be cancelled: their clients are answered, they run on, and what they return is dropped. It waits at most 5
        seconds for what it has cancelled, and 5 more for the hook. A handler that stops its own session is cancelled
        with it.

        Args:
            session_id: Which session.

        Returns:
            False where nothing ran for it and it was not kept. A second call does no harm.
        """
        kept = self._kept.pop(session_id, None)
        works = self._work_of(session_id)
        if not works:
            if kept is None:
                return False
            logger.info("Session %s is stopped; nothing ran for it", session_id)
        for work in works:
            self._cancel(work)
        # In a task of its own, so that a handler that stops its own session does not leave it half stopped.
        finish = asyncio.get_running_loop().create_task(self._finish(session_id, works, kept), context=Context())
        self._stopping.add(finish)
        finish.add_done_callback(self._stopping.discard)
        await asyncio.shield(finish)
        return True

    def _cancel(self, work: "Running | ActiveTask") -> None:
        if isinstance(work, ActiveTask):
            work.expire(stopped=True)
        elif work.task is not None:

            def cancel() -> None:
                if work in self._running and not work.expired:
                    work.expire(stopped=True)

            call_threadsafe(work.task.get_loop(), cancel)

    def _runs(self, work: "Running | ActiveTask") -> bool:
        if isinstance(work, ActiveTask):
            return work.runner is not None and not work.runner.done()
        return work in self._running

    async def _finish(self, session_id: str, works: Works, kept: KeptSession | None) -> None:
        deadline = monotonic() + STOP_SECONDS
        while (left := [work for work in works if self._runs(work)]) and monotonic() < deadline:  # noqa: ASYNC110 - work ends on many threads
            await asyncio.sleep(_LOOK_SECONDS)
        if left:
            logger.warning("%d of what was stopped for session %s still runs", len(left), session_id)
        if kept is not None and self._hook is not None:
            await _wait_for([self._call_hook(self._hook, session_id)], STOP_SECONDS)

    async def end_all(self, seconds: float) -> None:
        """End all sessions that are kept, and wait for their hooks: the service shuts down.

        Args:
            seconds: How long to wait; three seconds at the least.
        """
        self._loop, loop = None, self._loop  # which ends the search for idle ones
        seconds = max(seconds, SHUTDOWN_SECONDS)
        deadline = monotonic() + seconds
        if self._kept and self._hook is not None:
            until = monotonic() + min(seconds / 2, 1.0)  # for what was cancelled just now
            while self._running and monotonic() < until:  # noqa: ASYNC110 - work ends on many threads
                await asyncio.sleep(_LOOK_SECONDS)
        self._loop = loop
        calls = [call for session_id in list(self._kept) if (call := self._end_kept(session_id)) is not None]
        await _wait_for(calls, max(deadline - monotonic(), _LOOK_SECONDS))
        self._loop = None


async def _await_hook(start: Callable[[], Any], call: _HookCall) -> None:
    try:
        await start()
    except asyncio.CancelledError:
        logger.warning("The session end hook for session %s was cancelled", call.session_id)
    except BaseException:
        logger.exception("The session end hook raised for session %s", call.session_id)
    finally:
        call.end()


async def _wait_for(calls: "list[_HookCall]", seconds: float) -> None:
    deadline = monotonic() + seconds
    while (left := [call for call in calls if not call.ended.done()]) and monotonic() < deadline:  # noqa: ASYNC110 - work ends on many threads
        await asyncio.sleep(_LOOK_SECONDS)
    for call in left:
        call.give_up(seconds)
