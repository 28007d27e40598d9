"""Generators, iterated where the rule says, and their events handed to the loop that sends them."""

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from litestar_agentcore.protocol.models import StreamError
from litestar_agentcore.protocol.serialization import encode_document, encode_events
from litestar_agentcore.runtime.agent_loop import task_begins
from litestar_agentcore.runtime.callbacks import CallbackQueue
from litestar_agentcore.runtime.failure import OnError, message_of
from litestar_agentcore.runtime.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class EventStream:
    """The events of one generator on their way to one client.

    The generator's side pushes encoded values; the client's side takes all that are ready at once. No more than
    ``capacity`` bytes wait: then the generator is paused until the client has taken them.

    There is no lock. Each side writes its own attributes (the list of events is both sides'), and first what the other
    may wait for, then asks whether the other waits. Who is going to wait makes a new object to wait for, and looks once
    more before it does; the other side remembers which one it has woken. So no wake-up is lost.

    Args:
        source: The generator.
        callbacks: Reach the loop on which events are taken.
        capacity: How many bytes may wait.
        on_error: Called on the generator's side with what the generator raised.
    """

    __slots__ = (
        "_callbacks", "_capacity", "_closed", "_documents", "_ended", "_on_error", "_pushed", "_resume", "_resumed",
        "_source", "_taken", "_taker", "_task", "_woken", "_woken_taker",
    )  # fmt: skip

    def __init__(self, source: Any, callbacks: CallbackQueue, capacity: int, on_error: OnError) -> None:
        self._source = source
        self._callbacks = callbacks
        self._capacity = capacity
        self._on_error = on_error
        self._documents: list[bytes] = []
        # Written by the generator's side
        self._pushed = 0
        self._ended = False
        self._resume: Callable[[], object] | None = None  # one for each pause
        self._woken_taker: asyncio.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None  # what an async generator runs in, until it is closed
        # Written by the client's side
        self._taken = 0
        self._closed = False
        self._woken = False
        self._taker: asyncio.Future[None] | None = None
        self._resumed: Callable[[], object] | None = None

    # -- On the client's side

    @property
    def ended(self) -> bool:
        """Whether the generator is done and all its events were taken."""
        return self._ended and not self._documents

    @property
    def is_over(self) -> bool:
        """Whether there will be no more events than those that wait."""
        return self._ended or self._closed

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to take."""
        return self._closed or self.ended

    async def take(self) -> tuple[bytes, int]:
        """Wait for events.

        Returns:
            All events that are ready, in order and encoded for the wire, and how many these are; none at the end of the
            stream, after :meth:`close`, or after :meth:`wake`.
        """
        documents = self._documents
        while not (documents or self._woken or self.is_over):
            self._taker = taker = self._callbacks.loop.create_future()
            if not (documents or self.is_over):
                await taker
        self._woken = False
        if self._closed or not documents:  # the last ones are there before the stream is over
            return b"", 0
        ready = documents.copy()
        del documents[: len(ready)]  # and nothing that was added meanwhile
        events = encode_events(ready)
        self._taken += sum(map(len, ready))
        self._resume_generator()
        return events, len(ready)

    def wake(self) -> None:
        """Have :meth:`take` return, also where there are no events. Call it on the loop of that."""
        self._woken = True
        if self._taker is not None:
            _wake(self._taker)

    def close(self) -> None:
        """Close the generator: its events are not wanted any more. Call it on the loop of :meth:`take`."""
        if not self._closed:
            self._closed = True
            self._documents.clear()
            self.wake()
            self._resume_generator()
            if (task := self._task) is not None:
                task.get_loop().call_soon(self._cancel_iteration)

    def _resume_generator(self) -> None:
        if (resume := self._resume) is not None and resume is not self._resumed:
            self._resumed = resume
            resume()

    # -- On the generator's side

    def _cancel_iteration(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _push(self, document: bytes) -> None:
        self._documents.append(document)
        self._pushed += len(document)
        self._wake_taker()

    def _wake_taker(self) -> None:
        if (taker := self._taker) is not self._woken_taker:
            self._woken_taker = taker
            self._callbacks.call_soon(_wake, taker)

    def _is_full(self) -> bool:
        return self._pushed - self._taken >= self._capacity and not self._closed

    def _end(self, error: BaseException | None) -> None:
        """End the stream; with a last event that tells of the error, if there was one."""
        if error is not None and not self._closed:
            event = self._on_error(error)
            logger.error("The stream's generator raised", exc_info=error)
            self._push(encode_document(event or StreamError(message_of(error), type(error).__name__)))
        self._ended = True
        self._wake_taker()


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class AsyncEventStream(EventStream):
    """The events of an async generator, iterated by the one task that runs :meth:`iterate`."""

    __slots__ = ()

    async def iterate(self) -> None:
        """Iterate the generator until it ends or the stream is closed. Raises nothing.

        A cancellation by :meth:`close` reaches the generator where it awaits; at a yield it sees ``GeneratorExit``.
        """
        error: BaseException | None = None
        task = None
        try:
            await task_begins()
            self._task = task = asyncio.current_task()
            # What :meth:`_push` does, written out: this is done for every token of every answer.
            add, capacity = self._documents.append, self._capacity
            if not self.is_over:
                async for value in self._source:
                    document = encode_document(value)
                    add(document)
                    self._pushed = pushed = self._pushed + len(document)
                    if self._taker is not self._woken_taker:
                        self._wake_taker()
                    if pushed - self._taken >= capacity:
                        await self._wait_for_room()
                    if self._closed:
                        break
        except BaseException as raised:
            error = raised
        self._task = None
        if self._closed and task is not None:
            task.uncancel()  # so that the generator may await while it is closed
        try:
            await self._source.aclose()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")
        self._end(error)

    async def _wait_for_room(self) -> None:
        while self._is_full():
            loop = asyncio.get_running_loop()
            room = loop.create_future()
            self._resume = partial(loop.call_soon, _wake, room)
            if self._is_full():
                await room


class PlainEventStream(EventStream):
    """The events of a plain generator, iterated in the one thread that runs :meth:`iterate`."""

    __slots__ = ()

    def iterate(self, pool: ThreadPool) -> None:
        """Iterate the generator until it ends or the stream is closed, and close it. Raises nothing.

        Args:
            pool: What the thread belongs to. While the generator is paused, another call runs in its place.
        """
        error: BaseException | None = None
        try:
            if not self.is_over:
                for value in self._source:
                    self._push(encode_document(value))
                    if self._pushed - self._taken >= self._capacity:
                        self._wait_for_room(pool)
                    if self._closed:
                        break
        except BaseException as raised:
            error = raised
        try:
            self._source.close()
        except BaseException:  # its ``finally`` is the author's code
            logger.exception("Closing the stream's generator raised")
        self._end(error)

    def _wait_for_room(self, pool: ThreadPool) -> None:
        while self._is_full():
            room = threading.Event()
            self._resume = room.set
            if self._is_full():
                pool.park(room.wait, is_urgent=lambda: self._closed)
