"""Several worker processes that serve one agent: each answers with the status, tasks and metrics of all of them."""

import asyncio
import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from litestar_agentcore.protocol.models import PingStatus
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.health import ProcessStatus
from litestar_agentcore.runtime.worker_files import (
    SharingError,
    WorkerDirectory,
    WorkerFile,
    find_base,
    server_name,
    sweep,
)

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5
"""How often a worker publishes the gauges that are not counted, and looks after those that have died."""

LOCK_SECONDS = 0.005
"""How long to wait for the lock of the common status; it is held for microseconds, unless its holder is stopped."""

_STATUS = struct.Struct("<QQ")
"""The forced status, and one word with the last status and when it changed, so that no reader sees the half of it."""
_WORD = struct.Struct("<Q")
_FORCED: tuple[PingStatus | None, ...] = (None, PingStatus.HEALTHY, PingStatus.HEALTHY_BUSY)


class CommonStatus:
    """The status that all workers of a server have in common: forced by any, else busy where any is.

    Args:
        directory: Where they meet.
        file: The file of this process.
    """

    def __init__(self, directory: WorkerDirectory, file: WorkerFile) -> None:
        self._directory = directory
        self._file = file
        self._descriptor = directory.open_status()
        self._lock = threading.Lock()
        with self._lock, directory.locked(LOCK_SECONDS):
            if os.fstat(self._descriptor).st_size != _STATUS.size:
                os.ftruncate(self._descriptor, 0)
                self._write(0, _FORCED.index(None))
                self._write(_WORD.size, _change(PingStatus.HEALTHY))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    @property
    def forced(self) -> PingStatus | None:
        """The status that is given whatever happens, where there is one."""
        forced = self._words()[0]
        return _FORCED[forced] if forced < len(_FORCED) else None

    @property
    def last(self) -> PingStatus:
        """The status as it was last observed, by any worker."""
        return PingStatus.HEALTHY_BUSY if self._words()[1] & 1 else PingStatus.HEALTHY

    @property
    def last_change(self) -> float:
        """When that changed, in seconds since the epoch."""
        return (self._words()[1] >> 1) / 1000

    @property
    def processes(self) -> int:
        """How many processes have this status in common."""
        return 1 + len(self._directory.siblings())

    def force(self, status: PingStatus | None) -> None:
        """Set or clear the forced status of all workers."""
        self._write(0, _FORCED.index(status))

    def observe(self, own: PingStatus) -> PingStatus:
        """Record the status of this process; see :class:`litestar_agentcore.runtime.health.StatusRecord`."""
        self._file.busy = own is PingStatus.HEALTHY_BUSY  # before the others are looked at, who do the same
        status = self._common()
        if status is not self.last and self._lock.acquire(timeout=LOCK_SECONDS):
            try:
                with suppress(OSError), self._directory.locked(LOCK_SECONDS) as locked:
                    status = self._common()
                    if locked and status is not self.last:
                        self._write(_WORD.size, _change(status))
            finally:
                self._lock.release()
        return status

    def _common(self) -> PingStatus:
        if (forced := self.forced) is not None:
            return forced
        busy = self._file.busy or any(sibling.busy for sibling in self._directory.siblings())
        return PingStatus.HEALTHY_BUSY if busy else PingStatus.HEALTHY

    def _words(self) -> tuple[int, int]:
        data = os.pread(self._descriptor, _STATUS.size, 0)
        return _STATUS.unpack(data) if len(data) == _STATUS.size else (0, 0)

    def _write(self, offset: int, word: int) -> None:
        os.pwrite(self._descriptor, _WORD.pack(word), offset)


def _change(status: PingStatus) -> int:
    return int(time.time() * 1000) << 1 | (status is PingStatus.HEALTHY_BUSY)


class Workers:
    """An agent's part in a server of several worker processes.

    Args:
        agent: The agent.
        sockets: The inodes of the sockets that the server listens on, which all its workers inherit.
        number: Which of the agents in this process it is; the same in each worker.
    """

    def __init__(self, agent: Agent, sockets: list[int], number: int) -> None:
        self._agent = agent
        self._server = server_name(sockets, number)
        self._directory: WorkerDirectory | None = None
        self._file: WorkerFile | None = None
        self._status: CommonStatus | None = None

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Be one of the workers. Where that cannot be, a warning says what is missing, and each speaks for itself."""
        try:
            self._join()
        except (SharingError, OSError) as error:
            logger.warning(
                "/ping, /metrics and job_status tell of the worker process that is asked alone: no place for files that"
                " the workers share (%s)",
                error,
            )
            yield
            return
        refreshing = asyncio.create_task(self._refresh_for_ever())
        try:
            yield
        finally:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing
            self._leave(last=self._agent.refuses_work)

    def _join(self) -> None:
        agent = self._agent
        base = find_base()
        sweep(base, self._server)
        self._directory = directory = WorkerDirectory(base, self._server)
        self._file = file = directory.join()
        try:
            self._status = CommonStatus(directory, file)
        except OSError:
            directory.leave(file, last=False)
            raise
        agent.telemetry.metrics.share(file.series, directory.snapshot)
        agent.tasks.share(file, self._foreign_jobs)
        agent.health.record = self._status
        agent.health.tasks_changed()
        _joined.add(self)

    def _leave(self, *, last: bool) -> None:
        if self._directory is None or self._file is None or self._status is None:
            return
        _joined.discard(self)
        metrics = self._agent.telemetry.metrics
        metrics.refresh()
        self._speak_for_itself()
        metrics.unshare()
        self._directory.leave(self._file, last=last)
        self._status.close()
        self._directory = self._file = self._status = None

    def _speak_for_itself(self) -> None:
        record = ProcessStatus()
        if self._status is not None:
            record.forced, record.last, record.last_change = (
                self._status.forced,
                self._status.last,
                self._status.last_change,
            )
        self._agent.health.record = record
        self._agent.tasks.unshare()

    def leave_in_child(self) -> None:
        """Be no worker in a process that was forked from one."""
        if self._file is not None:
            self._speak_for_itself()
            self._agent.telemetry.metrics.unshare(forked=True)
            self._file.close()  # or the parent would seem to live as long as this process

    def _foreign_jobs(self) -> tuple[int, list[tuple[str, float]]]:
        siblings = self._directory.siblings() if self._directory is not None else []
        return sum(each.task_count for each in siblings), [(*job,) for each in siblings for job in each.jobs]

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._refresh()
            except Exception:
                logger.exception("The worker process could not share its state")

    async def _refresh(self) -> None:
        if self._directory is None or self._file is None:
            return
        if not self._directory.exists(self._file):
            logger.warning("The files that the workers share were removed, and are made anew")
            self._leave(last=False)
            self._join()
            return
        self._directory.fold()
        await self._agent.health.answer()  # sees that a busy worker has died, and asks the author's function
        self._agent.telemetry.metrics.refresh()


_joined: "weakref.WeakSet[Workers]" = weakref.WeakSet()


def _leave_in_child() -> None:
    for workers in list(_joined):
        workers.leave_in_child()
    _joined.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_in_child)
