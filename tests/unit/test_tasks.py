"""Background tasks: what counts as one, and what is told of it."""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreApp

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
