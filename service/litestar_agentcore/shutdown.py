"""The end of a service: new work is refused, what runs may finish for a while, and is then cancelled and named."""

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Any

from litestar_agentcore.runtime.agent import Agent

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
"""How often it is asked whether the last work has finished."""

SERVER_SECONDS = 5.0
"""How long the server may take to close connections whose work is done: a client may not read its last answer."""

LEAVE_SECONDS = 1.0
"""How long inline work that was cancelled may still take to end once the server has closed its connections."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends a service."""

SignalHandler = Callable[[int, FrameType | None], Any]


@dataclass(frozen=True)
class _Handler:
    """A signal handler of ours, which can be told from any other."""

    take: Callable[[int], None]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.take(number)


class Shutdown:
    """Stands between the signal that ends the process and the server that would obey at once.

    A server that is told to end closes its port first, and only then waits for the clients that it has. Here the port
    stays open meanwhile: ``/ready`` says 503, ``/ping`` and ``/metrics`` go on answering, and new work is refused once
    the delay of the settings is over. The server is told when the work is done, or was cancelled because its time was
    over. A second signal makes that now.

    Works with every server that sets its handlers with :func:`signal.signal` before it starts the application, as
    uvicorn does, however it was started.

    Args:
        agent: What is to end.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._end_now = False
        self.has_server = False
        """Whether a server runs the application in this process, and not a test client, say."""
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def on_termination(self) -> Iterator[None]:
        """Take the signals as long as the application lives."""
        if threading.current_thread() is not threading.main_thread():  # only there may a signal handler be set
            yield
            return
        loop = asyncio.get_running_loop()
        servers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
        self.has_server = signal.SIGTERM in servers

        def take(number: int) -> None:
            self._take(loop, number, servers[signal.Signals(number)])

        handle = _Handler(take)
        for number in servers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in servers.items():
                if signal.getsignal(number) is handle:
                    signal.signal(number, handler)

    async def finish(self) -> None:
        """Wait until the work is done or cancelled.

        A server may end without a signal, as uvicorn does after ``--limit-max-requests``; what runs then has its grace
        too. Where the application was started by no server (a test client, say), it is cancelled at once.
        """
        if self._draining is not None:
            await self._draining
        elif self.has_server:
            await self._end_work(self._agent.settings.shutdown_grace_seconds)
        else:
            await self._end_work(0)

    def _take(self, loop: asyncio.AbstractEventLoop, number: int, server: SignalHandler) -> None:
        if self._agent.shutting_down:
            self._end_now = True
        self._agent.shutting_down = True
        if self._end_now or not self._agent.settings.shutdown_delay_seconds:
            self._agent.refuses_work = True
        if self._draining is None or self._draining.done():
            loop.call_soon_threadsafe(self._begin, loop, number, server)

    def _begin(self, loop: asyncio.AbstractEventLoop, number: int, server: SignalHandler) -> None:
        if self._draining is None:
            self._draining = loop.create_task(self._drain(number, server))
        elif self._draining.done():  # the server was told, and is told again
            server(number, None)

    async def _drain(self, number: int, server: SignalHandler) -> None:
        until = monotonic() + self._agent.settings.shutdown_delay_seconds
        while not self._end_now and (left := until - monotonic()) > 0:  # noqa: ASYNC110 - a signal is no loop's event
            await asyncio.sleep(min(LOOK_SECONDS, left))
        self._agent.refuses_work = True
        if self._agent.settings.shutdown_delay_seconds:
            _close_kept_connections(server)
        deadline = monotonic() + self._agent.settings.shutdown_grace_seconds
        await self._end_work(self._agent.settings.shutdown_grace_seconds)
        _limit_waiting(server, SERVER_SECONDS if self._end_now else max(deadline - monotonic(), 0) + SERVER_SECONDS)
        server(number, None)

    async def _end_work(self, grace: float) -> None:
        agent = self._agent
        deadline = monotonic() + grace
        # A task that was made by now is counted once the loops have turned.
        await asyncio.sleep(0)
        turned = await agent.loop.turn(min(LOOK_SECONDS, grace))
        if agent.work and grace:
            logger.info(
                "Shutting down: %s. What runs has %g s to finish; a second signal ends it now",
                agent.describe_work(),
                grace,
            )
        # Work ends in many places and on many threads; for once, asking is simpler than being told.
        while (agent.work or not turned) and not self._end_now and (left := deadline - monotonic()) > 0:
            await asyncio.sleep(min(LOOK_SECONDS, left))
            turned = await agent.loop.turn(min(LOOK_SECONDS, left))
        for work in agent.work:
            work.expire()
            await asyncio.sleep(0)  # one by one: each can end its answer before the next is cancelled
        for stream in list(agent.standing):
            stream.expire()
        await agent.sessions.end_all(deadline - monotonic())


_masks: dict[int, set[int]] = {}
"""The signal mask of each thread that is about to fork, by the thread's identifier."""


def _block_signals() -> None:
    """Have a signal that is sent to a child at once wait until the child's handlers are restored: it would be lost."""
    if any(isinstance(signal.getsignal(number), _Handler) for number in SIGNALS):
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock_signals() -> None:
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _restore_in_child() -> None:
    """Let a forked child be ended by its signals: it is another program, and there is no server in it to be told."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), _Handler):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _unblock_signals()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_restore_in_child)


def _close_kept_connections(server: SignalHandler) -> None:
    """Have uvicorn close connections that are idle, and others once they are: what comes next would be refused."""
    state = getattr(getattr(server, "__self__", None), "server_state", None)
    for connection in list(getattr(state, "connections", ())):
        if hasattr(connection, "cycle"):  # not a WebSocket's, whose conversation may go on
            connection.shutdown()


def _limit_waiting(server: SignalHandler, seconds: float) -> None:
    """Keep uvicorn from waiting for ever for a client that does not read its last answer."""
    config = getattr(getattr(server, "__self__", None), "config", None)
    if config is not None and getattr(config, "timeout_graceful_shutdown", 0) is None:
        config.timeout_graceful_shutdown = math.ceil(seconds)


async def detach_stuck_tasks() -> None:
    """Have the server's loop not wait for tasks that do not let themselves be cancelled, as it would for ever."""
    cancelled = {task for task in asyncio.all_tasks() if task.cancelling()}
    if not cancelled:
        return
    _, stuck = await asyncio.wait(cancelled, timeout=LEAVE_SECONDS)
    for task in stuck:
        logger.warning("A task did not end when it was cancelled, and is not waited for: %r", task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - as asyncio.gather() does
        asyncio._unregister_task(task)  # noqa: SLF001 - documented, for those who extend asyncio
