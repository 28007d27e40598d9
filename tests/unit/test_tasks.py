"""Background tasks: what counts as one, and what is told of it."""

import asyncio
import functools
import inspect
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreApp
from litestar_agentcore.runtime.agent_loop import AgentEventLoop

from tests.unit.blocking import PATIENCE, Block, eventually
from tests.unit.conftest import Client, LogLines


def active(app: BedrockAgentCoreApp) -> int:
    count: int = app.get_async_task_info()["active_count"]
    return count


def test_an_async_task_keeps_its_name_signature_and_docstring(app: BedrockAgentCoreApp) -> None:
    async def research(prompt: str, *, depth: int = 1) -> list[str]:
        """Look it up."""
        return [prompt] * depth

    wrapped = app.async_task(research)

    assert wrapped.__name__ == "research"
    assert wrapped.__doc__ == "Look it up."
    assert inspect.signature(wrapped) == inspect.signature(research)
    assert inspect.iscoroutinefunction(wrapped)
    assert asyncio.run(wrapped("why", depth=2)) == ["why", "why"]


def test_an_async_task_counts_as_active_while_it_runs(app: BedrockAgentCoreApp) -> None:
    @app.async_task
    async def research() -> list[str]:
        return [job["name"] for job in app.get_async_task_info()["running_jobs"]]

    assert active(app) == 0
    assert asyncio.run(research()) == ["research"]
    assert active(app) == 0


def test_each_call_of_an_async_task_counts(app: BedrockAgentCoreApp) -> None:
    async def main() -> int:
        barrier = asyncio.Barrier(3)

        @app.async_task
        async def research() -> int:
            await barrier.wait()
            return active(app)

        return max(await asyncio.gather(research(), research(), research()))

    assert asyncio.run(main()) == 3
    assert active(app) == 0


def test_an_async_task_of_an_async_task_counts_as_two(app: BedrockAgentCoreApp) -> None:
    @app.async_task
    async def inner() -> int:
        return active(app)

    @app.async_task
    async def outer() -> int:
        return await inner()

    assert asyncio.run(outer()) == 2


def test_a_method_may_be_an_async_task(app: BedrockAgentCoreApp) -> None:
    class Agent:
        @app.async_task
        async def research(self, prompt: str) -> tuple[str, int]:
            return prompt, active(app)

    assert asyncio.run(Agent().research("why")) == ("why", 1)


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
def test_what_an_async_task_raises_reaches_its_caller_and_ends_it(
    app: BedrockAgentCoreApp, error: BaseException
) -> None:
    @app.async_task
    async def research() -> None:
        raise error

    async def main() -> BaseException | None:
        try:
            await research()
        except BaseException as raised:
            return raised
        return None

    assert asyncio.run(main()) is error
    assert active(app) == 0


def test_a_cancelled_async_task_has_ended(app: BedrockAgentCoreApp) -> None:
    async def main() -> None:
        began = asyncio.Event()

        @app.async_task
        async def research() -> None:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(research())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert active(app) == 0


def plain() -> None: ...


def generator() -> Iterator[None]:
    yield


async def async_generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "function", [plain, generator, async_generator, functools.partial(plain), type, len, "research", None]
)
def test_an_async_task_that_is_no_async_function_is_a_value_error(app: BedrockAgentCoreApp, function: Any) -> None:
    with pytest.raises(ValueError):
        app.async_task(function)


def test_ping_says_busy_while_a_task_goes_on_after_the_answer(app: BedrockAgentCoreApp, client: Client) -> None:
    proceed, ended = asyncio.Event(), threading.Event()

    @app.async_task
    async def research() -> None:
        await proceed.wait()

    @app.entrypoint
    async def handler(payload: str) -> str:
        if payload == "proceed":
            proceed.set()
        else:
            asyncio.create_task(research()).add_done_callback(lambda _: ended.set())
            await asyncio.sleep(0)
        return "answered"

    assert client.post("/invocations", json="begin").json() == "answered"
    assert client.get("/ping").json()["status"] == "HealthyBusy"
    assert client.post("/invocations", json="proceed").json() == "answered"
    assert ended.wait(60)
    assert client.get("/ping").json()["status"] == "Healthy"


def test_without_tasks_the_task_info_is_empty(app: BedrockAgentCoreApp) -> None:
    assert app.get_async_task_info() == {"active_count": 0, "running_jobs": []}


def test_the_task_info_has_the_name_and_the_duration_in_seconds_of_each_task(
    app: BedrockAgentCoreApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("litestar_agentcore.runtime.tasks.time.monotonic", lambda: now)
    app.add_async_task("first")
    now = 102.5
    app.add_async_task("second", {"prompt": "why"})
    now = 103.0

    assert app.get_async_task_info() == {
        "active_count": 2,
        "running_jobs": [{"name": "first", "duration": 3.0}, {"name": "second", "duration": 0.5}],
    }


def test_a_task_is_active_until_it_is_completed(app: BedrockAgentCoreApp, log: LogLines) -> None:
    task_id = app.add_async_task("work", metadata={"prompt": "why"})
    assert type(task_id) is int
    assert active(app) == 1
    assert app.complete_async_task(task_id) is True
    assert active(app) == 0
    assert log.lines == []


def test_completing_an_unknown_task_returns_false_and_logs_a_warning(app: BedrockAgentCoreApp, log: LogLines) -> None:
    assert app.complete_async_task(4711) is False
    (line,) = log.lines
    assert line["level"] == "WARNING"
    assert "4711" in line["message"]


def test_completing_a_task_again_returns_false_and_ends_no_other(app: BedrockAgentCoreApp, log: LogLines) -> None:
    task_id = app.add_async_task("first")
    app.complete_async_task(task_id)
    app.add_async_task("second")

    assert app.complete_async_task(task_id) is False
    assert active(app) == 1
    assert [line["level"] for line in log.lines] == ["WARNING"]


def test_tasks_are_added_and_completed_from_many_threads(app: BedrockAgentCoreApp) -> None:
    threads, each = 16, 50
    barrier = threading.Barrier(threads, timeout=60)

    def add(number: int) -> list[int]:
        barrier.wait()
        return [app.add_async_task(f"task {number}") for _ in range(each)]

    def complete(ids: list[int]) -> list[bool]:
        barrier.wait()
        return [app.complete_async_task(task_id) for task_id in ids]

    with ThreadPoolExecutor(threads) as pool:
        ids = list(pool.map(add, range(threads)))
        assert len({task_id for some in ids for task_id in some}) == threads * each
        assert active(app) == threads * each
        assert all(all(completed) for completed in pool.map(complete, ids))
    assert app.get_async_task_info() == {"active_count": 0, "running_jobs": []}


def test_a_handler_in_a_thread_adds_and_completes_tasks(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: int | None) -> Any:
        return app.add_async_task("work") if payload is None else app.complete_async_task(payload)

    task_id = client.post("/invocations", content=b"null").json()
    assert client.get("/ping").json()["status"] == "HealthyBusy"
    assert client.post("/invocations", json=task_id).json() is True
    assert client.get("/ping").json()["status"] == "Healthy"


def test_the_tasks_of_one_app_are_not_those_of_another(app: BedrockAgentCoreApp) -> None:
    other = BedrockAgentCoreApp()
    task_id = app.add_async_task("work")
    assert active(other) == 0
    assert other.complete_async_task(task_id) is False
    assert active(app) == 1


def finished(app: BedrockAgentCoreApp) -> dict[str, float]:
    """How many tasks have ended, by outcome."""
    body, _ = app.agent.telemetry.metrics.expose("")
    sample = r'^agentcore_async_tasks_total\{name="\w+",outcome="(\w+)"\} (\S+)$'
    return {outcome: float(count) for outcome, count in re.findall(sample, body.decode(), re.MULTILINE)}


Research = Callable[[], Coroutine[Any, Any, None]]
Making = Callable[[Research], Coroutine[Any, Any, None]]
"""Has some research done, in one of the ways in which handlers do that, and waits for it."""


async def with_create_task(research: Research) -> None:
    await asyncio.create_task(research())


async def with_ensure_future(research: Research) -> None:
    await asyncio.ensure_future(research())


async def with_gather(research: Research) -> None:
    await asyncio.gather(research())


async def with_a_task_group(research: Research) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(research())


async def with_wait_for(research: Research) -> None:
    await asyncio.wait_for(research(), PATIENCE)


async def with_shield(research: Research) -> None:
    await asyncio.shield(research())


async def with_wait(research: Research) -> None:
    await asyncio.wait({asyncio.create_task(research())})


async def with_as_completed(research: Research) -> None:
    for next_one in asyncio.as_completed([research()]):
        await next_one


async def from_a_thread(research: Research) -> None:
    loop = asyncio.get_running_loop()
    task = await asyncio.to_thread(lambda: loop.create_task(research()))
    await task


async def from_a_thread_that_runs_no_task(research: Research) -> None:
    loop = asyncio.get_running_loop()
    future = await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(research(), loop))
    await asyncio.wrap_future(future)


async def with_an_await(research: Research) -> None:
    await research()


WAYS: list[Making] = [
    with_create_task,
    with_ensure_future,
    with_gather,
    with_a_task_group,
    with_wait_for,
    with_shield,
    with_wait,
    with_as_completed,
    from_a_thread,
    from_a_thread_that_runs_no_task,
    with_an_await,
]
MAKING_A_TASK = [way for way in WAYS if way not in {with_an_await, with_wait_for}]  # wait_for(): until Python 3.11


class TestTasksOfTheAgentsLoop:
    """They count from the moment when the asyncio task is made."""

    @pytest.fixture
    def loop(self, app: BedrockAgentCoreApp) -> AgentEventLoop:
        return app.agent.loop.loop

    @staticmethod
    def run(app: BedrockAgentCoreApp, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, app.agent.loop.loop).result(PATIENCE)

    @pytest.mark.parametrize("making", WAYS)
    def test_one_counts_once_however_it_is_made(self, app: BedrockAgentCoreApp, making: Making) -> None:
        seen: list[int] = []

        @app.async_task
        async def research() -> None:
            seen.append(active(app))
            await asyncio.sleep(0.001)
            seen.append(active(app))

        for _ in range(5):
            self.run(app, making(research))
        assert seen == [1] * 10
        eventually(lambda: active(app) == 0)
        assert finished(app) == {"completed": 5}

    @pytest.mark.parametrize("making", MAKING_A_TASK)
    def test_one_counts_before_its_first_step(self, app: BedrockAgentCoreApp, making: Making) -> None:
        begun: list[None] = []

        @app.async_task
        async def research() -> None:
            begun.append(None)

        async def watch() -> int:
            making_it = asyncio.ensure_future(making(research))
            highest = 0
            while not begun:
                highest = max(highest, active(app))
                await asyncio.sleep(0)
            await making_it
            return highest

        assert self.run(app, watch()) == 1

    def test_one_counts_at_once_on_the_thread_that_makes_it(
        self, app: BedrockAgentCoreApp, loop: AgentEventLoop
    ) -> None:
        block, begun = Block(), threading.Event()

        @app.async_task
        async def research() -> None:
            begun.set()

        loop.call_soon_threadsafe(block)
        block.wait_until_entered()
        loop.create_task(research())
        assert (active(app), begun.is_set()) == (1, False)
        block.release()
        eventually(lambda: active(app) == 0)
        assert finished(app) == {"completed": 1}

    def test_one_counts_before_anything_is_recorded_of_it(
        self, app: BedrockAgentCoreApp, loop: AgentEventLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first span of all loads the tracer, which takes its time."""
        seen: list[int] = []
        telemetry = type(app.agent.telemetry)
        make = telemetry.task

        def slowly(self: Any, name: str) -> Any:
            seen.append(active(app))
            time.sleep(0.1)
            return make(self, name)

        @app.async_task
        async def research() -> None:
            await asyncio.sleep(0)

        monkeypatch.setattr(telemetry, "task", slowly)
        loop.create_task(research())
        eventually(lambda: active(app) == 0)
        app.complete_async_task(app.add_async_task("by hand"))
        self.run(app, with_an_await(research))
        assert seen == [1, 1, 1]
        assert finished(app) == {"completed": 2}

    def test_one_that_another_thread_begins_at_once_counts_once(
        self, app: BedrockAgentCoreApp, loop: AgentEventLoop
    ) -> None:
        stop = threading.Event()

        @app.async_task
        async def research() -> None:
            pass

        async def turn() -> None:
            while not stop.is_set():
                await asyncio.sleep(0)

        def make(_: int) -> None:
            for _ in range(1000):
                loop.create_task(research())

        turning = asyncio.run_coroutine_threadsafe(turn(), loop)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(3) as threads:
                list(threads.map(make, range(3)))
            eventually(lambda: active(app) == 0)
        finally:
            sys.setswitchinterval(interval)
            stop.set()
        turning.result(PATIENCE)
        assert finished(app) == {"completed": 3000}

    def test_one_that_is_cancelled_before_its_first_step_has_ended(
        self, app: BedrockAgentCoreApp, loop: AgentEventLoop
    ) -> None:
        begun: list[None] = []

        @app.async_task
        async def research() -> None:
            begun.append(None)

        async def handler() -> int:
            tasks = [asyncio.create_task(research()) for _ in range(3)]
            for task in tasks:
                task.cancel()
            before = active(app)
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)
            return before

        assert self.run(app, handler()) == 3
        assert (active(app), begun, finished(app)) == (0, [], {"failed": 3})

    def test_a_coroutine_that_nobody_awaits_is_no_task(self, app: BedrockAgentCoreApp) -> None:
        @app.async_task
        async def research() -> None: ...

        async def handler() -> int:
            coroutine = research()
            await asyncio.sleep(0.01)
            counted = active(app)
            coroutine.close()
            return counted

        assert self.run(app, handler()) == 0
        assert finished(app) == {}

    def test_a_task_that_cannot_be_made_is_none(self, app: BedrockAgentCoreApp, loop: AgentEventLoop) -> None:
        @app.async_task
        async def research() -> None: ...

        def refuse(*_: Any, **__: Any) -> Any:
            raise LookupError("no more tasks today")

        async def handler() -> None:
            asyncio.get_running_loop().set_task_factory(refuse)
            coroutine = research()
            try:
                asyncio.create_task(coroutine)  # noqa: RUF006
            finally:
                asyncio.get_running_loop().set_task_factory(None)
                coroutine.close()

        with pytest.raises(LookupError, match="no more tasks today"):
            self.run(app, handler())
        assert active(app) == 0

    def test_one_within_another_counts_as_two(self, app: BedrockAgentCoreApp) -> None:
        @app.async_task
        async def inner() -> int:
            await asyncio.sleep(0)
            return active(app)

        @app.async_task
        async def outer() -> list[int]:
            return [active(app), await inner(), await asyncio.create_task(inner()), active(app)]

        async def handler() -> list[int]:
            return await asyncio.create_task(outer())

        assert self.run(app, handler()) == [1, 2, 2, 1]
        assert active(app) == 0

    @pytest.mark.parametrize(
        "eager",
        [
            False,
            pytest.param(
                True, marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
            ),
        ],
    )
    def test_one_counts_once_with_a_task_factory_of_the_authors(self, app: BedrockAgentCoreApp, eager: bool) -> None:
        """Error trackers set one that wraps each coroutine in another."""

        @app.async_task
        async def research(wait: float) -> int:
            counted = active(app)
            await asyncio.sleep(wait)
            return counted

        def wrapping(loop: Any, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
            async def wrapper() -> Any:
                return await coroutine

            return asyncio.Task(wrapper(), loop=loop, **options)

        async def handler() -> list[int]:
            factory: Any = asyncio.eager_task_factory if eager else wrapping  # type: ignore[attr-defined,unused-ignore]
            asyncio.get_running_loop().set_task_factory(factory)
            first = await asyncio.create_task(research(0.01))
            tasks = [asyncio.create_task(research(0.01)) for _ in range(3)]
            counted = active(app)
            await asyncio.gather(*tasks)
            await asyncio.sleep(0)
            return [first, counted, active(app)]

        assert self.run(app, handler()) == [1, 3, 0]
        assert finished(app) == {"completed": 4}

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    def test_one_that_an_eager_factory_ends_at_once_has_ended(self, app: BedrockAgentCoreApp) -> None:
        @app.async_task
        async def research() -> int:
            return active(app)

        async def handler() -> list[int]:
            factory: Any = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
            asyncio.get_running_loop().set_task_factory(factory)
            task = asyncio.create_task(research())
            return [active(app), await task]

        assert self.run(app, handler()) == [0, 1]
        assert finished(app) == {"completed": 1}

    @pytest.mark.parametrize("waits", [False, True], ids=["without an await", "with an await"])
    def test_ping_never_says_healthy_after_the_answer_of_a_handler_that_has_begun_one(
        self, app: BedrockAgentCoreApp, client: Client, waits: bool
    ) -> None:
        proceed = threading.Event()

        @app.async_task
        async def research() -> None:
            while not proceed.is_set():
                await asyncio.sleep(0.005)

        async def one_step(payload: Any) -> str:
            asyncio.create_task(research())  # noqa: RUF006
            return "begun"

        async def several_steps(payload: Any) -> str:
            await asyncio.sleep(0)
            return await one_step(payload)

        app.entrypoint(several_steps if waits else one_step)
        for _ in range(20):
            proceed.clear()
            assert client.post("/invocations", json={}).json() == "begun"
            assert client.get("/ping").json()["status"] == "HealthyBusy"
            proceed.set()
            eventually(lambda: active(app) == 0)
        assert finished(app) == {"completed": 20}

    def test_and_neither_while_the_loop_has_something_else_to_do_first(
        self, app: BedrockAgentCoreApp, client: Client
    ) -> None:
        block = Block()

        @app.async_task
        async def research() -> None: ...

        @app.entrypoint
        async def handler(payload: Any) -> str:
            asyncio.create_task(research())  # noqa: RUF006
            return "begun"

        app.agent.loop.loop.call_soon_threadsafe(block)
        block.wait_until_entered()
        assert client.post("/invocations", json={}).json() == "begun"
        assert client.get("/ping").json()["status"] == "HealthyBusy"
        block.release()
        eventually(lambda: active(app) == 0)
