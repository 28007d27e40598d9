"""Habits of agents, each in its smallest form: ``python -m tests.integration.agents.habits NAME PORT`` serves one.

The name is a handler's below. Nothing but the import of the runtime would differ on the official SDK.
"""

import asyncio
import contextvars
import json
import multiprocessing
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import anyio
import httpx
import nest_asyncio  # type: ignore[import-untyped]
from litestar_agentcore import BedrockAgentCoreApp
from opentelemetry import trace

app = BedrockAgentCoreApp()

DO_NOTHING = "nothing"

kept: set[Any] = set()
"""Tasks that nothing else refers to."""


def note(*what: Any) -> None:
    """Leave word in the log."""
    app.logger.info("noted %s", json.dumps(what))


# -- Kept at module level ----------------------------------------------------------------------------------------------

lock = asyncio.Lock()
semaphore = asyncio.Semaphore(1)
event = asyncio.Event()
condition = asyncio.Condition()
queue: asyncio.Queue[int] = asyncio.Queue(1)
http_client = httpx.AsyncClient(trust_env=False)
connection: list[Any] = []

arrived: list[int] = []


async def module_lock(payload: int) -> int:
    async with lock:
        time.sleep(0.3)
        await asyncio.sleep(0)
    return payload


async def module_semaphore(payload: int) -> int:
    async with semaphore:
        time.sleep(0.3)
        await asyncio.sleep(0)
    return payload


async def module_event(payload: int) -> int:
    time.sleep(0.2)
    if payload == 3:
        event.set()
    await event.wait()
    return payload


async def module_condition(payload: int) -> int:
    async with condition:
        time.sleep(0.2)
        arrived.append(payload)
        condition.notify_all()
        await condition.wait_for(lambda: len(arrived) >= 4)
    return payload


async def module_queue(payload: int) -> int:
    """The odd put, the even take."""
    time.sleep(0.2)
    if payload % 2:
        await queue.put(payload)
        return payload
    return await queue.get()


async def module_http_client(url: str) -> int:
    time.sleep(0.05)
    response = await http_client.get(url)
    time.sleep(0.05)
    return response.status_code


async def module_connection(payload: dict[str, int]) -> str:
    async with lock:
        if not connection:
            connection.extend(await asyncio.open_connection("127.0.0.1", payload["port"]))
        time.sleep(0.1)
        reader, writer = connection
        writer.write(f"{payload['number']}\n".encode())
        await writer.drain()
        answer: bytes = await reader.readline()
    return answer.decode().strip()


async def module_subprocess(text: str) -> str:
    """As servers of tools are spoken with."""
    async with lock:
        if not connection:
            pipe = asyncio.subprocess.PIPE
            connection.append(await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe))
        time.sleep(0.1)
        connection[0].stdin.write(f"{text}\n".encode())
        await connection[0].stdin.drain()
        answer: bytes = await connection[0].stdout.readline()
    return answer.decode().strip()


# -- Streams that a task feeds -----------------------------------------------------------------------------------------


class StreamingQueue:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[int | None] = asyncio.Queue()

    async def put(self, item: int) -> None:
        await self._queue.put(item)

    async def finish(self) -> None:
        await self._queue.put(None)

    async def stream(self) -> AsyncIterator[int]:
        while (item := await self._queue.get()) is not None:
            yield item


async def feed(events: StreamingQueue) -> None:
    time.sleep(0.5)
    for number in range(3):
        await events.put(number)
        time.sleep(0.02)
    await events.finish()


async def streaming_queue(payload: Any) -> Any:
    events = StreamingQueue()
    kept.add(asyncio.create_task(feed(events)))
    return events.stream()


async def streaming_queue_after_an_await(payload: Any) -> Any:
    await asyncio.sleep(0.05)
    events = StreamingQueue()
    kept.add(asyncio.create_task(feed(events)))
    return events.stream()


async def streaming_queue_and_its_task(payload: Any) -> Any:
    events = StreamingQueue()
    task = asyncio.create_task(feed(events))

    async def stream() -> AsyncIterator[int]:
        async for item in events.stream():
            yield item
        await task

    return stream()


async def blocks_between_yields(payload: Any) -> AsyncIterator[int]:
    for number in range(4):
        yield number
        time.sleep(0.4)


# -- What is open across yields ----------------------------------------------------------------------------------------

tracer = trace.get_tracer(__name__)
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def count(seconds: float = 0.01) -> AsyncIterator[int]:
    for number in range(4):
        yield number
        await asyncio.sleep(seconds)


async def under_a_cancel_scope(seconds: float) -> AsyncIterator[int]:
    with anyio.CancelScope():
        async for number in count(seconds):
            yield number


async def in_a_task_group(seconds: float) -> AsyncIterator[int]:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
        async for number in count(seconds):
            yield number


async def before_a_timeout(seconds: float) -> AsyncIterator[int]:
    async with asyncio.timeout(2 if seconds < 2 else 0.3):
        async for number in count(seconds):
            yield number


async def in_a_span(seconds: float) -> AsyncIterator[int]:
    with tracer.start_as_current_span("answer"):
        async for number in count(seconds):
            yield number


async def with_a_variable_set(seconds: float) -> AsyncIterator[int]:
    token = variable.set("on")
    try:
        async for number in count(seconds):
            yield number
    finally:
        variable.reset(token)


OPEN = {
    "cancel scope": under_a_cancel_scope,
    "task group": in_a_task_group,
    "timeout": before_a_timeout,
    "span": in_a_span,
    "variable": with_a_variable_set,
}


async def first_event_pulled(payload: dict[str, Any]) -> Any:
    events = OPEN[payload["open"]](payload.get("seconds", 0.01))
    await anext(events)
    return events


async def leave(awaits: bool) -> AsyncIterator[Any]:
    """Tell how the leaving of the client shows, at an await or at a yield."""
    task = asyncio.current_task()
    try:
        while True:
            yield "x" * 100_000
            await asyncio.sleep(60 if awaits else 0)
    except BaseException as error:
        note(type(error).__name__)
        raise
    finally:
        await asyncio.sleep(0.1)
        note("tidied up", asyncio.current_task() is task)


async def left_at_an_await(payload: Any) -> AsyncIterator[Any]:
    async for chunk in leave(awaits=True):
        yield chunk


async def returned_and_left_at_an_await(payload: Any) -> Any:
    await asyncio.sleep(0)
    return leave(awaits=True)


async def returned_and_left_at_a_yield(payload: Any) -> Any:
    await asyncio.sleep(0)
    return leave(awaits=False)


async def left_while_it_works(payload: dict[str, float]) -> None:
    await asyncio.sleep(payload["seconds"])
    note("worked")


# -- WebSockets that are not waited for --------------------------------------------------------------------------------


async def poll(websocket: Any, receive: Callable[[], Awaitable[str]]) -> None:
    await websocket.accept()
    received: list[str] = []
    while not received or received[-1] != "the end":
        try:
            received.append(await receive())
        except TimeoutError:
            continue
    await websocket.send_text(json.dumps(received))


async def socket_polled_with_wait_for(websocket: Any, context: Any) -> None:
    async def receive() -> str:
        text: str = await asyncio.wait_for(websocket.receive_text(), 0.002)
        return text

    await poll(websocket, receive)


async def socket_polled_with_timeout(websocket: Any, context: Any) -> None:
    async def receive() -> str:
        async with asyncio.timeout(0.002):
            text: str = await websocket.receive_text()
            return text

    await poll(websocket, receive)


async def socket_polled_with_a_cancel_scope(websocket: Any, context: Any) -> None:
    async def receive() -> str:
        with anyio.fail_after(0.002):
            text: str = await websocket.receive_text()
            return text

    await poll(websocket, receive)


async def socket_whose_sends_are_given_up(websocket: Any, context: Any) -> None:
    await websocket.accept()
    sent = []
    for number in range(150):
        task = asyncio.create_task(websocket.send_text(f"{number} " + "x" * 200_000))
        if number % 3:
            await asyncio.sleep(0.001 * (number % 3 - 1))
            task.cancel()
        if not (await asyncio.wait([task]))[0].pop().cancelled():
            sent.append(number)
    await websocket.send_text(json.dumps(sent))


async def socket_that_does_not_listen(websocket: Any, context: Any) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await asyncio.sleep(60)


async def socket_that_is_idle(websocket: Any, context: Any) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.receive_text()


# -- Plain generators --------------------------------------------------------------------------------------------------


def rows_of_sqlite(rows: int) -> Iterator[Any]:
    database = sqlite3.connect(":memory:")
    try:
        database.execute("create table events (number integer, text text)")
        database.executemany("insert into events values (?, ?)", ((number, "x" * 4096) for number in range(rows)))
        for number, _ in database.execute("select number, text from events order by number"):
            yield number
    finally:
        database.close()


def rows_under_a_lock(rows: int) -> Iterator[Any]:
    with threading.RLock():
        yield from range(rows)


def rows_of_the_thread(rows: int) -> Iterator[Any]:
    local = threading.local()
    local.number = 0
    while local.number < rows:
        yield local.number
        local.number += 1


KEEPING = {"sqlite": rows_of_sqlite, "lock": rows_under_a_lock, "local": rows_of_the_thread}


def events_of_a_thread(payload: Any) -> Iterator[Any]:
    """Each event tells its thread, and so does the end."""
    try:
        for number in KEEPING[payload["keeps"]](payload["rows"]):
            yield [number, threading.get_ident(), "x" * 4096]
    finally:
        note("closed", threading.get_ident())


def plain_generator(payload: Any) -> Iterator[Any]:
    yield from events_of_a_thread(payload)


def plain_function_returning_it(payload: Any) -> Any:
    return "hello" if payload == DO_NOTHING else events_of_a_thread(payload)


async def coroutine_returning_it(payload: Any) -> Any:
    await asyncio.sleep(0)
    return events_of_a_thread(payload)


async def coroutine_without_await_returning_it(payload: Any) -> Any:
    return events_of_a_thread(payload)


# -- What ends or forks ------------------------------------------------------------------------------------------------


async def stops_its_loop(payload: str) -> Any:
    loop = asyncio.get_running_loop()
    if payload == "stop":
        loop.stop()
    else:
        await asyncio.sleep(1)
    return id(loop)


async def exit_with(error: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise error("out")


async def exits_in_a_task(payload: str) -> Any:
    errors = {"exit": SystemExit, "interrupt": KeyboardInterrupt}
    if payload in errors:
        kept.add(asyncio.create_task(exit_with(errors[payload])))
        await asyncio.sleep(0.1)
    elif payload.startswith("await "):
        await asyncio.create_task(exit_with(errors[payload.removeprefix("await ")]))
    else:
        await asyncio.sleep(1)
    return id(asyncio.get_running_loop())


class SlowToTellError(Exception):
    def __str__(self) -> str:
        time.sleep(0.8)
        return "at last"


async def slow_error(payload: Any) -> None:
    await asyncio.sleep(0)
    raise SlowToTellError


def plain_slow_error(payload: Any) -> None:
    raise SlowToTellError


async def slow_error_in_a_stream(payload: Any) -> AsyncIterator[int]:
    yield 0
    raise SlowToTellError


def plain_slow_error_in_a_stream(payload: Any) -> Iterator[int]:
    yield 0
    raise SlowToTellError


def fork_context() -> Any:
    return multiprocessing.get_context("fork")


def forks_a_process(payload: Any) -> int | None:
    child = fork_context().Process(target=time.sleep, args=(60,))
    child.start()
    try:
        time.sleep(0.3)
        child.terminate()
        child.join(3)
        exit_code: int | None = child.exitcode
        return exit_code
    finally:
        child.kill()


def forks_a_pool(payload: Any) -> str:
    pool = fork_context().Pool(2)
    processes = list(pool._pool)
    pool.map_async(time.sleep, [60] * 4, chunksize=1)
    time.sleep(0.3)
    ending = threading.Thread(target=pool.terminate, daemon=True)
    ending.start()
    ending.join(3)
    hangs = ending.is_alive()
    for process in processes:
        process.kill()
    return "it hangs" if hangs else "terminated"


def fork_or_reap(child: int) -> int:
    """Fork, and come back in both processes; or tell with what status a child has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else os.fork()


async def forks_and_comes_back(payload: int) -> int:
    await asyncio.sleep(0)
    return fork_or_reap(payload)


async def forks_and_comes_back_without_await(payload: int) -> int:
    return fork_or_reap(payload)


def forks_and_comes_back_plainly(payload: int) -> int:
    return fork_or_reap(payload)


async def forks_and_comes_back_in_another_thread(payload: int) -> int:
    return await asyncio.to_thread(fork_or_reap, payload)


async def forks_and_awaits(payload: int) -> int:
    child = fork_or_reap(payload)
    await asyncio.sleep(0)
    return child


async def forks_in_a_stream(payload: int) -> AsyncIterator[int]:
    yield fork_or_reap(payload)
    await asyncio.sleep(0.05)
    yield 0


def run_a_loop() -> None:
    if asyncio.run(inner()) != "inner":
        sys.exit(1)


async def forks_a_process_with_a_loop(payload: Any) -> int | None:
    child = fork_context().Process(target=run_a_loop)
    child.start()
    await asyncio.to_thread(child.join, 5)
    exit_code: int | None = child.exitcode
    child.kill()
    return exit_code


def record_a_span() -> None:
    with tracer.start_as_current_span("in the child"):
        pass
    time.sleep(5)


def forks_and_records(payload: Any) -> None:
    child = fork_context().Process(target=record_a_span)
    child.start()
    child.join()


# -- Calls from foreign threads ----------------------------------------------------------------------------------------


async def settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def foreign_thread(payload: str) -> float:
    """How many seconds it takes until the loop, which has nothing else to do for two, does what a thread asks of it."""
    loop = asyncio.get_running_loop()
    called: list[float] = []
    done = loop.create_future()
    waiting = loop.create_task(asyncio.sleep(60))
    waiting.add_done_callback(lambda _: None if done.done() else done.set_result(None))

    def call() -> None:
        time.sleep(0.2)
        called.append(time.monotonic())
        match payload:
            case "future.set_result":
                done.set_result(None)
            case "loop.call_soon":
                loop.call_soon(done.set_result, None)
            case "loop.create_task":
                kept.add(loop.create_task(settle(done)))
            case "loop.call_later":
                loop.call_later(0.05, done.set_result, None)
            case "task.cancel":
                waiting.cancel()

    timer = loop.call_later(2, note, "the next timer")
    threading.Thread(target=call).start()
    await done
    waiting.cancel()
    timer.cancel()
    return time.monotonic() - called[0]


async def foreign_threads_in_a_hurry(payload: Any) -> int:
    """How many of 4,000 calls from eight threads arrive."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(4000)]

    def call(of: list["asyncio.Future[None]"]) -> None:
        for number, future in enumerate(of):
            match number % 3:
                case 0:
                    future.set_result(None)
                case 1:
                    loop.call_soon(future.set_result, None)
                case 2:
                    kept.add(loop.create_task(settle(future)))

    threads = [threading.Thread(target=call, args=(futures[first::8],)) for first in range(8)]
    for thread in threads:
        thread.start()
    done, _ = await asyncio.wait(futures, timeout=8)
    return len(done)


# -- nest_asyncio ------------------------------------------------------------------------------------------------------


async def inner() -> str:
    await asyncio.sleep(0.05)
    return "inner"


async def nested(payload: Any) -> list[str]:
    nest_asyncio.apply()
    await asyncio.sleep(0)
    return [
        asyncio.run(inner()),
        asyncio.get_event_loop().run_until_complete(inner()),
        await inner(),
    ]


async def nested_from_the_start(payload: Any) -> list[str]:
    await asyncio.sleep(0)
    return [asyncio.get_event_loop().run_until_complete(inner()), await inner()]


async def nested_without_await(payload: Any) -> Any:
    if payload == DO_NOTHING:
        return payload
    nest_asyncio.apply()
    return asyncio.get_event_loop().run_until_complete(inner())


# -- Tasks that outlive their answer -----------------------------------------------------------------------------------


@app.async_task
async def research(seconds: float) -> None:
    await asyncio.sleep(seconds)
    note("researched")


async def gather_research(seconds: float) -> None:
    await asyncio.gather(research(seconds), research(seconds))


def create(coroutine: Coroutine[Any, Any, None]) -> None:
    kept.add(asyncio.create_task(coroutine))


def begin_research(payload: dict[str, Any]) -> None:
    if payload.get("busy"):
        asyncio.get_running_loop().call_soon(time.sleep, 0.3)
    create(research(payload.get("seconds", 1)))


async def begins_a_task(payload: dict[str, Any]) -> str:
    await asyncio.sleep(0)
    begin_research(payload)
    return "begun"


async def begins_a_task_without_await(payload: dict[str, Any]) -> str:
    begin_research(payload)
    return "begun"


async def begins_a_task_in_a_stream(payload: dict[str, Any]) -> AsyncIterator[str]:
    yield "begun"
    await asyncio.sleep(0)
    begin_research(payload)


async def begins_nothing(payload: Any) -> str:
    await asyncio.sleep(0)
    kept.add(research(60))
    return "not begun"


# -- What blocks -----------------------------------------------------------------------------------------------------


async def blocks_without_await(payload: float) -> str:
    time.sleep(payload)
    return "done"


async def block(seconds: float) -> str:
    await asyncio.sleep(0)
    time.sleep(seconds)
    return "blocked"


def plain_function_that_may_block_the_loop(payload: float) -> Any:
    return block(payload) if payload else "hello"


def main(name: str, port: int) -> None:
    register = app.websocket if name.startswith("socket_") else app.entrypoint
    register(globals()[name])
    if name == "nested_from_the_start":
        nest_asyncio.apply()
    app.run(port=port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
