"""Names what holds the agent's event loop."""

import logging
import threading
import traceback
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from types import FrameType
from typing import NamedTuple, Protocol

from litestar_agentcore.protocol.context import current_request

logger = logging.getLogger(__name__)

STACK_FRAMES = 20
"""How many frames of a stack are logged at the most, the innermost ones."""

REPORT_SECONDS = 10.0
"""How often one handler is named at the most; each stall is counted."""

AWAKE_SECONDS = 1.0
"""How long the watchdog goes on looking at a loop that has nothing to do."""

_OUR_MODULES = ("threading.", "asyncio.", "litestar_agentcore.runtime.")
"""The modules and packages between the beginning of a thread and a handler, each with a dot at its end."""

_MOST_NAMES = 1000


class Runner(NamedTuple):
    """What a loop runs in its present turn."""

    key: object
    """The task, or the handle of a callback."""
    name: str
    """The handler, or the coroutine that it started."""
    context: Context | None
    """The context that it runs in, where it can be told."""
    frame: FrameType | None
    """The innermost stack frame of the loop's thread."""


class Turns(Protocol):
    """The turns of a loop, seen from another thread."""

    turn_began: float
    """When the loop began its present turn, in monotonic seconds; 0 while it waits."""


class Watchdog:
    """A thread that looks at the agent's loop several times in the span after which it counts as held.

    It sleeps while the loop has nothing to do; the loop wakes it.

    Args:
        turns: The loop's turns.
        runner: Tells what the loop runs in its present turn; called on the watchdog's thread.
        stall_seconds: How long one step of a task, or one callback, may take, in seconds.
        on_stall: Called once for each that takes longer.
    """

    def __init__(
        self, turns: Turns, runner: Callable[[], Runner], stall_seconds: float, on_stall: Callable[[], object]
    ) -> None:
        self._turns = turns
        self._runner = runner
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        # A step is seen one look after it began at the latest, and its end of the span one look later.
        self._interval = stall_seconds / 8
        self._alarm = threading.Event()
        self.asleep = True
        """Whether :meth:`wake` has to be called when the loop has something to do."""
        self._stopped = False
        self._turn = 0.0
        self._running: object = None
        self._began = 0.0
        self._counted = False
        self._reported = False
        self._reports: dict[str, float] = {}
        threading.Thread(target=self._run, name="agentcore-watchdog", daemon=True).start()

    def wake(self) -> None:
        """Look at the loop again: it has something to do."""
        self.asleep = False
        self._alarm.set()

    def stop(self) -> None:
        """End the thread, soon."""
        self._stopped = True
        self._alarm.set()

    def _run(self) -> None:
        turns = self._turns
        last_busy = 0.0
        while True:
            if self._alarm.wait(None if self.asleep else self._interval):
                last_busy = monotonic()  # also where that turn is over by now
            if self._stopped:
                return
            self._alarm.clear()
            self.asleep = False
            try:
                self._look()
            except Exception:  # or the thread would end, and the loop be watched no more
                logger.exception("The watchdog of the agent's event loop failed, and goes on")
            now = monotonic()
            if turns.turn_began:
                last_busy = now
            elif now - last_busy > AWAKE_SECONDS:
                # In this order: the loop asks whether the watchdog sleeps after it has begun a turn.
                self.asleep = True
                if turns.turn_began:
                    self.asleep = False

    def _look(self) -> None:
        turn = self._turns.turn_began
        if turn != self._turn:
            if self._reported:
                logger.info("The agent's event loop turns again, after %.1f s", monotonic() - self._began)
            self._turn, self._began, self._running = turn, turn, None
            self._counted = self._reported = False
        now = monotonic()
        if not turn or now - turn < self._interval:
            return
        runner = self._runner()
        if self._turns.turn_began != turn or runner.frame is None:  # the thread may have ended in the middle of a turn
            return
        if self._running is not None and runner.key is not self._running:
            self._began = now  # one turn runs many steps, and none of them need be long
            self._counted = False
        self._running = runner.key
        if now - self._began > self._stall_seconds and not self._counted:
            self._counted = True
            self._on_stall()
            self._report(runner, now)

    def _report(self, runner: Runner, now: float) -> None:
        if now - self._reports.get(runner.name, -REPORT_SECONDS) < REPORT_SECONDS:
            return
        if len(self._reports) >= _MOST_NAMES:
            self._reports.clear()
        self._reports[runner.name] = now
        self._reported = True
        # The context itself is in use on the loop's thread; its copy gives the line its ids.
        context = runner.context.copy() if runner.context is not None else Context()
        context.run(self._warn, runner)

    def _warn(self, runner: Runner) -> None:
        logger.warning(
            "The handler %s (session %s) has held the agent's event loop for %.2f s; the other async handlers"
            " wait. Two ways out: make it a plain function (def), or await asyncio.to_thread() for what blocks. It is"
            " at:\n%s",
            runner.name,
            current_request.get().session_id,
            monotonic() - self._began,
            _stack(runner.frame),
        )


def _stack(frame: FrameType | None) -> str:
    """The stack of a handler, the innermost call last, without the modules that called it."""
    frames = [entry for entry, _ in traceback.walk_stack(frame)] if frame is not None else []
    while len(frames) > 1 and f"{frames[-1].f_globals.get('__name__')}.".startswith(_OUR_MODULES):
        frames.pop()
    lines = traceback.StackSummary.extract((entry, entry.f_lineno) for entry in reversed(frames[:STACK_FRAMES]))
    return "".join(lines.format()).rstrip()
