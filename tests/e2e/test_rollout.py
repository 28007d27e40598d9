"""Rollouts of what the image runs, as Kubernetes does them with the chart's values: nobody notices."""

import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.e2e.chart import render
from tests.e2e.otlp_sink import otlp_sink
from tests.integration.server import PATIENCE, ROOT, SESSION_ID, Server, free_port

pytestmark = pytest.mark.serial

AGENT = Path(__file__).with_name("rollout_agent.py")

SCALE = 0.1
"""Seconds here for a second in the chart, where work is concerned: its invocations and tasks are that much shorter.

The margin is not scaled. It is for the process itself, which is no faster here.
"""

ROLLOUTS = 50
SOME = 3
"""How often something has to be met by a rollout, at least, however fast the machine is."""
SEED = 20260101
PAUSE = 0.05
"""Seconds between a client's answer and its next request."""

SHUTTING_DOWN = {"error": "The service is shutting down"}


@dataclass(frozen=True)
class Shutdown:
    """How long what takes when a pod ends, in seconds."""

    delay: float
    grace: float
    margin: float

    @classmethod
    def of_the_chart(cls) -> "Shutdown":
        """What the chart's default values come to, in its own seconds."""
        manifests = render()
        delay = float(manifests.environment["AGENTCORE_SHUTDOWN_DELAY_SECONDS"])
        grace = float(manifests.environment["AGENTCORE_SHUTDOWN_GRACE_SECONDS"])
        whole: int = manifests.pod["terminationGracePeriodSeconds"]
        return cls(delay, grace, whole - grace - delay)

    def scaled(self) -> "Shutdown":
        return Shutdown(self.delay * SCALE, self.grace * SCALE, self.margin)


def start_command(port: int) -> list[str]:
    """The image's own, on a port of the loopback interface; as process 1, whom an unhandled SIGTERM does not end."""
    (text,) = re.findall(r"^CMD (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    program, *arguments = json.loads(text)
    for option, value in (("--host", "127.0.0.1"), ("--port", str(port))):
        arguments[arguments.index(option) + 1] = value
    found = shutil.which(program, path=Path(sys.executable).parent)
    assert found, f"{program} is not installed beside {sys.executable}"
    return ["sh", "-c", "trap '' TERM; exec \"$@\"", "sh", found, *arguments]


class Pod:
    """A server that is started and ended as the kubelet would.

    Args:
        directory: Holds the agent as ``app.py``, and the log.
        shutdown: How long what takes at its end.
        environment: Variables for it.
    """

    def __init__(self, directory: Path, shutdown: Shutdown, **environment: str) -> None:
        self._shutdown = shutdown
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = directory / f"{self.port}-{uuid.uuid4()}.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "AGENTCORE_"))}
        own = {
            "AGENTCORE_SHUTDOWN_DELAY_SECONDS": f"{shutdown.delay:g}",
            "AGENTCORE_SHUTDOWN_GRACE_SECONDS": f"{shutdown.grace:g}",
            "PYTHONPATH": os.pathsep.join((str(directory), str(ROOT))),  # the image has the service installed
            "TASKS_DONE": str(directory / "done"),
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                start_command(self.port), cwd=directory, env=inherited | own | environment, stdout=log, stderr=log
            )
        self.is_ending = False
        self.was_killed = False

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def entries(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def said(self, words: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries() if words in entry["message"]]

    def invoke(self, session: str, **payload: object) -> httpx.Response:
        return httpx.post(
            f"{self.url}/invocations", json=payload, headers={SESSION_ID: session}, timeout=60, trust_env=False
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 6 * PATIENCE
        with httpx.Client(trust_env=False, timeout=2) as probe:
            while True:
                try:
                    if probe.get(f"{self.url}/ready").status_code == 200:
                        return
                except httpx.TransportError:
                    assert self.process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.05)

    def end(self) -> float:
        """Send SIGTERM, wait, and send SIGKILL when the termination grace period is over; give the seconds it took."""
        began = time.monotonic()
        self.is_ending = True
        self.process.terminate()
        try:
            self.process.wait(self._shutdown.delay + self._shutdown.grace + self._shutdown.margin)
        except subprocess.TimeoutExpired:
            self.was_killed = True
            self.process.kill()
            self.process.wait(PATIENCE)
        return time.monotonic() - began


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copy(AGENT, tmp_path / "app.py")
    (tmp_path / "done").touch()
    return tmp_path


@contextmanager
def ready_pod(directory: Path, shutdown: Shutdown, **environment: str) -> Iterator[Pod]:
    with Pod(directory, shutdown, **environment) as pod:
        pod.wait_until_ready()
        yield pod


# -- Fifty rollouts under load -----------------------------------------------------------------------------------------


class Deployment:
    """One pod, replaced again and again: the new one is ready before the old one goes (maxUnavailable 0, maxSurge 1).

    Args:
        make_pod: Starts a pod.
        shutdown: How long what takes at a pod's end.
        chance: Decides when what happens.
    """

    def __init__(self, make_pod: Callable[[], Pod], shutdown: Shutdown, chance: random.Random) -> None:
        self._make_pod = make_pod
        self._shutdown = shutdown
        self._chance = chance
        self._threads = ThreadPoolExecutor(8)
        self._ending: list[Future[Any]] = []
        self.endpoints: list[Pod] = []
        """What the load balancer believes to be ready."""
        self.pods: list[Pod] = []
        self._bring_up()

    def pick(self) -> Pod:
        """Where the load balancer sends the next request."""
        return random.choice(self.endpoints)

    def _bring_up(self) -> None:
        pod = self._make_pod()
        self.pods.append(pod)
        pod.wait_until_ready()
        self.endpoints = [*self.endpoints, pod]

    def roll_out(self) -> None:
        """Replace the pod, and do not wait until the old one is gone: neither does Kubernetes."""
        time.sleep(self._chance.uniform(0, 0.3))  # at any moment of the clients' work
        old = self.pods[-1]
        self._bring_up()
        # The kubelet begins to end the pod at the same time as proxies begin to hear that it goes.
        heard_after = self._chance.uniform(0, self._shutdown.delay / 2)
        self._ending += [self._threads.submit(old.end), self._threads.submit(self._forget, old, heard_after)]

    def _forget(self, pod: Pod, heard_after: float) -> None:
        time.sleep(heard_after)
        self.endpoints = [endpoint for endpoint in self.endpoints if endpoint is not pod]

    def wait_for_the_old(self) -> None:
        for ending in self._ending:
            ending.result()


@dataclass
class Load:
    """Clients that ask for one thing after the other, and check what they get."""

    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)
    """How many were not done yet when their pod was told to end."""
    failures: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    def run(self, name: str, deployment: Deployment, do: str, seconds: float) -> None:
        """Ask for the same until the end."""
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self.stop.is_set():
                task, pod, began = str(uuid.uuid4()), deployment.pick(), time.monotonic()
                payload = {"do": do, "seconds": seconds, "task": task}
                try:
                    response = client.post(f"{pod.url}/invocations", json=payload, headers={SESSION_ID: task})
                    self._check(do, response, task)
                except Exception as error:
                    after = time.monotonic() - began
                    self.failures.append(f"{name} at {pod.url} after {after:.2f} s: {error!r}")
                else:
                    self.done[name] += 1
                    self.interrupted[name] += pod.is_ending
                time.sleep(PAUSE)

    def _check(self, do: str, response: httpx.Response, task: str) -> None:
        assert response.status_code == 200, f"{response.status_code} {response.text}"
        if do == "stream":
            assert response.text == "".join(f"data: {number}\n\n" for number in range(20))
        else:
            assert response.json() == "done"
        if do == "research":
            self.tasks.append(task)


def test_fifty_rollouts_under_load_fail_no_request_cut_no_stream_and_lose_no_task(directory: Path) -> None:
    print(f"seed {SEED}")
    shutdown, load = Shutdown.of_the_chart().scaled(), Load()
    kinds = {"async": "", "plain": "plain"}
    with ExitStack() as stack:

        def make_pod(handler: str) -> Pod:
            return stack.enter_context(Pod(directory, shutdown, HANDLER=handler))

        deployments = {
            kind: Deployment(lambda handler=handler: make_pod(handler), shutdown, random.Random(f"{SEED} {kind}"))  # type: ignore[misc]
            for kind, handler in kinds.items()
        }
        jobs: list[tuple[str, str, str, float]] = [
            ("answers", "async", "answer", 0.1),
            ("long answers", "async", "answer", 1.0),
            ("streams", "async", "stream", 1.0),
            ("tasks", "async", "research", 1.5),
            ("plain answers", "plain", "answer", 0.1),
            ("long plain answers", "plain", "answer", 1.0),
            ("plain streams", "plain", "stream", 1.0),
        ]
        clients = ThreadPoolExecutor(len(jobs))
        running = [clients.submit(load.run, name, deployments[kind], do, seconds) for name, kind, do, seconds in jobs]
        rollouts = ThreadPoolExecutor(len(deployments))
        try:
            list(rollouts.map(roll_out_again_and_again, deployments.values()))
        finally:
            load.stop.set()
        for client in running:
            client.result()
        for deployment in deployments.values():
            deployment.wait_for_the_old()
        last = [deployment.pods[-1] for deployment in deployments.values()]
        for pod in last:
            pod.end()
        pods = [pod for deployment in deployments.values() for pod in deployment.pods]

    busy = [pod for pod in pods if pod.said("to finish")]
    print(f"{dict(load.done)}, of these {dict(load.interrupted)} while their pod ended; {len(load.failures)} failures")
    print(f"{len(busy)} of {len(pods)} pods ended while busy")
    assert len(pods) == ROLLOUTS + len(deployments)
    assert load.failures == []
    assert set(load.tasks) == set((directory / "done").read_text().split())
    for pod in pods:
        assert not pod.was_killed
        assert pod.process.returncode == 0
        assert not pod.said("was still running at shutdown")
        assert not [entry for entry in pod.entries() if entry["level"] in {"ERROR", "CRITICAL"}]
    # Otherwise it would have proved little.
    assert load.done.keys() == {name for name, *_ in jobs}
    for name in ("long answers", "streams", "long plain answers", "plain streams"):
        assert load.interrupted[name] >= SOME, load.interrupted
    assert len(busy) > ROLLOUTS / 2


def roll_out_again_and_again(deployment: Deployment) -> None:
    for _ in range(ROLLOUTS // 2):
        deployment.roll_out()


# -- One rollout, looked at closely ------------------------------------------------------------------------------------

SHORT = Shutdown(delay=0, grace=1, margin=10)
LONG = Shutdown(delay=0, grace=60, margin=10)


def test_a_task_that_outlasts_the_grace_is_cancelled_named_and_lost(directory: Path) -> None:
    with otlp_sink() as sink, ready_pod(directory, SHORT, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint) as pod:
        assert pod.invoke("short", do="research", seconds=0.9, task="short").json() == "done"
        assert pod.invoke("long", do="research", seconds=60, task="long").json() == "done"
        assert pod.invoke("noting", do="note").json() == "done"
        assert 1 <= pod.end() < 3
        spans = [(span.name, span.status.code, span.status.message) for span in sink.spans]

    assert (directory / "done").read_text() == "short\n"
    found = {entry["sessionId"]: entry["message"] for entry in pod.said("was still running at shutdown")}
    assert found.keys() == {"long", "noting"}
    assert re.match(r"The task research of session long was still running at shutdown, 1\.\d s old,", found["long"])
    assert re.match(r"The task note of session noting .+; metadata: \{'ticket': 7\}$", found["noting"])
    assert Counter(spans) == {
        ("POST /invocations", Status.STATUS_CODE_UNSET, ""): 3,
        ("async_task research", Status.STATUS_CODE_UNSET, ""): 1,
        ("async_task research", Status.STATUS_CODE_ERROR, "lost"): 1,
        ("async_task note", Status.STATUS_CODE_ERROR, "lost"): 1,
    }
    assert (pod.process.returncode, pod.was_killed) == (0, False)


def test_a_second_sigterm_ends_the_grace(directory: Path) -> None:
    with ready_pod(directory, LONG) as pod, ThreadPoolExecutor(1) as clients:
        pod.invoke("long", do="research", seconds=60, task="long")
        call = clients.submit(pod.invoke, "waiting", do="answer", seconds=60)
        time.sleep(0.5)
        pod.process.terminate()
        time.sleep(1)
        assert pod.process.poll() is None
        assert not call.done()
        assert pod.end() < 2
        assert call.result().json() == SHUTTING_DOWN
        assert {entry["sessionId"] for entry in pod.said("was still running at shutdown")} == {"long", "waiting"}


def test_clients_that_did_not_hear_of_it_are_told_to_ask_elsewhere(directory: Path) -> None:
    """A proxy that reuses its connections, or has not heard of the end, gets an answer on which it can try again."""
    with ready_pod(directory, LONG) as pod, ExitStack() as stack:
        old, new = (stack.enter_context(httpx.Client(base_url=pod.url, trust_env=False)) for _ in range(2))
        assert old.get("/ready").status_code == 200
        pod.invoke("long", do="research", seconds=3, task="long")
        pod.process.terminate()
        time.sleep(0.3)
        for proxy in (old, new):
            refused = proxy.post("/invocations", json={"do": "answer"})
            assert (refused.status_code, refused.json()) == (503, SHUTTING_DOWN)
            assert refused.headers["connection"] == "close"
        assert pod.process.wait(PATIENCE) == 0
        assert (directory / "done").read_text() == "long\n"


def test_clients_that_keep_their_connections_connect_anew_before_they_could_be_refused(directory: Path) -> None:
    """The Service of a cluster leads a connection that is kept to the same pod for ever."""
    shutdown = Shutdown(delay=3, grace=60, margin=10)
    with ready_pod(directory, shutdown) as pod, ExitStack() as stack:
        connections = [http.client.HTTPConnection("127.0.0.1", pod.port, timeout=PATIENCE) for _ in range(4)]
        idle, asking, answering, streaming = (stack.enter_context(closing(connection)) for connection in connections)
        ask = {"do": "answer", "seconds": 0.0}
        for connection in connections:
            connection.request("POST", "/invocations", json.dumps(ask))
            answer = connection.getresponse()
            assert (answer.status, answer.read(), answer.getheader("connection")) == (200, b'"done"', None)
        answering.request("POST", "/invocations", json.dumps(ask | {"seconds": 1.0}))
        streaming.request("POST", "/invocations", json.dumps({"do": "stream", "seconds": 5.0}))
        events = streaming.getresponse()
        assert events.getheader("connection") is None
        pod.process.terminate()
        began = time.monotonic()
        answer = answering.getresponse()  # it had begun before
        assert (answer.status, answer.read()) == (200, b'"done"')
        asking.request("POST", "/invocations", json.dumps(ask))
        answer = asking.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        assert time.monotonic() - began < shutdown.delay
        assert events.read().endswith(b"data: 19\n\n")
        assert time.monotonic() - began > shutdown.delay, "the stream was to outlast it"
        for connection in (idle, answering, streaming):
            assert connection.sock.recv(1) == b"", "the connection is not closed"
        assert pod.process.wait(PATIENCE) == 0


def test_the_margin_of_the_chart_is_enough_for_everything_that_can_go_wrong_at_once(directory: Path) -> None:
    """A client that does not read, a handler that does not let itself be cancelled, and spans that are still to go."""
    shutdown = Shutdown(delay=0, grace=1, margin=Shutdown.of_the_chart().margin)
    with otlp_sink() as sink, ExitStack() as stack:
        pod = stack.enter_context(ready_pod(directory, shutdown, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint))
        clients = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(pod.process.kill)
        clients.submit(pod.invoke, "stubborn", do="go on for ever")
        stack.enter_context(Server(pod.port).invoke_and_leave_unread({"do": "pour out"}))
        time.sleep(0.5)
        pod.end()
        assert not pod.was_killed, pod.entries()
        assert {span.name for span in sink.spans} == {"POST /invocations"}
        assert len(sink.spans) == 2
