"""What ``/ping`` says, and since when."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from litestar_agentcore.protocol.models import PingAnswer, PingStatus
from litestar_agentcore.runtime.callbacks import call_threadsafe

logger = logging.getLogger(__name__)

PingFunction = Callable[[], Any]


class StatusRecord(Protocol):
    """The status of an agent, and since when it has it."""

    @property
    def forced(self) -> PingStatus | None:
        """The status that is given whatever happens, where there is one."""

    @property
    def last(self) -> PingStatus:
        """The status as it was last observed."""

    @property
    def last_change(self) -> float:
        """When that changed, in seconds since the epoch."""

    @property
    def processes(self) -> int:
        """How many processes have this status in common."""

    def force(self, status: PingStatus | None) -> None:
        """Set or clear the forced status."""

    def observe(self, own: PingStatus) -> PingStatus:
        """Record the status of this process, and whether that changes the common one.

        Args:
            own: What its tasks, or the author's function, say.

        Returns:
            The status to give.
        """


class ProcessStatus:
    """The status of an agent that is served by this process alone."""

    processes = 1

    def __init__(self) -> None:
        self.forced: PingStatus | None = None
        self.last = PingStatus.HEALTHY
        self.last_change = time.time()
        self._lock = threading.Lock()

    def force(self, status: PingStatus | None) -> None:
        """Set or clear the forced status."""
        self.forced = status

    def observe(self, own: PingStatus) -> PingStatus:
        """Record the status of this process; see :class:`StatusRecord`."""
        status = self.forced or own
        with self._lock:
            if status is not self.last:
                self.last = status
                self.last_change = time.time()
        return status


class Health:
    """The agent's status: the forced one, else what the author's function says, else what the active tasks say.

    The author's function runs in a thread of its own, one call at a time. Where it gives no answer within ``timeout``
    seconds, the automatic status is used.

    Args:
        is_busy: Tells whether any background task is active.
        timeout: How many seconds to wait for the author's function.
    """

    def __init__(self, is_busy: Callable[[], bool], timeout: float) -> None:
        self._is_busy = is_busy
        self._timeout = timeout
        self.record: StatusRecord = ProcessStatus()
        """The status, and since when; that of all workers where there are several."""
        self._function: PingFunction | None = None
        self._lock = threading.Lock()
        self._probe: concurrent.futures.Future[Any] | None = None
        self._probe_thread: int | None = None
        self._complaint: str | None = None

    @property
    def function(self) -> PingFunction | None:
        """The author's function, where there is one."""
        return self._function

    def register(self, function: PingFunction) -> None:
        """Ask a function of the author's for the status from now on.

        Args:
            function: A plain or async function without arguments that returns a :class:`PingStatus` or its string.

        Raises:
            TypeError: It is not callable.
        """
        if not callable(function):
            raise TypeError(f"A ping handler must be callable, and {function!r} is not")
        self._function = function

    def force(self, status: PingStatus | str) -> None:
        """Give this status until :meth:`clear` is called.

        Args:
            status: The status or its string.

        Raises:
            ValueError: There is no such status.
        """
        self.record.force(PingStatus(status))
        self.record.observe(self._automatic())

    def clear(self) -> None:
        """Give the custom or automatic status again."""
        self.record.force(None)
        self.tasks_changed()

    def tasks_changed(self) -> None:
        """Update the status: the first task began, or the last one ended. No ``/ping`` need come in between."""
        if self._function is None:
            self.record.observe(self._automatic())

    def status(self) -> PingStatus:
        """The current status. Waits for the author's function, where there is one."""
        if self.record.forced is not None or self._function is None or threading.get_ident() == self._probe_thread:
            return self._settle(None)
        probe = self._start_probe(self._function)
        concurrent.futures.wait((probe,), timeout=self._timeout)
        return self._settle(self._read(probe))

    async def answer(self) -> PingAnswer:
        """The answer of ``/ping``, without holding up the loop that it is asked on."""
        if self.record.forced is not None or self._function is None:
            status = self._settle(None)
        else:
            probe = self._start_probe(self._function)
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            probe.add_done_callback(lambda _: call_threadsafe(loop, ended.set))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), self._timeout)
            status = self._settle(self._read(probe))
        return PingAnswer(status, self.last_change)

    @property
    def last(self) -> PingStatus:
        """The status as it was last asked for."""
        return self.record.last

    @property
    def last_change(self) -> int:
        """When the status last changed, in whole seconds since the epoch."""
        return int(self.record.last_change)

    def _automatic(self) -> PingStatus:
        return PingStatus.HEALTHY_BUSY if self._is_busy() else PingStatus.HEALTHY

    def _settle(self, custom: PingStatus | None) -> PingStatus:
        return self.record.observe(custom or self._automatic())

    def _start_probe(self, function: PingFunction) -> "concurrent.futures.Future[Any]":
        """Begin a call of the author's function, or join the one that is under way."""
        with self._lock:
            if self._probe is None or self._probe.done():
                probe: concurrent.futures.Future[Any] = concurrent.futures.Future()
                self._probe = probe
                thread = threading.Thread(target=self._run_probe, args=(function, probe), name="agentcore-ping")
                thread.daemon = True
                try:
                    thread.start()
                except RuntimeError as error:  # there are too many threads
                    probe.set_exception(error)
            return self._probe

    def _run_probe(self, function: PingFunction, probe: "concurrent.futures.Future[Any]") -> None:
        self._probe_thread = threading.get_ident()
        try:
            status = function()
            if inspect.isawaitable(status):
                status = asyncio.run(_await(status))
        except BaseException as error:
            probe.set_exception(error)
        else:
            probe.set_result(status)
        finally:
            self._probe_thread = None

    def _read(self, probe: "concurrent.futures.Future[Any]") -> PingStatus | None:
        """What the function said; ``None``, and a line in the log where that is news, if that was nothing useful."""
        error: BaseException | None = None
        if not probe.done():
            complaint = f"gave no answer within {self._timeout} s"
        elif error := probe.exception():
            complaint = f"raised {type(error).__name__}"
        else:
            try:
                status = PingStatus(probe.result())
            except ValueError:
                complaint = f"returned {probe.result()!r}, which is no ping status"
            else:
                self._complaint = None
                return status
        if complaint != self._complaint:
            self._complaint = complaint
            logger.warning("The ping handler %s: the automatic status is used", complaint, exc_info=error)
        return None


async def _await(awaitable: Any) -> Any:
    return await awaitable
