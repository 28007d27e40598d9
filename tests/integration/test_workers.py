"""Several worker processes tell one truth, whichever is asked, also when one of them is killed."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar_agentcore.runtime.worker_files import find_base

from tests.integration.server import PATIENCE, ROOT, Server, eventually, free_port, litestar_run, uvicorn_command

pytestmark = pytest.mark.serial

WORKING = "tests.integration.agents.working"
LONG = 6 * PATIENCE
"""Seconds for what takes two processes to start on a busy machine."""

FINISHED = 'agentcore_invocations_total{mode="unary",outcome="ok"}'
OBSERVED = 'agentcore_invocation_duration_seconds_count{mode="unary"}'


def uvicorn_workers(port: int) -> list[str]:
    return [*uvicorn_command(WORKING, port), "--workers", "2"]


def litestar_workers(port: int) -> list[str]:
    return [*litestar_run(WORKING, port), "--web-concurrency", "2"]


def script_with_workers(port: int) -> list[str]:
    return [sys.executable, str(ROOT / "tests/integration/agents/working.py"), str(port), "2"]


def module_with_workers(port: int) -> list[str]:
    return [sys.executable, "-m", WORKING, str(port), "2"]


def module_with_variable(port: int) -> list[str]:
    return ["env", "WEB_CONCURRENCY=2", sys.executable, "-m", WORKING, str(port)]


COMMANDS = [uvicorn_workers, litestar_workers, script_with_workers, module_with_workers, module_with_variable]
Command = Callable[[int], list[str]]


@dataclass(frozen=True)
class Workers(Server):
    """A server of two worker processes, with a connection to each of them."""

    process: "subprocess.Popen[bytes]" = field(kw_only=True)
    clients: dict[int, httpx.Client] = field(default_factory=dict)
    """A client of each worker, whose one connection is kept alive, by the worker's process number."""

    def connect_to_each(self, stack: ExitStack, count: int = 2) -> None:
        """Open connections until each worker has one."""
        deadline = time.monotonic() + LONG
        while len(self.clients) < count:
            assert time.monotonic() < deadline, f"only these workers answer: {list(self.clients)}"
            client = self.client()
            try:
                self.clients.setdefault(client.post("/invocations", json={}).json()["pid"], client)
            except httpx.TransportError:
                time.sleep(0.1)
            if client not in self.clients.values():
                client.close()
            else:
                stack.callback(client.close)

    @property
    def directory(self) -> Path:
        """Where these workers meet."""
        client = list(self.clients.values())[-1]
        parent = client.post("/invocations", json={}).json()["parent"]
        (directory,) = find_base().glob(f"{parent}.*")
        return directory


@contextmanager
def served(command: Command = uvicorn_workers) -> Iterator[Workers]:
    port = free_port()
    with tempfile.TemporaryFile() as stderr, ExitStack() as stack:
        process = subprocess.Popen(
            command(port), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        workers = Workers(port, process=process)
        try:
            workers.connect_to_each(stack)
            yield workers
        except BaseException:
            sys.stderr.write(os.pread(stderr.fileno(), 1 << 20, 0).decode(errors="replace"))
            raise
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and its workers: `litestar run` passes no signal on, so all of them are told."""
    deadline = time.monotonic() + LONG
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with served() as workers:
        yield workers


def two(workers: Workers) -> tuple[httpx.Client, httpx.Client]:
    first, second = workers.clients.values()
    return first, second


def ask(client: httpx.Client, **payload: Any) -> Any:
    response = client.post("/invocations", json=payload)
    assert response.status_code == 200, response.text
    return response.json()


def act(client: httpx.Client, action: str) -> Any:
    return ask(client, _agent_core_app_action=action)


def status(client: httpx.Client) -> str:
    answer: str = client.get("/ping").json()["status"]
    return answer


def metrics(client: httpx.Client) -> dict[str, float]:
    text = client.get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(\w\S*) (\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_either_worker_tells_of_both(command: Command) -> None:
    with served(command) as workers:
        first, second = two(workers)
        since = first.get("/ping").json()["time_of_last_update"]
        assert (status(first), status(second)) == ("Healthy", "Healthy")

        task = ask(first, do="task", name="of the first")
        assert (status(first), status(second)) == ("HealthyBusy", "HealthyBusy")
        ask(second, do="task", name="of the second")
        busy = [client.get("/ping").json() for client in (first, second)]
        assert busy[0] == busy[1]
        assert busy[0]["time_of_last_update"] >= since
        for client in (first, second):
            jobs = act(client, "job_status")
            assert jobs["active_count"] == 2
            assert [job["name"] for job in jobs["running_jobs"]] == ["of the first", "of the second"]
            eventually(lambda client=client: metrics(client)["agentcore_active_tasks"] == 2)  # type: ignore[misc]

        assert ask(second, do="finish", id=task) is False, "a task is completed where it began"
        assert ask(first, do="finish", id=task) is True
        assert [client.get("/ping").json() for client in (first, second)] == busy, "which is no change of the status"

        before = metrics(second)[FINISHED]
        for client in (first, second, first):
            ask(client)
        assert [metrics(client)[FINISHED] for client in (first, second)] == [before + 3] * 2


def test_a_forced_status_holds_for_all_whoever_was_told(workers: Workers) -> None:
    first, second = two(workers)
    assert act(first, "force_busy") == {"forced_status": "HealthyBusy"}
    assert (status(first), status(second)) == ("HealthyBusy", "HealthyBusy")
    ask(second, do="force", status="Healthy")
    ask(first, do="task", name="which is not seen")
    assert (status(first), status(second)) == ("Healthy", "Healthy")
    assert act(second, "clear_forced_status") == {"forced_status": "Cleared"}
    assert (status(first), status(second)) == ("HealthyBusy", "HealthyBusy")


def test_exemplars_and_the_process_are_of_all(workers: Workers) -> None:
    first, second = two(workers)
    eventually(lambda: metrics(first)["process_open_fds"] > 0)
    for client in (first, second):
        values = metrics(client)
        assert values["agentcore_invocations_in_progress"] == 0
        assert values['agentcore_ping_status{status="Healthy"}'] == 1
        assert [name for name in values if name.startswith("agentcore_build_info")], "of the worker that is asked"
    cpu = 0.0
    for client in (first, second) * 5:
        now = metrics(client)["process_cpu_seconds_total"]
        assert now >= cpu
        cpu = now


class Load:
    """Threads that invoke the agent until they are told to stop, each on a connection of its own."""

    def __init__(self, server: Server, threads: int = 4) -> None:
        self._server = server
        self._end = threading.Event()
        self.answered = [0] * threads
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(LONG)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        while not self._end.is_set():
            with self._server.client() as client, suppress(httpx.TransportError):
                while not self._end.is_set():
                    if client.post("/invocations", json={}).status_code == 200:
                        self.answered[number] += 1


def test_a_worker_that_is_killed_takes_its_gauges_and_leaves_its_counters(workers: Workers) -> None:
    first, second = two(workers)
    killed, survivor = workers.clients
    ask(first, do="task", name="which dies")
    before = metrics(second)[FINISHED]
    scraped: list[dict[str, float]] = []
    with Load(workers) as load:
        eventually(lambda: sum(load.answered) > 50)
        scraped.append(metrics(second))
        os.kill(killed, signal.SIGKILL)
        at = time.monotonic()
        eventually(lambda: status(second) == "Healthy")
        eventually(lambda: metrics(second)["agentcore_active_tasks"] == 0)
        took = time.monotonic() - at
        assert act(second, "job_status") == {"active_count": 0, "running_jobs": []}
        for _ in range(20):
            scraped.append(metrics(second))
            time.sleep(0.05)
    assert took < 2 or os.getloadavg()[0] > 2 * (os.cpu_count() or 1), "the machine was not so busy"
    counts = [each[FINISHED] for each in scraped]
    assert counts == sorted(counts), "a counter went back"
    # What was asked here, besides the load: the scrapes are no invocations, and the debug action is one.
    answered = sum(load.answered) + 1
    eventually(lambda: metrics(second)["agentcore_invocations_in_progress"] == 0)
    # Of the killed worker's last answers one for each connection may have been sent and not been counted, or counted
    # and not received.
    assert abs(metrics(second)[FINISHED] - before - answered) <= len(load.answered)

    # The supervisor has started another, which knows all that.
    del workers.clients[killed]
    with ExitStack() as stack:
        workers.connect_to_each(stack)
        replaced = next(pid for pid in workers.clients if pid != survivor)
        third = workers.clients[replaced]
        assert metrics(third)[FINISHED] == metrics(second)[FINISHED]
        assert metrics(third)[OBSERVED] == metrics(second)[OBSERVED]
        ask(third, do="task", name="again")
        assert (status(second), status(third)) == ("HealthyBusy", "HealthyBusy")
        eventually(lambda: len(list(workers.directory.glob("worker-*"))) == 2)


def test_a_quiet_worker_that_is_killed_loses_no_count_at_all(workers: Workers) -> None:
    first, second = two(workers)
    killed = next(iter(workers.clients))
    directory = workers.directory
    for _ in range(100):
        ask(first)
    eventually(lambda: metrics(first)["agentcore_invocations_in_progress"] == 0)
    before = metrics(second)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not list(workers_of(directory, killed)))
    after = metrics(second)
    counters = [name for name in before if "_total" in name or "_bucket" in name or "_count" in name]
    exact = [name for name in counters if name.startswith("agentcore_")]
    assert exact
    assert {name: after[name] for name in exact} == {name: before[name] for name in exact}
    assert [name for name in counters if after[name] < before[name]] == []


def workers_of(directory: Path, pid: int) -> Iterator[Path]:
    return directory.glob(f"worker-{pid}-*")


def test_a_child_of_a_killed_worker_does_not_keep_it_alive(workers: Workers) -> None:
    first, second = two(workers)
    killed = next(iter(workers.clients))
    ask(first, do="task", name="which dies")
    child = ask(first, do="fork")
    try:
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: status(second) == "Healthy")
        assert act(second, "job_status")["active_count"] == 0
    finally:
        os.kill(child, signal.SIGKILL)


def test_two_servers_side_by_side_are_apart(workers: Workers) -> None:
    with served() as others:
        first, _ = two(workers)
        ask(first, do="task", name="of one server")
        ask(first, do="force", status="HealthyBusy")
        for client in others.clients.values():
            assert status(client) == "Healthy"
            assert act(client, "job_status")["active_count"] == 0
            assert metrics(client)[FINISHED] < 100
        assert workers.directory != others.directory


@pytest.mark.parametrize("command", [uvicorn_workers, module_with_workers], ids=lambda command: command.__name__)
def test_nothing_is_left_at_the_end(command: Command) -> None:
    with served(command) as workers:
        directory = workers.directory
        assert directory.is_dir()
        assert directory.stat().st_mode & 0o777 == 0o700
        workers.process.terminate()
        workers.process.wait(LONG)
        assert not directory.exists()


def test_what_a_killed_server_left_is_cleared_away_by_the_next() -> None:
    with served() as workers:
        directory = workers.directory
        pids = list(workers.clients)
        os.killpg(workers.process.pid, signal.SIGKILL)
        workers.process.wait(PATIENCE)
        eventually(lambda: not any(map(_runs, pids)))
    assert directory.is_dir()
    with served() as workers:
        assert metrics(next(iter(workers.clients.values())))[FINISHED] < 50
        assert not directory.exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
