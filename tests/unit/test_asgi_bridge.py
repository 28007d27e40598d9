"""Messages of a connection between the loop that accepted it and the agent's: in order, whole, bounded, none lost."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from litestar_agentcore import asgi_bridge as module
from litestar_agentcore.asgi_bridge import AsgiBridge, Receive, Send, serve_on_agent_loop
from litestar_agentcore.runtime.agent_loop import AgentLoop
from litestar_agentcore.runtime.callbacks import callbacks_of
from litestar_agentcore.runtime.execution import Execution
from litestar_agentcore.runtime.threads import ThreadPool

from tests.unit import blocking
from tests.unit.blocking import PATIENCE

DISCONNECT = {"type": "websocket.disconnect", "code": 1000}


def text(value: object) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": str(value)}


class Server:
    """The server's side of a connection: what the client sends, and what is sent to the client."""

    def __init__(self) -> None:
        self._incoming: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self.reads = 0
        self.begun: list[Any] = []
        self.sent: list[Any] = []
        self.send_seconds = 0.0
        self.send_error: Exception | None = None
        self.may_send = asyncio.Event()
        self.may_send.set()

    def client_sends(self, *messages: dict[str, Any] | Exception) -> None:
        for message in messages:
            self._incoming.put_nowait(message)

    async def receive(self) -> dict[str, Any]:
        message = await self._incoming.get()
        self.reads += 1
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Any) -> None:
        self.begun.append(message)
        await self.may_send.wait()
        await asyncio.sleep(self.send_seconds)
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)


class Connection:
    """A server, a bridge from it, and an agent's loop on the other side."""

    def __init__(self, agent: AgentLoop) -> None:
        self._agent = agent
        self.server = Server()
        callbacks = callbacks_of(asyncio.get_running_loop())
        self.bridge = AsgiBridge(callbacks, agent.loop, self.server.receive, self.server.send)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Future[Any]":
        """Run a coroutine on the agent's loop."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._agent.loop))

    async def on_agent_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.begin(coroutine)

    async def receive(self, count: int = 1) -> list[Any]:
        async def receive() -> list[Any]:
            return [await self.bridge.receive() for _ in range(count)]

        received: list[Any] = await self.on_agent_loop(receive())
        return received

    async def send(self, message: Any) -> None:
        await self.on_agent_loop(self.bridge.send(message))


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    agent = AgentLoop(1.0, lambda: None)
    connection = Connection(agent)
    yield connection
    connection.server.may_send.set()
    await connection.bridge.close(wait=False)
    await asyncio.to_thread(agent.cancel_all)


def run(scenario: Callable[[Connection], Awaitable[None]]) -> None:
    async def main() -> None:
        async with connected() as connection:
            await scenario(connection)

    asyncio.run(main())


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class TestReceiving:
    @pytest.mark.parametrize("first", ["the client", "the handler"])
    def test_messages_arrive_once_and_in_order_whoever_comes_first(self, first: str) -> None:
        async def scenario(connection: Connection) -> None:
            messages = [text(number) for number in range(500)]
            if first == "the client":
                connection.server.client_sends(*messages)
                assert await connection.receive(500) == messages
            else:
                receiving = asyncio.ensure_future(connection.receive(500))
                for message in messages:
                    connection.server.client_sends(message)
                    await asyncio.sleep(0)
                assert await receiving == messages

        run(scenario)

    @pytest.mark.parametrize(
        ("messages", "read"),
        [
            ([text("x")] * 100, module.QUEUE_MESSAGES),
            ([text("x" * (module.QUEUE_BYTES // 4))] * 100, 4),
            ([{"type": "websocket.receive", "bytes": b"x" * (module.QUEUE_BYTES // 4)}] * 100, 4),
            ([{"type": "http.request", "body": b"x" * (3 * module.QUEUE_BYTES)}] * 100, 1),
        ],
        ids=["many messages", "much text", "many bytes", "a message that is larger than the queue"],
    )
    def test_the_client_is_not_read_while_the_queue_is_full(self, messages: list[dict[str, Any]], read: int) -> None:
        async def scenario(connection: Connection) -> None:
            server = connection.server
            server.client_sends(*messages)
            await eventually(lambda: server.reads == read)
            await asyncio.sleep(0.05)
            assert server.reads == read
            assert len(await connection.receive(1)) == 1
            await eventually(lambda: server.reads == read + 1)
            await asyncio.sleep(0.05)
            assert server.reads == read + 1
            assert len(await connection.receive(len(messages) - 1)) == len(messages) - 1

        run(scenario)

    def test_the_queue_is_small(self) -> None:
        assert (module.QUEUE_MESSAGES, module.QUEUE_BYTES) == (32, 2**20)

    def test_each_of_two_receivers_gets_messages_of_its_own(self) -> None:
        async def scenario(connection: Connection) -> None:
            receivers = [asyncio.ensure_future(connection.receive(50)) for _ in range(2)]
            for number in range(100):
                connection.server.client_sends(text(number))
                await asyncio.sleep(0)
            one, other = [[int(message["text"]) for message in await receiver] for receiver in receivers]
            assert sorted(one + other) == list(range(100))
            assert one == sorted(one)
            assert other == sorted(other)

        run(scenario)

    @pytest.mark.parametrize("seed", range(2))
    def test_a_thousand_that_are_cancelled_at_any_moment_lose_nothing(self, seed: int) -> None:
        chance, cancelled = random.Random(seed), 0

        async def poll(bridge: AsgiBridge) -> list[str]:
            nonlocal cancelled
            received: list[str] = []
            while "the end" not in received:
                task = asyncio.ensure_future(bridge.receive())
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(chance.choice((0, 0, 0, 0.0001)))
                if not task.done():
                    cancelled += 1
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    received.append((await task)["text"])
            return received

        async def scenario(connection: Connection) -> None:
            polling = connection.begin(poll(connection.bridge))
            sent: list[str] = []
            async with asyncio.timeout(6 * PATIENCE):
                while cancelled < 1000:
                    sent.append(str(len(sent)))
                    connection.server.client_sends(text(sent[-1]))
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(chance.choice((0, 0, 0.001)))
                connection.server.client_sends(text("the end"))
                assert await polling == [*sent, "the end"]
            assert len(sent) > 100

        run(scenario)

    def test_one_that_waits_too_long_leaves_the_message_to_the_next(self) -> None:
        async def wait_in_vain(bridge: AsgiBridge) -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bridge.receive(), 0.01)

        async def scenario(connection: Connection) -> None:
            for number in range(5):
                await connection.on_agent_loop(wait_in_vain(connection.bridge))
                connection.server.client_sends(text(number))
                assert await connection.receive() == [text(number)]

        run(scenario)

    @pytest.mark.parametrize("disconnect", [DISCONNECT, {"type": "http.disconnect"}])
    def test_a_disconnect_stays_the_last_message_however_often_it_is_asked_for(
        self, disconnect: dict[str, Any]
    ) -> None:
        async def scenario(connection: Connection) -> None:
            connection.server.client_sends(text(1), disconnect, text("of nobody"))
            assert await connection.receive(4) == [text(1), disconnect, disconnect, disconnect]
            assert connection.server.reads == 2

        run(scenario)

    def test_everyone_who_waits_learns_of_a_disconnect(self) -> None:
        async def scenario(connection: Connection) -> None:
            receivers = [asyncio.ensure_future(connection.receive()) for _ in range(5)]
            await asyncio.sleep(0.05)
            connection.server.client_sends(DISCONNECT)
            assert await asyncio.gather(*receivers) == [[DISCONNECT]] * 5

        run(scenario)

    @pytest.mark.parametrize("waits", [False, True])
    def test_an_error_of_the_server_is_raised_after_the_messages_before_it(self, waits: bool) -> None:
        async def scenario(connection: Connection) -> None:
            failing: asyncio.Future[Any] | None = None
            connection.server.client_sends(text(1))
            if waits:
                failing = asyncio.ensure_future(connection.receive(2))
                await asyncio.sleep(0.05)
            connection.server.client_sends(text(2), LookupError("no more"))
            if failing is not None:
                assert await failing == [text(1), text(2)]
            else:
                assert await connection.receive(2) == [text(1), text(2)]
            for _ in range(2):
                with pytest.raises(LookupError, match="no more"):
                    await connection.receive()

        run(scenario)


class TestSending:
    def test_messages_leave_in_order_and_each_is_waited_for(self) -> None:
        async def scenario(connection: Connection) -> None:
            for number in range(100):
                await connection.send(text(number))
                assert connection.server.sent[-1] == text(number)
            assert connection.server.sent == [text(number) for number in range(100)]

        run(scenario)

    def test_messages_that_are_sent_together_leave_one_by_one_in_order(self) -> None:
        async def send_all(bridge: AsgiBridge) -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(200):
                    group.create_task(bridge.send(text(number)))

        async def scenario(connection: Connection) -> None:
            connection.server.send_seconds = 0.0001
            sending = connection.begin(send_all(connection.bridge))
            while not sending.done():
                assert len(connection.server.begun) - len(connection.server.sent) <= 1
                await asyncio.sleep(0.0005)
            assert connection.server.sent == [text(number) for number in range(200)]

        run(scenario)

    def test_no_more_than_the_queue_holds_wait_for_a_client_that_reads_nothing(self) -> None:
        async def send_all(bridge: AsgiBridge) -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(bridge.send(text(number)))

        async def scenario(connection: Connection) -> None:
            server = connection.server
            server.may_send.clear()
            sending = connection.begin(send_all(connection.bridge))
            await eventually(lambda: server.begun)
            await asyncio.sleep(0.05)
            assert (len(server.begun), len(connection.bridge._sends)) == (1, module.QUEUE_MESSAGES)
            server.may_send.set()
            await sending
            assert server.sent == [text(number) for number in range(100)]

        run(scenario)

    @pytest.mark.parametrize("seed", range(2))
    def test_one_that_is_cancelled_at_any_moment_is_sent_whole_or_not_at_all_and_in_order(self, seed: int) -> None:
        chance = random.Random(seed)

        async def send_some(bridge: AsgiBridge) -> tuple[list[int], int]:
            whole, cancelled = [], 0
            for number in range(500):
                task = asyncio.ensure_future(bridge.send(text(number)))
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(chance.choice((0, 0, 0.0001)))
                if chance.random() < 0.7 and not task.done():
                    cancelled += 1
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                    whole.append(number)
            await bridge.send(text(500))
            return whole, cancelled

        async def scenario(connection: Connection) -> None:
            connection.server.send_seconds = 0.0002
            async with asyncio.timeout(PATIENCE):
                whole, cancelled = await connection.begin(send_some(connection.bridge))
            assert connection.server.begun == connection.server.sent
            numbers = [int(message["text"]) for message in connection.server.sent]
            assert numbers == sorted(set(numbers))
            assert set(whole) < set(numbers)
            assert cancelled > 100
            assert len(numbers) > len(whole) + 1  # some of those that were cancelled had been handed over

        run(scenario)

    def test_an_error_of_the_server_is_raised_by_the_send_that_it_belongs_to(self) -> None:
        async def scenario(connection: Connection) -> None:
            await connection.send(text(1))
            connection.server.send_error = ConnectionResetError("gone")
            for _ in range(2):
                with pytest.raises(ConnectionResetError, match="gone"):
                    await connection.send(text(2))
            connection.server.send_error = None
            await connection.send(text(3))
            assert connection.server.sent == [text(1), text(3)]

        run(scenario)


class TestClosing:
    def test_what_was_sent_leaves_first(self) -> None:
        async def send_and_leave(bridge: AsgiBridge) -> None:
            for number in range(10):
                asyncio.ensure_future(bridge.send(text(number)))  # noqa: RUF006
            await asyncio.sleep(0)

        async def scenario(connection: Connection) -> None:
            connection.server.send_seconds = 0.01
            await connection.on_agent_loop(send_and_leave(connection.bridge))
            await connection.bridge.close(wait=True)
            assert connection.server.sent == [text(number) for number in range(10)]

        run(scenario)

    def test_or_is_cut_off_and_raises_where_it_is_awaited(self) -> None:
        async def scenario(connection: Connection) -> None:
            connection.server.may_send.clear()
            sending = connection.begin(connection.bridge.send(text(1)))
            await eventually(lambda: connection.server.begun)
            await connection.bridge.close(wait=False)
            with pytest.raises(ConnectionError):
                await sending
            assert connection.server.sent == []

        run(scenario)

    @pytest.mark.parametrize("begun", [True, False])
    def test_what_waits_behind_one_that_is_cut_off_raises_too_and_so_does_what_comes_later(self, begun: bool) -> None:
        async def send_all(bridge: AsgiBridge) -> list[Any]:
            sends = [bridge.send(text(number)) for number in range(module.QUEUE_MESSAGES + 2)]
            return await asyncio.gather(*sends, return_exceptions=True)

        async def scenario(connection: Connection) -> None:
            connection.server.may_send.clear()
            sending = connection.begin(send_all(connection.bridge))
            if begun:
                await eventually(lambda: connection.server.begun)
            else:  # the task that sends is there after one turn, and begins in the next
                blocking.eventually(lambda: connection.bridge._callbacks._callbacks)
                await asyncio.sleep(0)
                assert connection.bridge._sends
                assert not connection.server.begun
            await connection.bridge.close(wait=False)
            async with asyncio.timeout(PATIENCE):
                assert {type(error) for error in await sending} == {ConnectionError}
            with pytest.raises(ConnectionError):
                await connection.send(text(1))
            assert connection.server.sent == []

        run(scenario)

    def test_the_client_is_not_read_any_more(self) -> None:
        async def scenario(connection: Connection) -> None:
            await connection.bridge.close(wait=True)
            connection.server.client_sends(text(1))
            await asyncio.sleep(0.05)
            assert connection.server.reads == 0

        run(scenario)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize(
        ("first", "last"),
        [
            ({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1005}),
            ({"type": "http.request", "body": b""}, {"type": "http.disconnect"}),
        ],
        ids=["websocket", "http"],
    )
    def test_a_task_that_goes_on_to_receive_learns_that_the_connection_is_closed(
        self, first: dict[str, Any], last: dict[str, Any], waits: bool
    ) -> None:
        async def scenario(connection: Connection) -> None:
            connection.server.client_sends(first, first)
            assert await connection.receive(1) == [first]
            receiving = asyncio.ensure_future(connection.receive(3)) if waits else None
            await asyncio.sleep(0.05)
            await connection.bridge.close(wait=True)
            assert await (receiving or connection.receive(3)) == [first, last, last]

        run(scenario)

    def test_a_task_that_receives_nothing_but_the_end_learns_of_it_too(self) -> None:
        async def scenario(connection: Connection) -> None:
            receiving = asyncio.ensure_future(connection.receive(1))
            await asyncio.sleep(0.05)
            await connection.bridge.close(wait=True)
            assert await receiving == [{"type": "http.disconnect"}]

        run(scenario)


class TestCancelling:
    @pytest.mark.parametrize("loop_is_held", [False, True])
    def test_what_was_received_before_reaches_the_function_first(self, loop_is_held: bool) -> None:
        received: list[Any] = []
        ended = threading.Event()

        async def function(receive: Receive, send: Send) -> None:
            try:
                while True:
                    received.append(await receive())
                    if received[-1] == DISCONNECT:
                        return
            finally:
                ended.set()

        async def main() -> None:
            agent = AgentLoop(1.0, lambda: None)
            pool = ThreadPool(1, "test")
            execution = Execution(agent, pool, inline=False, stream_capacity=1, as_response=lambda _: None)
            server = Server()
            serving = asyncio.ensure_future(
                serve_on_agent_loop(execution, "function", function, server.receive, server.send)
            )
            server.client_sends(text(1))
            await eventually(lambda: received)
            release = threading.Event()
            if loop_is_held:
                agent.loop.call_soon_threadsafe(release.wait)
            server.client_sends(DISCONNECT)
            await eventually(lambda: server.reads == 2)
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            release.set()
            assert await asyncio.to_thread(ended.wait, PATIENCE)
            await asyncio.to_thread(agent.cancel_all)

        asyncio.run(main())
        assert received == [text(1), DISCONNECT]
