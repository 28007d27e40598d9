"""ASGI receive and send of the accepting loop, for code that runs on the agent's loop."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from litestar_agentcore.runtime.callbacks import CallbackQueue, callbacks_of
from litestar_agentcore.runtime.execution import Execution, HandlerCall
from litestar_agentcore.runtime.failure import Failure
from litestar_agentcore.runtime.handler import HandlerKind
from litestar_agentcore.runtime.running import Running

_Sent: TypeAlias = "asyncio.Future[BaseException | None]"
"""Settled with what sending a message raised, if anything."""

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

QUEUE_MESSAGES = 32
"""How many messages may wait in each direction."""

QUEUE_BYTES = 1024 * 1024
"""How many bytes of received messages may wait; one message may be larger. Each counts for a share of them at least."""

_DISCONNECTS = frozenset({"websocket.disconnect", "http.disconnect"})

_CLOSED = {"http": {"type": "http.disconnect"}, "websocket": {"type": "websocket.disconnect", "code": 1005}}
"""What is received once a connection was closed; 1005 stands for a close without a code (RFC 6455, section 7.4.1)."""


class AsgiBridge:
    """Carries the messages of one connection between the loop that accepted it and the agent's loop.

    Received messages wait in a bounded queue: who is cancelled while waiting for one loses none, and the client is not
    read while the queue is full. Messages are sent one by one in their order, and whole: who is cancelled while one is
    sent merely waits for it no longer.

    Args:
        callbacks: Reach the accepting loop, on which this is made.
        agent_loop: The agent's loop, on which :meth:`receive` and :meth:`send` are called.
        receive: The ASGI receive function of the accepting loop.
        send: The ASGI send function of the accepting loop.
    """

    def __init__(
        self, callbacks: CallbackQueue, agent_loop: asyncio.AbstractEventLoop, receive: Receive, send: Send
    ) -> None:
        self._callbacks = callbacks
        self._agent_loop = agent_loop
        self._protocol = "http"  # a WebSocket begins with a message of its own
        self._receive = receive
        self._send = send
        self._received: asyncio.Queue[Any] = asyncio.Queue()
        """Messages, and at the end a disconnect or what receiving raised. Of the agent's loop."""
        self._received_bytes = 0
        self._taken_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._sending = asyncio.Semaphore(QUEUE_MESSAGES)
        self._sends: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._cut_off = False
        self._reader = callbacks.loop.create_task(self._read())

    # -- On the agent's loop

    async def receive(self) -> Any:
        """Wait for the next message. A disconnect stays the last one, however often it is asked for."""
        message = await self._received.get()
        if isinstance(message, Exception) or message["type"] in _DISCONNECTS:
            self._received.put_nowait(message)
            if isinstance(message, Exception):
                raise message
            return message
        self._taken_bytes += _size_of(message)
        if (room := self._room) is not None:
            self._callbacks.call_soon(_settle, room, None)
        return message

    async def send(self, message: Any) -> None:
        """Send a message, and wait until the server has taken it.

        Args:
            message: An ASGI message.
        """
        await self._sending.acquire()
        sent: _Sent = self._agent_loop.create_future()
        self._callbacks.call_soon(self._begin_to_send, message, sent)
        if (error := await sent) is not None:
            raise error

    def _end_sending(self, sent: _Sent, error: BaseException | None) -> None:
        self._sending.release()
        _settle(sent, error)

    # -- On the accepting loop

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                self._protocol = message["type"].partition(".")[0]
                self._received_bytes += _size_of(message)
                self._put(message)
                if message["type"] in _DISCONNECTS:
                    return
                while self._is_full():
                    self._room = room = self._callbacks.loop.create_future()
                    if self._is_full():  # the last was not taken between question and answer
                        await room
                self._room = None
        except Exception as error:
            self._put(error)

    def _put(self, message: Any) -> None:
        self._agent_loop.call_soon_threadsafe(self._received.put_nowait, message)

    def _is_full(self) -> bool:
        return self._received_bytes - self._taken_bytes >= QUEUE_BYTES

    def _begin_to_send(self, message: Any, sent: _Sent) -> None:
        task = self._callbacks.loop.create_task(self._send_in_turn(message))
        self._sends.add(task)
        task.add_done_callback(partial(self._sent, sent))
        if self._cut_off:
            task.cancel()

    async def _send_in_turn(self, message: Any) -> None:
        async with self._turn:
            await self._send(message)

    def _sent(self, sent: _Sent, task: "asyncio.Task[None]") -> None:
        self._sends.discard(task)
        error = ConnectionError("the connection was closed") if task.cancelled() else task.exception()
        self._agent_loop.call_soon_threadsafe(self._end_sending, sent, error)

    async def close(self, *, wait: bool) -> None:
        """Stop receiving: a task that outlives its handler learns that the connection is closed. On the accepting loop.

        Args:
            wait: Whether to wait until what was sent has left. Else that is cut off, and what is sent from now on
                raises ``ConnectionError``.
        """
        self._cut_off = not wait
        if self._reader.cancel():
            self._put(_CLOSED[self._protocol])
        if wait and self._sends:
            await asyncio.wait(self._sends)
        if not wait:
            for task in self._sends:
                task.cancel()


def _size_of(message: Any) -> int:
    body = message.get("bytes") or message.get("text") or message.get("body") or ""
    return max(len(body), QUEUE_BYTES // QUEUE_MESSAGES)


class _ErrorObserver:
    """An observer that leaves it to the function to record what it raises."""

    describe = staticmethod(Failure)

    def note(self, error: BaseException) -> None:
        """Nothing: the function is no generator."""


async def serve_on_agent_loop(
    execution: Execution,
    name: str,
    function: Callable[[Receive, Send], Coroutine[Any, Any, None]],
    receive: Receive,
    send: Send,
    running: Running | None = None,
) -> BaseException | None:
    """Run an async function where async handler code runs, while it receives and sends here.

    Args:
        execution: Where handlers run.
        name: The function's name in the log.
        function: What to run. It is called with the ASGI functions that it is to use.
        receive: The ASGI receive function of this loop.
        send: The ASGI send function of this loop.
        running: What it is run for. It may outlive a cancelled call.

    Returns:
        What it raised, if anything.
    """
    callbacks = callbacks_of(asyncio.get_running_loop())
    bridge = None
    if not execution.inline:
        bridge = AsgiBridge(callbacks, execution.agent_loop.loop, receive, send)
        receive, send = bridge.receive, bridge.send
    start = partial(function, receive, send)
    call = HandlerCall(execution, name, HandlerKind.COROUTINE, start, callbacks, _ErrorObserver())
    if running is not None:
        running.work = call
    try:
        outcome = await call.run()
    except asyncio.CancelledError:
        if bridge is not None:
            await bridge.close(wait=False)
        raise
    if bridge is not None:
        await bridge.close(wait=True)
    return outcome.error if isinstance(outcome, Failure) else None


def _settle(outcome: "asyncio.Future[Any]", result: object) -> None:
    if not outcome.done():
        outcome.set_result(result)
