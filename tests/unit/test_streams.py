"""Generators: where their code runs, how they end when nobody wants their events any more, how far they run ahead."""

import asyncio
import inspect
import json
import random
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextvars import ContextVar, copy_context
from functools import partial
from types import FrameType
from typing import Any

import anyio
import pytest
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp
from litestar_agentcore.runtime import streams as module
from litestar_agentcore.runtime.agent_loop import AgentLoop
from litestar_agentcore.runtime.callbacks import callbacks_of
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream, PlainEventStream
from litestar_agentcore.runtime.threads import ThreadPool

from tests.unit.blocking import PATIENCE, Block
from tests.unit.conftest import events

CAPACITY = 1000
"""Bytes that may wait here."""

FILLING = "x" * (CAPACITY // 10)


class Server:
    """The loop that takes the events, and what generators run on."""

    def __init__(self, threads: int = 1) -> None:
        self.agent = AgentLoop(1.0, lambda: None)
        self.pool = ThreadPool(threads, "a-pool", park_limit=10)
        self.callbacks = callbacks_of(asyncio.get_running_loop())
        self.errors: list[BaseException] = []

    def plain(self, source: Generator[Any, Any, Any]) -> PlainEventStream:
        stream = PlainEventStream(source, self.callbacks, CAPACITY, self.errors.append)
        self.pool.submit(partial(stream.iterate, self.pool))
        return stream

    def asynchronous(self, source: AsyncGenerator[Any, Any]) -> AsyncEventStream:
        stream = AsyncEventStream(source, self.callbacks, CAPACITY, self.errors.append)
        self.task = self.agent.loop.spawn(stream.iterate(), copy_context(), "stream")
        return stream


def run(scenario: Callable[[Server], Coroutine[Any, Any, None]], threads: int = 1) -> None:
    async def main() -> None:
        server = Server(threads)
        async with asyncio.timeout(3 * PATIENCE):
            await scenario(server)
        await asyncio.to_thread(server.agent.cancel_all)
        await eventually(lambda: server.pool.running == 0)
        server.pool.trim()

    asyncio.run(main())


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


async def take_all(stream: EventStream) -> list[Any]:
    taken = b""
    while not stream.ended:
        documents, count = await stream.take()
        assert documents.count(b"data: ") == count
        taken += documents
    return [json.loads(event[6:]) for event in taken.split(b"\n\n")[:-1]]


async def never() -> AsyncGenerator[Any, None]:
    await asyncio.Event().wait()
    yield None


async def end_of(stream: EventStream) -> None:
    """Wait until the generator is closed."""
    await eventually(lambda: stream._ended)


def is_paused(stream: EventStream) -> bool:
    return stream._resume is not stream._resumed


class TestPlainGenerators:
    @pytest.mark.parametrize("slowly", [False, True], ids=["", "with a slow client"])
    def test_one_runs_in_one_thread_to_its_end(self, slowly: bool) -> None:
        threads: list[int] = []

        def generate() -> Iterator[Any]:
            try:
                for number in range(100):
                    threads.append(threading.get_ident())
                    yield [number, FILLING]
            finally:
                threads.append(threading.get_ident())

        async def scenario(server: Server) -> None:
            stream = server.plain(generate())  # type: ignore[arg-type]
            taken = 0
            while not stream.ended:
                if slowly and stream.ended is False:
                    await eventually(lambda: server.pool.parked or stream._ended)
                taken += (await stream.take())[1]
            assert taken == 100

        run(scenario, threads=3)
        assert len(threads) == 101
        assert len(set(threads)) == 1

    @pytest.mark.parametrize("paused", [False, True])
    def test_it_is_closed_in_that_thread(self, paused: bool) -> None:
        threads: list[int] = []
        closed = threading.Event()

        def generate() -> Iterator[Any]:
            try:
                while True:
                    threads.append(threading.get_ident())
                    yield FILLING
                    time.sleep(0 if paused else 0.02)
            except GeneratorExit:
                threads.append(threading.get_ident())
                closed.set()
                raise

        async def scenario(server: Server) -> None:
            stream = server.plain(generate())  # type: ignore[arg-type]
            await stream.take()
            if paused:
                await eventually(lambda: server.pool.parked)
            stream.close()
            await end_of(stream)

        run(scenario, threads=3)
        assert closed.is_set()
        assert len(set(threads)) == 1

    def test_one_that_is_paused_is_closed_at_once_though_every_thread_is_taken(self) -> None:
        block, closed = Block(), threading.Event()

        def generate() -> Iterator[Any]:
            try:
                while True:
                    yield FILLING
            finally:
                closed.set()

        async def scenario(server: Server) -> None:
            stream = server.plain(generate())  # type: ignore[arg-type]
            await eventually(lambda: server.pool.parked)
            server.pool.submit(block)
            await asyncio.to_thread(block.wait_until_entered)
            stream.close()
            await end_of(stream)
            assert closed.is_set()
            block.release()

        run(scenario)

    def test_a_finally_of_which_the_close_raises_is_logged_and_ends_the_stream(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def generate() -> Iterator[Any]:
            try:
                while True:
                    yield FILLING
            finally:
                raise LookupError("no way out")

        async def scenario(server: Server) -> None:
            stream = server.plain(generate())  # type: ignore[arg-type]
            await stream.take()
            stream.close()
            await end_of(stream)

        run(scenario)
        assert "Closing the stream's generator raised" in caplog.text

    def test_one_that_was_closed_before_it_began_never_does(self) -> None:
        begun: list[None] = []

        def generate() -> Iterator[Any]:
            begun.append(None)
            yield 1

        async def scenario(server: Server) -> None:
            block, source = Block(), generate()
            server.pool.submit(block)
            stream = server.plain(source)  # type: ignore[arg-type]
            stream.close()
            block.release()
            await end_of(stream)
            assert inspect.getgeneratorstate(source) == inspect.GEN_CLOSED  # type: ignore[arg-type]

        run(scenario)
        assert begun == []


Seen = list[tuple[str, object]]


async def ends(seen: Seen, error: BaseException) -> None:
    """What a generator does in its ``finally``: it awaits, and notes how it fared."""
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.sleep(0.01), 1)
    if isinstance(error, GeneratorExit):
        assert task.cancelling() == 0  # what it awaits is not cancelled, whatever asks for that
    seen.append((type(error).__name__, task))


class TestAsyncGenerators:
    def test_one_runs_in_one_task_and_one_context_to_its_end(self) -> None:
        steps: ContextVar[int] = ContextVar("steps", default=0)
        tasks: list[object] = []

        async def generate() -> AsyncGenerator[Any, None]:
            try:
                for _ in range(50):
                    tasks.append(asyncio.current_task())
                    steps.set(steps.get() + 1)
                    yield [steps.get(), FILLING]
            finally:
                await asyncio.sleep(0)
                tasks.append(asyncio.current_task())

        async def scenario(server: Server) -> None:
            numbers = [number for number, _ in await take_all(server.asynchronous(generate()))]
            assert numbers == list(range(1, 51))

        run(scenario)
        assert len(tasks) == 51
        assert len(set(tasks)) == 1

    @pytest.mark.parametrize(("where", "error"), [("at an await", "CancelledError"), ("at a yield", "GeneratorExit")])
    def test_one_whose_client_leaves_sees_it_where_it_is_and_may_await_in_its_finally(
        self, where: str, error: str
    ) -> None:
        seen: Seen = []
        tasks: list[object] = []

        async def generate() -> AsyncGenerator[Any, None]:
            tasks.append(asyncio.current_task())
            try:
                yield 1
                if where == "at an await":
                    await asyncio.Event().wait()
                while True:
                    yield FILLING
            except BaseException as raised:
                await ends(seen, raised)
                raise

        async def scenario(server: Server) -> None:
            stream = server.asynchronous(generate())
            await stream.take()
            await eventually(lambda: is_paused(stream) or where == "at an await")
            await asyncio.sleep(0.05)
            stream.close()
            await end_of(stream)
            assert server.errors == []

        run(scenario)
        assert seen == [(error, tasks[0])]

    def test_what_is_open_across_its_yields_is_closed_in_its_own_task(self) -> None:
        outcome: list[BaseException] = []

        async def generate() -> AsyncGenerator[Any, None]:
            try:
                async with asyncio.timeout(PATIENCE):
                    with anyio.fail_after(PATIENCE):
                        while True:
                            yield FILLING
                            await asyncio.sleep(0)
            except BaseException as raised:
                outcome.append(raised)
                raise

        async def scenario(server: Server) -> None:
            stream = server.asynchronous(generate())
            await stream.take()
            await eventually(lambda: is_paused(stream))
            stream.close()
            await end_of(stream)

        run(scenario)
        assert [type(error) for error in outcome] == [GeneratorExit]

    def test_a_timeout_that_is_open_across_its_yields_ends_it_while_it_waits_for_its_client(self) -> None:
        outcome: list[type[BaseException]] = []

        async def generate() -> AsyncGenerator[Any, None]:
            try:
                async with asyncio.timeout(0.2):
                    while True:
                        yield FILLING
            except BaseException as raised:
                outcome.append(type(raised))
                raise

        async def scenario(server: Server) -> None:
            stream = server.asynchronous(generate())
            await end_of(stream)
            stream.close()

        run(scenario)
        assert len(outcome) == 1

    def test_one_that_takes_no_notice_of_the_cancellation_is_closed_at_its_next_yield(self) -> None:
        seen: list[str] = []

        async def generate() -> AsyncGenerator[Any, None]:
            try:
                yield 1
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    seen.append("cancelled")
                await asyncio.sleep(0.01)
                seen.append("goes on")
                yield 2
                seen.append("too far")
            finally:
                await asyncio.sleep(0.01)
                seen.append("closed")

        async def scenario(server: Server) -> None:
            stream = server.asynchronous(generate())
            await stream.take()
            await asyncio.sleep(0.05)
            stream.close()
            await end_of(stream)

        run(scenario)
        assert seen == ["cancelled", "goes on", "closed"]

    def test_one_that_was_closed_before_it_began_never_does(self) -> None:
        begun: list[None] = []

        async def generate() -> AsyncGenerator[Any, None]:
            begun.append(None)
            yield 1

        async def scenario(server: Server) -> None:
            block = Block()
            server.agent.loop.call_soon_threadsafe(block)
            stream = server.asynchronous(generate())
            stream.close()
            block.release()
            await end_of(stream)

        run(scenario)
        assert begun == []

    def test_one_that_takes_too_long_to_close_may_be_cancelled_in_that(self) -> None:
        seen: list[str] = []

        async def generate() -> AsyncGenerator[Any, None]:
            try:
                while True:
                    yield FILLING
            finally:
                seen.append("closing")
                try:
                    await asyncio.Event().wait()
                finally:
                    seen.append("cancelled")

        async def scenario(server: Server) -> None:
            stream = server.asynchronous(generate())
            await stream.take()
            stream.close()
            await eventually(lambda: seen == ["closing"])
            server.agent.loop.call_soon_threadsafe(server.task.cancel)
            await end_of(stream)

        run(scenario)
        assert seen == ["closing", "cancelled"]

    def test_it_has_ended_when_it_is_closed_and_not_before(self) -> None:
        closing, proceed = threading.Event(), asyncio.Event()

        async def generate() -> AsyncGenerator[Any, None]:
            try:
                while True:
                    yield FILLING
            finally:
                closing.set()
                await proceed.wait()

        async def scenario(server: Server) -> None:
            stream = server.asynchronous(generate())
            await stream.take()
            stream.close()
            await eventually(closing.is_set)
            await asyncio.sleep(0.05)
            assert not stream._ended
            server.agent.loop.call_soon_threadsafe(proceed.set)
            await eventually(server.task.done)
            assert stream._ended

        run(scenario)


def count_plainly(far: list[int], length: int) -> Iterator[Any]:
    for number in range(length):
        far.append(number)
        yield [number, FILLING]


async def count_asynchronously(far: list[int], length: int) -> AsyncGenerator[Any, None]:
    for number in range(length):
        far.append(number)
        yield [number, FILLING]


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
class TestTheBuffer:
    @staticmethod
    def begin(server: Server, kind: str, far: list[int], length: int) -> EventStream:
        source: Any = (count_plainly if kind == "plain" else count_asynchronously)(far, length)
        stream: EventStream = getattr(server, kind)(source)
        return stream

    def test_a_generator_runs_ahead_by_the_capacity_and_no_further(self, kind: str) -> None:
        far: list[int] = []

        async def scenario(server: Server) -> None:
            stream = self.begin(server, kind, far, 10_000)
            for rounds in range(1, 20):
                await eventually(lambda: is_paused(stream))
                await asyncio.sleep(0.01)
                assert 8 * rounds < len(far) <= 10 * rounds
                await stream.take()
            stream.close()
            await end_of(stream)

        run(scenario)

    def test_no_event_is_lost_or_out_of_order_whoever_is_the_faster(self, kind: str) -> None:
        async def scenario(server: Server) -> None:
            streams = [self.begin(server, kind, [], 2000) for _ in range(3)]
            for numbers in await asyncio.gather(*map(take_all, streams)):
                assert [number for number, _ in numbers] == list(range(2000))
            assert server.errors == []

        run(scenario, threads=3)

    def test_the_end_is_there_with_the_last_events_where_all_are_ready(self, kind: str) -> None:
        async def scenario(server: Server) -> None:
            stream = self.begin(server, kind, [], 3)
            await end_of(stream)
            assert not stream.ended
            _, count = await stream.take()
            assert (count, stream.ended) == (3, True)
            assert await stream.take() == (b"", 0)

        run(scenario)

    def test_who_takes_learns_of_a_close(self, kind: str) -> None:
        async def scenario(server: Server) -> None:
            block = Block()
            server.pool.submit(block)
            server.agent.loop.call_soon_threadsafe(block)
            stream = self.begin(server, kind, [], 3)
            taking = asyncio.ensure_future(stream.take())
            await asyncio.sleep(0.05)
            stream.close()
            stream.close()
            assert await taking == (b"", 0)
            block.release()

        run(scenario)


def of_plain_function(generate: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda payload: generate()


def of_coroutine(generate: Callable[[], Any]) -> Callable[[Any], Any]:
    async def handler(payload: Any) -> Any:
        await asyncio.sleep(0)
        return generate()

    return handler


def of_coroutine_without_await(generate: Callable[[], Any]) -> Callable[[Any], Any]:
    async def handler(payload: Any) -> Any:
        return generate()

    return handler


class TestReturnedGenerators:
    """By every kind of function, and where they run then."""

    @pytest.fixture
    def app(self) -> BedrockAgentCoreApp:
        return BedrockAgentCoreApp()

    @pytest.mark.parametrize("returned", [of_plain_function, of_coroutine, of_coroutine_without_await])
    def test_a_plain_one_runs_in_one_thread_of_the_pool(
        self, app: BedrockAgentCoreApp, returned: Callable[[Callable[[], Any]], Any]
    ) -> None:
        def generate() -> Iterator[str]:
            for _ in range(20):
                time.sleep(0.001)
                yield threading.current_thread().name

        app.entrypoint(returned(generate))
        with TestClient(app=app) as client:
            threads = set(events(client.post("/invocations", json={})))
        assert len(threads) == 1
        assert threads.pop().startswith("agentcore-sync")

    @pytest.mark.parametrize("kind", ["function", "generator function"])
    def test_the_code_of_a_plain_function_and_of_its_generator_run_in_the_same_thread(
        self, app: BedrockAgentCoreApp, kind: str
    ) -> None:
        threads: list[int] = []

        def generate() -> Iterator[int]:
            for number in range(3):
                threads.append(threading.get_ident())
                yield number

        @app.entrypoint
        def handler(payload: Any) -> Any:
            threads.append(threading.get_ident())
            return generate()

        with TestClient(app=app) as client:
            for _ in range(5):
                threads.clear()
                assert events(client.post("/invocations", json={})) == [0, 1, 2]
                assert len(set(threads)) == 1

    @pytest.mark.parametrize("returned", [of_plain_function, of_coroutine, of_coroutine_without_await])
    def test_an_async_one_runs_on_the_agents_loop(
        self, app: BedrockAgentCoreApp, returned: Callable[[Callable[[], Any]], Any]
    ) -> None:
        loops: list[object] = []

        async def generate() -> AsyncGenerator[int, None]:
            for number in range(3):
                loops.append(asyncio.get_running_loop())
                yield number

        app.entrypoint(returned(generate))
        with TestClient(app=app) as client:
            assert events(client.post("/invocations", json={})) == [0, 1, 2]
        assert loops == [app.agent.loop.loop] * 3

    def test_an_async_one_that_a_coroutine_returned_runs_in_the_task_of_that_coroutine(
        self, app: BedrockAgentCoreApp
    ) -> None:
        tasks: list[object] = []

        async def generate() -> AsyncGenerator[int, None]:
            for number in range(3):
                tasks.append(asyncio.current_task())
                yield number

        @app.entrypoint
        async def handler(payload: Any) -> Any:
            tasks.append(asyncio.current_task())
            source = generate()
            await anext(source)
            return source

        with TestClient(app=app) as client:
            assert events(client.post("/invocations", json={})) == [1, 2]
        assert len(tasks) == 4
        assert len(set(tasks)) == 1


def test_every_event_stream_that_is_left_open_ends_with_its_app() -> None:
    """Nothing keeps the threads of generators whose clients are gone."""
    app = BedrockAgentCoreApp()
    begun, closed = threading.Event(), threading.Event()

    @app.entrypoint
    async def handler(payload: Any) -> AsyncGenerator[int, None]:
        begun.set()
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    with TestClient(app=app) as client:
        begin = partial(client.post, "/invocations", json={})
        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        assert begun.wait(PATIENCE)
    assert closed.wait(PATIENCE)
    thread.join(PATIENCE)


def is_done(stream: EventStream) -> bool:
    return stream.is_done


class TestWaking:
    def test_who_waits_for_events_is_woken_without_any(self) -> None:
        async def scenario(server: Server) -> None:
            stream = server.asynchronous(never())
            taking = asyncio.create_task(stream.take())
            await asyncio.sleep(0)
            stream.wake()
            assert await taking == (b"", 0)
            assert not is_done(stream)
            stream.close()
            assert is_done(stream)
            assert await stream.take() == (b"", 0)

        run(scenario)

    def test_who_does_not_wait_yet_is_woken_once(self) -> None:
        async def scenario(server: Server) -> None:
            stream = server.asynchronous(never())
            stream.wake()
            assert await stream.take() == (b"", 0)
            taking = asyncio.create_task(stream.take())
            _, waiting = await asyncio.wait({taking}, timeout=0.05)
            assert waiting
            stream.close()
            assert await taking == (b"", 0)

        run(scenario)

    def test_what_comes_right_after_is_not_taken_for_the_end(self) -> None:
        """The generator's side goes on in another thread, while who was woken looks whether the stream is done."""

        async def scenario(server: Server) -> None:
            gate = threading.Event()

            def generate() -> Generator[Any, Any, Any]:
                gate.wait(PATIENCE)
                yield "last"

            stream = server.plain(generate())
            stream.wake()
            assert await stream.take() == (b"", 0)
            gate.set()
            await eventually(lambda: stream.is_over)
            assert not is_done(stream)
            assert await stream.take() == (b'data: "last"\n\n', 1)
            assert is_done(stream)

        run(scenario)

    def test_events_come_before_the_waking(self) -> None:
        async def scenario(server: Server) -> None:
            async def generate() -> AsyncGenerator[Any, None]:
                yield 1
                await asyncio.Event().wait()

            stream = server.asynchronous(generate())
            await eventually(lambda: stream._documents)
            stream.wake()
            assert await stream.take() == (b"data: 1\n\n", 1)
            stream.close()

        run(scenario)


class Interleaving:
    """Has the threads that use it take turns anywhere in the code of streams, between any two instructions."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and self._chance.random() < 0.05:
            time.sleep(0)  # which passes the interpreter's lock on
        return self._step


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
@pytest.mark.parametrize("seed", range(2))
def test_no_event_and_no_wake_up_is_lost_wherever_the_two_sides_take_turns(kind: str, seed: int) -> None:
    interleaving = Interleaving(seed)

    async def scenario(server: Server) -> None:
        server.agent.loop.call_soon_threadsafe(sys.settrace, interleaving)
        for round_ in range(30):
            capacity, length = (1, 50, CAPACITY)[round_ % 3], 60
            if kind == "plain":
                plain = PlainEventStream(count_plainly([], length), server.callbacks, capacity, server.errors.append)
                server.pool.submit(partial(interleaved, partial(plain.iterate, server.pool)))
                stream: EventStream = plain
            else:
                numbers = count_asynchronously([], length)
                stream = asynchronous = AsyncEventStream(numbers, server.callbacks, capacity, server.errors.append)
                server.agent.loop.spawn(asynchronous.iterate(), copy_context(), "stream")
            async with asyncio.timeout(PATIENCE):
                if round_ % 5 == 4:
                    await stream.take()
                    stream.close()
                else:
                    assert len(await take_all(stream)) == length
                await end_of(stream)
        server.agent.loop.call_soon_threadsafe(sys.settrace, None)

    def interleaved(iterate: Callable[[], None]) -> None:
        sys.settrace(interleaving)
        try:
            iterate()
        finally:
            sys.settrace(None)

    before = sys.gettrace()
    sys.settrace(interleaving)
    try:
        run(scenario)
    finally:
        sys.settrace(before)


def test_an_inline_stream_whose_sender_is_cancelled_before_it_begins_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", "inline")
    app = BedrockAgentCoreApp()
    closed = threading.Event()

    async def generate() -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield "x" * 100_000
        finally:
            closed.set()

    def cancel_senders() -> None:
        tasks = asyncio.all_tasks()
        senders = [task for task in tasks if getattr(task.get_coro(), "__qualname__", "") == "Answer._send_events"]
        assert len(senders) == 1
        senders[0].cancel()

    @app.entrypoint
    async def handler(payload: Any) -> Any:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(cancel_senders)
        return generate()

    async def main() -> None:
        scope: Any = {
            "type": "http",
            "method": "POST",
            "path": "/invocations",
            "raw_path": b"/invocations",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        sent: list[Any] = []

        async def receive() -> Any:
            if receive_once:
                return receive_once.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        receive_once = [{"type": "http.request", "body": b"{}", "more_body": False}]
        serving = asyncio.ensure_future(app(scope, receive, send))
        _, waiting = await asyncio.wait({serving}, timeout=PATIENCE)
        assert not waiting
        assert closed.is_set()
        assert sent == []

    asyncio.run(main())
