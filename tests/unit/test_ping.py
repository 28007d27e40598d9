"""``GET /ping`` and ``GET /ready``: what a platform reads."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp, PingStatus

from tests.unit.conftest import Client, LogLines


def status(client: Client) -> str:
    answer: str = client.get("/ping").json()["status"]
    return answer


async def async_busy() -> PingStatus:
    await asyncio.sleep(0)
    return PingStatus.HEALTHY_BUSY


async def async_busy_as_text() -> str:
    return "HealthyBusy"


BUSY_FUNCTIONS: list[Callable[[], Any]] = [
    lambda: PingStatus.HEALTHY_BUSY,
    lambda: "HealthyBusy",
    async_busy,
    async_busy_as_text,
    lambda: async_busy(),
]


def raises() -> Any:
    raise RuntimeError("broken")


async def async_raises() -> Any:
    raise RuntimeError("broken")


USELESS_FUNCTIONS: list[Callable[[], Any]] = [
    raises,
    async_raises,
    lambda: sys.exit("enough"),
    lambda: None,
    lambda: "Sick",
    lambda: "healthy",
    lambda: True,
    lambda: {"status": "Healthy"},
]


def test_ping_statuses_are_strings() -> None:
    assert isinstance(PingStatus.HEALTHY, str)
    assert [status.value for status in PingStatus] == ["Healthy", "HealthyBusy"]


def test_ping_answers_200_with_the_status_and_the_second_of_its_last_change(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    response = client.get("/ping")

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer.keys() == {"status", "time_of_last_update"}
    assert answer["status"] == "Healthy"
    assert type(answer["time_of_last_update"]) is int


def test_the_automatic_status_is_busy_while_any_task_is_active(app: BedrockAgentCoreApp, client: Client) -> None:
    first, second = app.add_async_task("first"), app.add_async_task("second")
    assert status(client) == "HealthyBusy"
    app.complete_async_task(first)
    assert status(client) == "HealthyBusy"
    app.complete_async_task(second)
    assert status(client) == "Healthy"


@pytest.mark.parametrize("function", BUSY_FUNCTIONS)
def test_a_custom_function_wins_over_the_automatic_status(
    app: BedrockAgentCoreApp, client: Client, function: Callable[[], Any]
) -> None:
    assert app.ping(function) is function
    assert status(client) == "HealthyBusy"
    assert app.get_current_ping_status() is PingStatus.HEALTHY_BUSY


def test_a_custom_function_may_say_healthy_while_tasks_are_active(app: BedrockAgentCoreApp, client: Client) -> None:
    app.ping(lambda: PingStatus.HEALTHY)
    app.add_async_task("work")
    assert status(client) == "Healthy"


@pytest.mark.parametrize("function", [lambda: PingStatus.HEALTHY_BUSY, async_busy, raises])
def test_a_forced_status_wins_over_a_custom_function_and_over_active_tasks(
    app: BedrockAgentCoreApp, client: Client, function: Callable[[], Any]
) -> None:
    app.ping(function)
    app.add_async_task("work")

    app.force_ping_status(PingStatus.HEALTHY)
    assert status(client) == "Healthy"
    assert app.get_current_ping_status() is PingStatus.HEALTHY

    app.clear_forced_ping_status()
    assert status(client) == "HealthyBusy"
    assert app.get_current_ping_status() is PingStatus.HEALTHY_BUSY


def test_the_current_status_follows_the_active_tasks(app: BedrockAgentCoreApp) -> None:
    assert app.get_current_ping_status() is PingStatus.HEALTHY
    app.add_async_task("work")
    assert app.get_current_ping_status() is PingStatus.HEALTHY_BUSY


@pytest.mark.parametrize("function", USELESS_FUNCTIONS)
def test_a_custom_function_that_raises_or_returns_nonsense_leaves_the_automatic_status(
    app: BedrockAgentCoreApp, client: Client, function: Callable[[], Any]
) -> None:
    app.ping(function)

    assert status(client) == "Healthy"
    assert app.get_current_ping_status() is PingStatus.HEALTHY
    app.add_async_task("work")
    assert status(client) == "HealthyBusy"


@pytest.mark.parametrize("function", USELESS_FUNCTIONS)
def test_a_custom_function_that_goes_on_failing_is_logged_once(
    app: BedrockAgentCoreApp, client: Client, log: LogLines, function: Callable[[], Any]
) -> None:
    app.ping(function)
    for _ in range(3):
        client.get("/ping")
    assert len([line for line in log.lines if line["level"] in {"WARNING", "ERROR"}]) == 1


def test_a_custom_function_is_logged_once_per_change(app: BedrockAgentCoreApp, client: Client, log: LogLines) -> None:
    answers: Iterator[Any] = iter(["Sick", "Sick", "Healthy", "Healthy", "Sick", "Sick", "Ill", "Ill"])
    app.ping(lambda: next(answers))

    logged = []
    for _ in range(8):
        client.get("/ping")
        logged.append(len([line for line in log.lines if line["level"] in {"WARNING", "ERROR"}]))

    assert logged == [1, 1, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_a_custom_function_that_hangs_is_logged_once_and_leaves_the_automatic_status(
    monkeypatch: pytest.MonkeyPatch, log: LogLines, asynchronous: bool
) -> None:
    monkeypatch.setenv("AGENTCORE_PING_TIMEOUT_SECONDS", "0.05")
    app = BedrockAgentCoreApp()
    released = threading.Event()

    def hangs() -> PingStatus:
        released.wait(60)
        return PingStatus.HEALTHY_BUSY

    async def async_hangs() -> PingStatus:
        return await asyncio.to_thread(hangs)

    app.ping(async_hangs if asynchronous else hangs)
    with TestClient(app=app) as client:
        assert status(client) == "Healthy"
        assert status(client) == "Healthy"
        assert app.get_current_ping_status() is PingStatus.HEALTHY
        assert len([line for line in log.lines if line["level"] == "WARNING"]) == 1
        released.set()


def test_pings_wait_for_a_custom_function_within_the_limit(monkeypatch: pytest.MonkeyPatch, log: LogLines) -> None:
    monkeypatch.setenv("AGENTCORE_PING_TIMEOUT_SECONDS", "60")
    app = BedrockAgentCoreApp()
    asked, released = threading.Event(), threading.Event()

    @app.ping
    def function() -> PingStatus:
        asked.set()
        released.wait(60)
        return PingStatus.HEALTHY_BUSY

    with TestClient(app=app) as client, ThreadPoolExecutor(2) as others:
        pings = [others.submit(status, client) for _ in range(2)]
        assert asked.wait(60)
        released.set()
        assert [ping.result(60) for ping in pings] == ["HealthyBusy"] * 2
    assert [line for line in log.lines if line["level"] == "WARNING"] == []


class Clock:
    now = 1000.9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("litestar_agentcore.runtime.health.time.time", clock.time)
    return clock


def last_update(client: Client, clock: Clock, now: float) -> int:
    clock.now = now
    answer: int = client.get("/ping").json()["time_of_last_update"]
    return answer


def test_the_time_of_the_last_update_is_in_whole_seconds(
    clock: Clock, app: BedrockAgentCoreApp, client: Client
) -> None:
    assert last_update(client, clock, 2000.0) == 1000


def test_the_time_of_the_last_update_moves_when_the_tasks_change_the_status_and_only_then(
    clock: Clock, app: BedrockAgentCoreApp, client: Client
) -> None:
    clock.now = 2000.0
    first = app.add_async_task("first")
    assert last_update(client, clock, 3000.0) == 2000
    second = app.add_async_task("second")
    assert last_update(client, clock, 4000.0) == 2000
    app.complete_async_task(first)
    assert last_update(client, clock, 5000.0) == 2000
    app.complete_async_task(second)
    assert last_update(client, clock, 6000.0) == 5000


def test_a_task_that_no_ping_saw_moves_the_time_of_the_last_update(
    clock: Clock, app: BedrockAgentCoreApp, client: Client
) -> None:
    clock.now = 2000.0
    task = app.add_async_task("work")
    clock.now = 3000.0
    app.complete_async_task(task)
    assert last_update(client, clock, 4000.0) == 3000


def test_the_time_of_the_last_update_moves_when_a_custom_function_changes_its_mind_and_only_then(
    clock: Clock, app: BedrockAgentCoreApp, client: Client
) -> None:
    said = PingStatus.HEALTHY
    app.ping(lambda: said)

    assert last_update(client, clock, 2000.0) == 1000
    app.add_async_task("work")
    assert last_update(client, clock, 3000.0) == 1000
    said = PingStatus.HEALTHY_BUSY
    assert last_update(client, clock, 4000.0) == 4000
    assert last_update(client, clock, 5000.0) == 4000


def test_the_time_of_the_last_update_moves_when_a_status_is_forced_or_cleared_and_only_then(
    clock: Clock, app: BedrockAgentCoreApp, client: Client
) -> None:
    clock.now = 2000.0
    app.force_ping_status(PingStatus.HEALTHY)
    assert last_update(client, clock, 3000.0) == 1000
    app.force_ping_status(PingStatus.HEALTHY_BUSY)
    assert last_update(client, clock, 4000.0) == 3000
    app.complete_async_task(app.add_async_task("work"))
    assert last_update(client, clock, 5000.0) == 3000
    app.clear_forced_ping_status()
    assert last_update(client, clock, 6000.0) == 5000


def test_asking_for_the_current_status_counts_as_seeing_a_change(
    clock: Clock, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.ping(lambda: PingStatus.HEALTHY_BUSY)
    clock.now = 2000.0
    app.get_current_ping_status()
    assert last_update(client, clock, 3000.0) == 2000


class Holding:
    """Handlers that block whatever runs them until they are released."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def block(self) -> str:
        self.entered.set()
        assert self.released.wait(60)
        return "released"

    def plain(self, payload: Any) -> Any:
        return self.block()

    async def coroutine(self, payload: Any) -> Any:
        return self.block()

    async def coroutine_with_an_await(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return self.block()

    def generator(self, payload: Any) -> Iterator[Any]:
        yield self.block()

    async def async_generator(self, payload: Any) -> AsyncIterator[Any]:
        yield self.block()


@pytest.mark.parametrize("custom", [None, lambda: "Healthy", async_busy], ids=["automatic", "custom", "async custom"])
@pytest.mark.parametrize("name", ["plain", "coroutine", "coroutine_with_an_await", "generator", "async_generator"])
def test_ping_answers_while_handlers_block(
    monkeypatch: pytest.MonkeyPatch, name: str, custom: Callable[[], Any] | None
) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "1")
    app = BedrockAgentCoreApp()
    holding = Holding()
    app.entrypoint(getattr(holding, name))
    if custom is not None:
        app.ping(custom)

    with TestClient(app=app) as client, ThreadPoolExecutor(2) as others:
        invocations = [others.submit(client.post, "/invocations", json={}) for _ in range(2)]
        assert holding.entered.wait(60)
        try:
            assert status(client) in {"Healthy", "HealthyBusy"}
            assert not any(invocation.done() for invocation in invocations)
        finally:
            holding.released.set()
        assert all("released" in invocation.result(60).text for invocation in invocations)


def test_ready_answers_200_while_the_service_runs(client: Client) -> None:
    response = client.get("/ready")
    assert (response.status_code, response.json()) == (200, {"ready": True})


def test_ready_answers_503_once_the_service_is_shutting_down(app: BedrockAgentCoreApp) -> None:
    with TestClient(app=app) as client:
        assert client.get("/ready").status_code == 200

    response = client.get("/ready")
    assert (response.status_code, response.json()) == (503, {"ready": False})


def test_ready_answers_200_when_the_service_has_started_again(app: BedrockAgentCoreApp) -> None:
    for _ in range(2):
        with TestClient(app=app) as client:
            assert client.get("/ready").status_code == 200


def test_a_head_request_is_answered_with_the_headers_of_get(client: Client) -> None:
    answer, head = client.get("/ping"), client.head("/ping")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type"):
        assert head.headers[name] == answer.headers[name]


def test_a_function_for_which_there_is_no_thread_is_asked_again(
    app: BedrockAgentCoreApp, client: Client, log: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.ping(lambda: PingStatus.HEALTHY_BUSY)

    def start(thread: threading.Thread) -> None:
        if thread.name == "agentcore-ping":
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    start_thread = threading.Thread.start
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert status(client) == "Healthy"
        assert app.get_current_ping_status() == PingStatus.HEALTHY
    assert status(client) == "HealthyBusy"
    assert len([line for line in log.lines if line["level"] == "WARNING"]) == 1
