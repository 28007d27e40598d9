"""Generators, iterated where they cannot hurt anyone, and their events handed to the loop that sends them."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncGenerator, Generator
from contextvars import Context
from typing import Any

from litestar_agentcore.protocol.models import StreamError
from litestar_agentcore.protocol.serialization import encode_document, encode_events
from litestar_agentcore.runtime.failure import message_of
from litestar_agentcore.runtime.loops import Loop, LoopCall
from litestar_agentcore.runtime.mailbox import Mailbox
from litestar_agentcore.runtime.threads import ThreadPool
from litestar_agentcore.runtime.workers import Workers

logger = logging.getLogger(__name__)


class EventStream:
    """The events of one generator on their way to one client.

    The generator's side pushes encoded values; the client's side takes all that are ready at once. No more than
    ``capacity`` bytes wait: then the generator is paused until the client has taken them.

    Pushing and taking need no lock: each side writes what only it writes, then asks whether the other waits. Standing
    still, going on and closing need one.

    Args:
        home: Reaches the loop on which events are taken.
        capacity: How many bytes may wait.
    """

    __slots__ = (
        "_capacity", "_closed", "_documents", "_ended", "_home", "_lock", "_paused", "_pushed", "_taken", "_taker",
        "error",
    )  # fmt: skip

    def __init__(self, home: Mailbox, capacity: int) -> None:
        self._home = home
        self._capacity = capacity
        self._lock = threading.Lock()
        self._documents: list[bytes] = []
        self._pushed = 0
        self._taken = 0
        self._ended = False
        self._closed = False
        self._paused = False
        self._taker: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        """What the generator raised, if anything."""

    @property
    def ended(self) -> bool:
        """Whether the generator is done and all its events were taken."""
        return self._ended and not self._documents

    async def take(self) -> tuple[bytes, int]:
        """Wait for events.

        Returns:
            All events that are ready, in order and encoded for the wire, and how many these are; none at the end of the
            stream or after :meth:`close`.
        """
        documents = self._documents
        while not documents and not self._is_over():
            self._taker = taker = self._home.loop.create_future()
            if documents or self._is_over():  # it came between the question and the answer
                self._taker = None
            else:
                await taker
        if self._closed or not documents:  # the last ones are there before the stream is over
            return b"", 0
        ready = documents.copy()
        del documents[: len(ready)]  # and nothing that was added meanwhile
        events = encode_events(ready)
        self._taken += sum(map(len, ready))
        with self._lock:
            resume, self._paused = self._paused, False
        if resume:
            self._resume()
        return events, len(ready)

    def _is_over(self) -> bool:
        return self._ended or self._closed

    def close(self) -> None:
        """Close the generator, because nobody wants its events any more. Call it on the home loop; it does not wait."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            paused, self._paused = self._paused, False
            ended = self._ended
        self._documents.clear()
        taker, self._taker = self._taker, None
        if taker is not None:
            _wake(taker)
        if not ended:
            self._abandon(paused)

    def _push(self, document: bytes) -> bool:
        """Add an event, from the generator's side. Returns True where no more are to follow for now."""
        self._documents.append(document)
        self._pushed += len(document)
        self._wake_taker()
        return self._pushed - self._taken >= self._capacity

    def _wake_taker(self) -> None:
        if (taker := self._taker) is not None:
            self._taker = None
            self._home.post(_wake, taker)

    def _pause(self) -> bool:
        """Leave it to ``take`` to resume the generator. Returns False where there is room again, or nobody to wait for.

        Told apart from being full because the generator's side takes its time to stand still, and the client's side
        must not set it going twice.
        """
        with self._lock:
            self._paused = self._pushed - self._taken >= self._capacity and not self._closed
            return self._paused

    def _end(self, error: BaseException | None = None) -> None:
        """End the stream, from the generator's side; with a last event that tells of the error, if there was one."""
        if error is not None and not self._closed:
            self.error = error
            logger.error("The stream's generator raised", exc_info=error)
            self._push(encode_document(StreamError(message_of(error), type(error).__name__)))
        self._ended = True
        self._wake_taker()

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
        loop: The loop that it is iterated on.
        context: The context that it runs in.
        home: Reaches the loop on which events are taken.
        capacity: How many bytes may wait.
        name: What people know it by.
    """

    __slots__ = ("_call", "_resumed", "_source")

    def __init__(
        self,
        source: AsyncGenerator[Any, Any],
        loop: Loop,
        context: Context,
        home: Mailbox,
        capacity: int,
        name: str,
    ) -> None:
        super().__init__(home, capacity)
        self._source = source
        self._resumed: asyncio.Event | None = None
        self._call: LoopCall = loop.spawn(self._iterate(), context, name)

    async def _iterate(self) -> None:
        error: BaseException | None = None
        try:
            # What :meth:`_push` does, written out: this is done for every token of every answer.
            add, capacity = self._documents.append, self._capacity
            async for value in self._source:
                document = encode_document(value)
                add(document)
                self._pushed = pushed = self._pushed + len(document)
                if self._taker is not None:
                    self._wake_taker()
                if pushed - self._taken >= capacity:
                    await self._stand_still()
                if self._closed:
                    break
        except BaseException as raised:
            error = raised
        finally:
            await self._close_source()
            self._end(error)

    async def _stand_still(self) -> None:
        self._resumed = resumed = asyncio.Event()
        if self._pause():
            await resumed.wait()

    async def _close_source(self) -> None:
        try:
            await self._source.aclose()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")

    def _resume(self) -> None:
        if self._resumed is not None:
            self._call.loop.call(self._resumed.set)

    def _abandon(self, paused: bool) -> None:
        self._call.cancel()


class SyncEventStream(EventStream):
    """The events of a plain generator, which is iterated in a thread of the pool.

    A paused generator gives its thread back, so that clients who read slowly cannot use the threads up.

    Args:
        source: The generator.
        pool: The threads that it runs in.
        closers: The threads that close it where none of the pool has it.
        context: The context that it runs in.
        home: Reaches the loop on which events are taken.
        capacity: How many bytes may wait.
    """

    __slots__ = ("_closers", "_context", "_pool", "_source")

    def __init__(
        self,
        source: Generator[Any, Any, Any],
        pool: ThreadPool,
        closers: ThreadPool,
        context: Context,
        home: Mailbox,
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
                if self._push(encode_document(next(self._source))):
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


def stream_of(value: object, workers: Workers, home: Mailbox, capacity: int) -> EventStream | None:
    """Begin to stream what a handler returned, if that is a generator.

    Call it in the context that the handler ran in: the generator goes on in a copy of it.

    Args:
        value: What the handler returned.
        workers: Where the generator is iterated.
        home: Reaches the loop on which events are taken.
        capacity: How many bytes may wait.

    Returns:
        The stream, or ``None`` where the value is to be answered as a whole.
    """
    if isinstance(value, AsyncGenerator):
        loop, name = workers.loop_for(home), getattr(value, "__qualname__", "a generator")
        return AsyncEventStream(value, loop, contextvars.copy_context(), home, capacity, name)
    if isinstance(value, Generator):
        return SyncEventStream(value, workers.pool, workers.closers, contextvars.copy_context(), home, capacity)
    return None
