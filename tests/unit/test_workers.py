"""Workers of one server; here in one process, each with an app of its own."""

import multiprocessing
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreApp, PingStatus
from litestar_agentcore.runtime import workers as workers_module
from litestar_agentcore.runtime.worker_files import SharingError
from litestar_agentcore.runtime.workers import Workers
from litestar_agentcore.worker_processes import sockets_of_server

from tests.unit.conftest import LogLines

pytestmark = pytest.mark.anyio

HEALTHY, BUSY = PingStatus.HEALTHY, PingStatus.HEALTHY_BUSY


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(workers_module, "find_base", lambda: tmp_path / "base")
    return tmp_path / "base"


@asynccontextmanager
async def two_workers() -> AsyncIterator[
    tuple[tuple[BedrockAgentCoreApp, Workers], tuple[BedrockAgentCoreApp, Workers]]
]:
    async with AsyncExitStack() as stack:
        pair = []
        for _ in range(2):
            app = BedrockAgentCoreApp()
            workers = Workers(app.agent, [42], 0)
            await stack.enter_async_context(workers.joined())
            pair.append((app, workers))
        yield pair[0], pair[1]


def count(app: BedrockAgentCoreApp) -> float:
    line = 'agentcore_invocations_total{mode="unary",outcome="ok"} '
    text = app.agent.telemetry.metrics.expose("")[0].decode()
    return float(text.partition(line)[2].partition("\n")[0])


def invoke(app: BedrockAgentCoreApp) -> None:
    app.agent.telemetry.metrics.invocations.begin()
    app.agent.telemetry.metrics.invocations.end("unary", "ok", 0.1, None)


async def test_what_was_there_before_is_shared_and_stays_afterwards(base: Path) -> None:
    app = BedrockAgentCoreApp()
    invoke(app)
    app.add_async_task("early")
    async with Workers(app.agent, [42], 0).joined():
        other = BedrockAgentCoreApp()
        async with Workers(other.agent, [42], 0).joined():
            assert other.get_current_ping_status() is BUSY
            assert [job["name"] for job in other.get_async_task_info()["running_jobs"]] == ["early"]
            invoke(other)
            assert count(app) == count(other) == 2
        assert count(app) == 2, "the other has ended, and what it counted stays"
        assert count(other) == 1
        assert other.get_current_ping_status() is HEALTHY
    assert app.get_current_ping_status() is BUSY
    app.add_async_task("late")
    assert app.get_async_task_info()["active_count"] == 2


async def test_ids_of_tasks_are_one_workers_alone(base: Path) -> None:
    async with two_workers() as ((first, _), (second, _)):
        task = first.add_async_task("of the first")
        assert task < 2**53
        assert not second.complete_async_task(task)
        assert second.get_current_ping_status() is BUSY
        assert first.complete_async_task(task)
        assert second.get_current_ping_status() is HEALTHY


async def test_what_one_workers_health_function_says_holds_for_all(base: Path) -> None:
    async with two_workers() as ((first, workers), (second, _)):
        said = [BUSY]
        first.ping(lambda: said[0])
        await workers._refresh()
        assert (await second.agent.health.answer()).status is BUSY
        said[0] = HEALTHY
        await workers._refresh()
        assert (await second.agent.health.answer()).status is HEALTHY


async def test_files_that_somebody_cleared_away_are_made_anew(base: Path, log: LogLines) -> None:
    async with two_workers() as ((first, first_workers), (second, second_workers)):
        invoke(first)
        second.add_async_task("which goes on")
        shutil.rmtree(base)
        assert count(first) == 1, "meanwhile each has its own"
        await first_workers._refresh()
        await second_workers._refresh()
        assert count(first) == count(second) == 1
        assert first.get_current_ping_status() is BUSY
        assert len(list(base.glob("*/worker-*"))) == 2
    assert [line["message"] for line in log.lines if "made anew" in line["message"]] != []


async def test_where_no_place_can_be_had_one_warning_says_so(monkeypatch: pytest.MonkeyPatch, log: LogLines) -> None:
    def refuse() -> Path:
        raise SharingError("/tmp: Read-only file system")

    monkeypatch.setattr(workers_module, "find_base", refuse)
    app = BedrockAgentCoreApp()
    async with Workers(app.agent, [42], 0).joined():
        app.add_async_task("own")
        assert app.get_current_ping_status() is BUSY
        assert app.get_async_task_info()["active_count"] == 1
    warnings = [line for line in log.lines if line["level"] == "WARNING"]
    assert len(warnings) == 1
    assert "Read-only file system" in warnings[0]["message"]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        yield listener


@pytest.mark.parametrize(
    ("workers", "reload", "shared"), [(2, False, True), (1, False, False), (2, True, False), (1, True, False)]
)
def test_only_one_of_several_workers_shares(
    workers: int, reload: bool, shared: bool, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sockets_of_server() is None, "this process was started by no supervisor"
    config = SimpleNamespace(workers=workers, reload=reload)
    arguments: dict[str, Any] = {"config": config, "sockets": [listener], "target": None}
    monkeypatch.setattr(multiprocessing.current_process(), "_kwargs", arguments, raising=False)
    assert sockets_of_server() == ([os.fstat(listener.fileno()).st_ino] if shared else None)
