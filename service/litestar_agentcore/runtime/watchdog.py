"""Sees the worker loops that a handler holds, and says who it is."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterable
from time import monotonic
from types import FrameType

from litestar_agentcore.protocol.context import current_request
from litestar_agentcore.runtime.loops import Holder, WorkerLoop

logger = logging.getLogger(__name__)

STACK_FRAMES = 20
"""How many frames of a stack are logged at the most, the innermost ones."""

_MACHINERY = ("threading", "asyncio", "litestar_agentcore.runtime")
"""The modules between a thread's beginning and a handler."""


class Watchdog:
    """A thread that looks at each worker loop several times in the span after which it counts as held.

    It sleeps while nothing runs.

    Args:
        loops: The loops to look at.
        stall_seconds: How long a loop may go without turning.
        on_stall: Called with a loop that has just been found held.
        on_tick: Called after each look; returns in how many seconds it wants to be called again, at the latest, where
            nothing runs until then, or ``None``.
    """

    def __init__(
        self,
        loops: Callable[[], Iterable[WorkerLoop]],
        stall_seconds: float,
        on_stall: Callable[[WorkerLoop], None],
        on_tick: Callable[[], float | None],
    ) -> None:
        self._loops = loops
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._on_tick = on_tick
        self._alarm = threading.Event()
        self.asleep = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="agentcore-watchdog", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the loops again: there is work on one of them."""
        self.asleep = False
        self._alarm.set()

    def stop(self) -> None:
        """End the thread, soon."""
        self._stopped = True
        self._alarm.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._look()
                pause = self._on_tick()
            except Exception:  # nobody else would see the loops
                logger.exception("The watchdog stumbled")
                pause = None
            if self._at_work():
                pause = self._stall_seconds / 4
            else:
                # In this order: whoever brings work asks afterwards whether somebody is awake.
                self.asleep = True
                if self._at_work():
                    self.asleep = False
                    continue
            self._alarm.wait(pause)
            self._alarm.clear()
            self.asleep = False

    def _at_work(self) -> bool:
        return any(loop.load or loop.working_since or loop.has_timers for loop in self._loops())

    def _look(self) -> None:
        for loop in self._loops():
            since = loop.working_since
            if since and monotonic() - since > self._stall_seconds:
                if loop.held_since != since:
                    loop.held_since = since
                    self._on_stall(loop)
                    self._report(loop, since)
            elif loop.held_since:
                logger.info("%s turns again, after %.1f s", loop.name, monotonic() - loop.held_since)
                loop.held_since = 0.0

    def _report(self, loop: WorkerLoop, since: float) -> None:
        holder = loop.holder()
        if loop.working_since != since:
            return  # it has let go meanwhile, and who holds the loop now does no harm
        if holder.context is None:
            self._warn(holder, since)
            return
        # The context itself is in use on the loop's thread; its copy gives the line its ids.
        holder.context.copy().run(self._warn, holder, since)

    def _warn(self, holder: Holder, since: float) -> None:
        logger.warning(
            "The handler %s (session %s) has held its event loop for %.2f s; new work goes to another loop. A handler"
            " that blocks is to be a plain function, or to call what blocks in asyncio.to_thread(). It is at:\n%s",
            holder.name,
            current_request.get().session_id,
            monotonic() - since,
            _stack(holder.frame),
        )


def _is_machinery(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _MACHINERY)


def _stack(frame: FrameType | None) -> str:
    """The stack of a handler, the innermost call last, without the machinery that called it."""
    frames = [entry for entry, _ in traceback.walk_stack(frame)] if frame is not None else []
    while len(frames) > 1 and _is_machinery(str(frames[-1].f_globals.get("__name__"))):
        frames.pop()
    lines = traceback.StackSummary.extract((entry, entry.f_lineno) for entry in reversed(frames[:STACK_FRAMES]))
    return "".join(lines.format()).rstrip()
