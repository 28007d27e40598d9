"""Generators, iterated where they cannot hurt anyone, and their events handed to the loop that sends them."""

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextvars import Context
from typing import Any

from service.protocol.models import StreamError
from service.protocol.serialization import encode_event
from service.runtime.failure import message_of
from service.runtime.workers import ThreadPool, WorkerLoop, Workers, WorkerTask, post

logger = logging.getLogger(__name__)


class EventStream:
    """The events of one generator on their way to one client.

    The generator's side pushes encoded events; the client's side takes all that are ready at once. No more than
    ``capacity`` bytes wait: then the generator is paused until the client has taken them.

    Args:
        home: The loop on which events are taken.
        capacity: How many bytes may wait.
    """

    def __init__(self, home: asyncio.AbstractEventLoop, capacity: int) -> None:
        self._home = home
        self._capacity = capacity
        self._lock = threading.Lock()
        self._events: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._closed = False
        self._full = False
        self._paused = False
        self._taker: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        """What the generator raised, if anything."""

    @property
    def ended(self) -> bool:
        """Whether the generator is done and all its events were taken."""
        return self._ended and not self._events

    async def take(self) -> list[bytes]:
        """Wait for events.

        Returns:
            All events that are ready, in order; none at the end of the stream or after :meth:`close`.
        """
        while True:
            with self._lock:
                if self._closed:
                    return []
                if self._events:
                    events = list(self._events)
                    self._events.clear()
                    self._size = 0
                    self._full = False
                    resume, self._paused = self._paused, False
                    break
                if self._ended:
                    return []
                self._taker = taker = self._home.create_future()
            await taker
        if resume:
            self._resume()
        return events

    def close(self) -> None:
        """Close the generator, because nobody wants its events any more. Call it on the home loop; it does not wait."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._events.clear()
            taker, self._taker = self._taker, None
            paused, self._paused = self._paused, False
            ended = self._ended
        if taker is not None and not taker.done():
            taker.set_result(None)
        if not ended:
            self._abandon(paused)

    def _push(self, event: bytes) -> bool:
        """Add an event, from the generator's side. Returns True where no more are to follow for now."""
        with self._lock:
            if self._closed:
                return False
            self._events.append(event)
            self._size += len(event)
            taker, self._taker = self._taker, None
            self._full = full = self._size >= self._capacity
        if taker is not None:
            post(self._home, _wake, taker)
        return full

    def _pause(self) -> bool:
        """Leave it to ``take`` to resume the generator. Returns False where there is room again, or nobody to wait for.

        Told apart from being full because the generator's side takes its time to stand still, and the client's side
        must not set it going twice.
        """
        with self._lock:
            self._paused = self._full and not self._closed
            return self._paused

    def _end(self, error: BaseException | None = None) -> None:
        """End the stream, from the generator's side; with a last event that tells of the error, if there was one."""
        if error is not None and not self._closed:
            self.error = error
            logger.error("The stream's generator raised", exc_info=error)
            self._push(encode_event(StreamError(message_of(error), type(error).__name__)))
        with self._lock:
            self._ended = True
            taker, self._taker = self._taker, None
        if taker is not None:
            post(self._home, _wake, taker)

    def _resume(self) -> None:
        """Let the paused generator go on."""
        raise NotImplementedError

    def _abandon(self, paused: bool) -> None:
        """Have the generator closed, where it runs."""
        raise NotImplementedError


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class AsyncEventStream(EventStream):
    """The events of an async generator, which is iterated by a task on a worker loop.

    Args:
        source: The generator.
        worker: The loop that it belongs to.
        context: The context that it runs in.
        home: The loop on which events are taken.
        capacity: How many bytes may wait.
    """

    def __init__(
        self,
        source: AsyncGenerator[Any, Any],
        worker: WorkerLoop,
        context: Context,
        home: asyncio.AbstractEventLoop,
        capacity: int,
    ) -> None:
        super().__init__(home, capacity)
        self._source = source
        self._worker = worker
        self._resumed = asyncio.Event()
        self._task: WorkerTask = worker.spawn(self._iterate(), context)

    async def _iterate(self) -> None:
        error: BaseException | None = None
        try:
            async for value in self._source:
                if self._push(encode_event(value)) and self._pause():
                    await self._resumed.wait()
                    self._resumed.clear()
                if self._closed:
                    break
        except BaseException as raised:
            error = raised
        finally:
            await self._close_source()
            self._end(error)

    async def _close_source(self) -> None:
        try:
            await self._source.aclose()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")

    def _resume(self) -> None:
        self._worker.call(self._resumed.set)

    def _abandon(self, paused: bool) -> None:
        self._task.cancel()


class SyncEventStream(EventStream):
    """The events of a plain generator, which is iterated in a thread of the pool.

    A paused generator gives its thread back, so that clients who read slowly cannot use the threads up.

    Args:
        source: The generator.
        pool: The threads that it runs in.
        closers: The threads that close it where none of the pool has it.
        context: The context that it runs in.
        home: The loop on which events are taken.
        capacity: How many bytes may wait.
    """

    def __init__(
        self,
        source: Generator[Any, Any, Any],
        pool: ThreadPool,
        closers: ThreadPool,
        context: Context,
        home: asyncio.AbstractEventLoop,
        capacity: int,
    ) -> None:
        super().__init__(home, capacity)
        self._source = source
        self._pool = pool
        self._closers = closers
        self._context = context
        pool.submit(self._run)

    def _run(self) -> None:
        while self._context.run(self._iterate):
            if self._pause():
                return  # ``take`` or ``close`` carries on from here

    def _iterate(self) -> bool:
        """Pass events on until the stream is full (True) or over (False)."""
        try:
            while not self._closed:
                if self._push(encode_event(next(self._source))):
                    return True
        except StopIteration:
            self._end()
        except BaseException as error:
            self._end(error)
        else:
            self._close_source()
        return False

    def _close_source(self) -> None:
        try:
            self._source.close()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")
        self._end()

    def _resume(self) -> None:
        self._pool.submit(self._run)

    def _abandon(self, paused: bool) -> None:
        if paused:
            self._closers.submit(self._run)


def stream_of(value: object, workers: Workers, home: asyncio.AbstractEventLoop, capacity: int) -> EventStream | None:
    """Begin to stream what a handler returned, if that is a generator.

    Call it in the context that the handler ran in: the generator goes on in a copy of it.

    Args:
        value: What the handler returned.
        workers: Where the generator is iterated.
        home: The loop on which events are taken.
        capacity: How many bytes may wait.

    Returns:
        The stream, or ``None`` where the value is to be answered as a whole.
    """
    if isinstance(value, AsyncGenerator):
        return AsyncEventStream(value, workers.loop, contextvars.copy_context(), home, capacity)
    if isinstance(value, Generator):
        return SyncEventStream(value, workers.pool, workers.closers, contextvars.copy_context(), home, capacity)
    return None
