"""Generators, iterated where the rule says, and their events handed to the loop that sends them."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Context
from typing import Any

from litestar_agentcore.protocol.models import StreamError
from litestar_agentcore.protocol.serialization import encode_document, encode_events
from litestar_agentcore.runtime.callbacks import CallbackQueue
from litestar_agentcore.runtime.failure import OnError, message_of
from litestar_agentcore.runtime.threads import ThreadPool

logger = logging.getLogger(__name__)


class EventStream:
    """The events of one generator on their way to one client.

    The generator's side pushes encoded values; the client's side takes all that are ready at once. No more than
    ``capacity`` bytes wait: then the generator is paused until the client has taken them.

    Pushing and taking need no lock: each side writes what only it writes, then asks whether the other waits. Pausing,
    resuming and closing need one.

    Args:
        callbacks: Reach the loop on which events are taken.
        capacity: How many bytes may wait.
        on_error: Called on the generator's side with what the generator raised.
    """

    __slots__ = (
        "_callbacks", "_capacity", "_closed", "_documents", "_ended", "_lock", "_on_end", "_on_error", "_paused",
        "_pushed", "_taken", "_taker", "_woken",
    )  # fmt: skip

    def __init__(self, callbacks: CallbackQueue, capacity: int, on_error: OnError) -> None:
        self._callbacks = callbacks
        self._capacity = capacity
        self._on_error = on_error
        self._lock = threading.Lock()
        self._documents: list[bytes] = []
        self._pushed = 0
        self._taken = 0
        self._ended = False
        self._closed = False
        self._paused = False
        self._woken = False
        self._taker: asyncio.Future[None] | None = None
        self._on_end: Callable[[], object] | None = None

    @property
    def ended(self) -> bool:
        """Whether the generator is done and all its events were taken."""
        return self._ended and not self._documents

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function once the generator is done, on any thread; at once where it is."""
        self._on_end = function
        if self._ended:
            function()

    async def take(self) -> tuple[bytes, int]:
        """Wait for events.

        Returns:
            All events that are ready, in order and encoded for the wire, and how many these are; none at the end of the
            stream, after :meth:`close`, or after :meth:`wake`.
        """
        documents = self._documents
        while not documents and not self._woken and not self.is_over:
            self._taker = taker = self._callbacks.loop.create_future()
            if documents or self.is_over:  # it came between the question and the answer
                self._taker = None
            else:
                await taker
        self._woken = False
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

    @property
    def is_over(self) -> bool:
        """Whether there will be no more events than those that wait."""
        return self._ended or self._closed

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to take. Looked at in this order, for the last event comes before the end."""
        return self._closed or (self._ended and not self._documents)

    def wake(self) -> None:
        """Have :meth:`take` return, also where there are no events. Call it on the loop of that."""
        self._woken = True
        taker, self._taker = self._taker, None
        if taker is not None:
            _wake(taker)

    def close(self) -> None:
        """Close the generator: its events are not wanted any more. Call it on the loop of :meth:`take`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._paused = False
            ended = self._ended
        self._documents.clear()
        self.wake()
        if not ended:
            self._abandon()

    def _push(self, document: bytes) -> bool:
        """Add an event, from the generator's side. Returns True where no more are to follow for now."""
        self._documents.append(document)
        self._pushed += len(document)
        self._wake_taker()
        return self._pushed - self._taken >= self._capacity

    def _wake_taker(self) -> None:
        if (taker := self._taker) is not None:
            self._taker = None
            self._callbacks.call_soon(_wake, taker)

    def _pause(self) -> bool:
        """Leave it to ``take`` to resume the generator. Returns False where there is room again, or no client.

        Told apart from being full because the generator's side takes its time to stop, and the client's side must not
        resume it twice.
        """
        with self._lock:
            self._paused = self._pushed - self._taken >= self._capacity and not self._closed
            return self._paused

    def _end(self, error: BaseException | None = None) -> None:
        """End the stream, from the generator's side; with a last event that tells of the error, if there was one."""
        if error is not None and not self._closed:
            event = self._on_error(error)
            logger.error("The stream's generator raised", exc_info=error)
            self._push(encode_document(event or StreamError(message_of(error), type(error).__name__)))
        self._ended = True
        self._wake_taker()
        if self._on_end is not None:
            self._on_end()

    def _resume(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        """Cancel the generator where it can be cancelled; from any thread."""


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class AsyncEventStream(EventStream):
    """The events of an async generator, iterated by the one task that runs :meth:`iterate`.

    Args:
        source: The generator.
        callbacks, capacity, on_error: As in :class:`EventStream`.
    """

    __slots__ = ("_iterating", "_loop", "_resumed", "_source", "_task")

    def __init__(
        self, source: AsyncGenerator[Any, Any], callbacks: CallbackQueue, capacity: int, on_error: OnError
    ) -> None:
        super().__init__(callbacks, capacity, on_error)
        self._source = source
        self._resumed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._iterating = False

    async def iterate(self) -> None:
        """Iterate the generator until it ends or the stream is closed. Raises nothing.

        A cancellation by :meth:`close` reaches the generator where it awaits; at a yield it sees ``GeneratorExit``.
        """
        error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._iterating = True
        try:
            # What :meth:`_push` does, written out: this is done for every token of every answer.
            add, capacity = self._documents.append, self._capacity
            if not self.is_over:
                async for value in self._source:
                    document = encode_document(value)
                    add(document)
                    self._pushed = pushed = self._pushed + len(document)
                    if self._taker is not None:
                        self._wake_taker()
                    if pushed - self._taken >= capacity:
                        await self._wait_for_room()
                    if self._closed:
                        break
        except BaseException as raised:
            error = raised
        self._iterating = False
        if self._closed and self._task is not None:
            self._task.uncancel()  # so that the generator may await while it is closed
        try:
            await self._source.aclose()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")
        self._end(error)

    async def _wait_for_room(self) -> None:
        self._resumed = resumed = asyncio.Event()
        if self._pause():
            await resumed.wait()

    def iterated_by(self, task: "asyncio.Task[Any]", context: Context) -> None:
        """Name the task that runs :meth:`iterate` in a context, and end the stream where that is cancelled before."""
        self._task = task
        task.add_done_callback(self._end_unbegun, context=context)

    def _end_unbegun(self, _: "asyncio.Task[Any]") -> None:
        if self._loop is None:
            self._end(asyncio.CancelledError())

    def _resume(self) -> None:
        if self._resumed is not None and self._loop is not None:
            self._loop.call_soon(self._resumed.set)

    def _abandon(self) -> None:
        if self._loop is not None:  # else it has not begun, and will find that it is closed
            self._loop.call_soon(self._cancel_iteration)

    def _cancel_iteration(self) -> None:
        if self._iterating and self._task is not None:
            self._task.cancel()

    def cancel(self) -> None:
        """Cancel the generator's task, also while the generator is being closed; from any thread."""
        if self._task is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)


class PlainEventStream(EventStream):
    """The events of a plain generator, iterated in the one thread that runs :meth:`iterate`.

    Args:
        source: The generator.
        pool: What the thread belongs to. While the generator is paused, another call runs in its place.
        callbacks, capacity, on_error: As in :class:`EventStream`.
    """

    __slots__ = ("_pool", "_resumed", "_source")

    def __init__(
        self,
        source: Generator[Any, Any, Any],
        pool: ThreadPool,
        callbacks: CallbackQueue,
        capacity: int,
        on_error: OnError,
    ) -> None:
        super().__init__(callbacks, capacity, on_error)
        self._source = source
        self._pool = pool
        self._resumed = threading.Event()

    def iterate(self) -> None:
        """Iterate the generator until it ends or the stream is closed, and close it. Raises nothing."""
        error: BaseException | None = None
        try:
            if not self.is_over:
                for value in self._source:
                    if self._push(encode_document(value)):
                        self._wait_for_room()
                    if self._closed:
                        break
        except BaseException as raised:
            error = raised
        try:
            self._source.close()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")
        self._end(error)

    def _wait_for_room(self) -> None:
        self._resumed.clear()
        if self._pause():
            self._pool.park(self._resumed.wait, is_urgent=lambda: self._closed)

    def _resume(self) -> None:
        self._resumed.set()

    _abandon = _resume
