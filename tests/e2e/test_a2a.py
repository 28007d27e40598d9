"""A2A beside both releases of its library: our agents as its clients see them, and beside the reference runtime.

The protocol's conformance kit (a2aproject/a2a-tck) is in no package registry, and is not run here.
"""

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.e2e.environments import environment
from tests.e2e.otlp_sink import OtlpSink, otlp_sink
from tests.e2e.runtimes import HERE, ROOT
from tests.integration.server import ServerProcess, eventually, free_port, run

AGENTS = HERE / "a2a"
CARD = "/.well-known/agent-card.json"
ARN = "arn:aws:bedrock-agentcore:us-east-1:123456789012:runtime/agent-abc"
PREFIX = "X-Amzn-Bedrock-AgentCore-Runtime-"
REQUEST_ID, SESSION_ID = f"{PREFIX}Request-Id", f"{PREFIX}Session-Id"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

PATIENCE = 60.0
"""Seconds after which what should have happened long ago counts as not happening."""

SESSIONS = 1000
AT_ONCE = 50

RELEASES = ("a2a-0.3", "a2a")


class Served(msgspec.Struct, frozen=True):
    release: str
    process: ServerProcess
    client: httpx.Client

    @property
    def url(self) -> str:
        return self.process.url

    def call(self, method: str, params: Any = None, path: str = "/", **headers: str) -> Any:
        body = {"jsonrpc": "2.0", "id": "call-1", "method": method}
        return self.client.post(path, json=body if params is None else {**body, "params": params}, headers=headers)

    def send(self, text: str, *, wait: bool = True, path: str = "/", **headers: str) -> Any:
        """Send a message; the task, or the message, that is the answer."""
        answer = self.call("message/send", message(text, blocking=wait), path, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def state_of(self, task_id: str) -> str:
        state: str = self.call("tasks/get", {"id": task_id}).json()["result"]["status"]["state"]
        return state

    def health(self) -> str:
        status: str = self.client.get("/ping").json()["status"]
        return status

    def stderr_has(self, text: str) -> bool:
        return any(text in line for line in self.process.stderr())


def message(text: str, **configuration: Any) -> dict[str, Any]:
    """The parameters of a message; its configuration is left out where it says nothing."""
    sent = {"kind": "message", "messageId": "m-1", "role": "user", "parts": [{"kind": "text", "text": text}]}
    configuration = {key: value for key, value in configuration.items() if value is not True}
    return {"message": sent, "configuration": configuration} if configuration else {"message": sent}


def said(task: Any) -> str:
    text: str = task["status"]["message"]["parts"][0]["text"]
    return text


def events_of(text: str) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@contextmanager
def served(release: str, runtime: str = "ours", **variables: str) -> Iterator[Served]:
    """Serve ``a2a/agent.py.txt`` in an environment, with its variables and none of the caller's."""
    port = free_port()
    path = os.pathsep.join(str(ROOT / name) for name in ("service", "telemetry"))
    given = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    given |= {"RUNTIME": runtime, "PORT": str(port), **variables}
    start = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    python, agent = environment(release) / "python", AGENTS / "agent.py.txt"
    command = ["env", "-i", *(f"{name}={value}" for name, value in given.items()), str(python), "-c", start, str(agent)]
    with run(command, port, start_seconds=PATIENCE) as process, process.client(PATIENCE) as client:
        yield Served(release, process, client)


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with otlp_sink() as sink:
        yield sink


@pytest.fixture(scope="module")
def servers(sink: OtlpSink) -> Iterator[dict[str, Served]]:
    traced = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",  # the tests that look at spans send a context
    }
    with ExitStack() as stack:
        yield {release: stack.enter_context(served(release, **traced)) for release in RELEASES}


@pytest.fixture(params=RELEASES)
def agent(request: pytest.FixtureRequest, servers: dict[str, Served]) -> Served:
    return servers[request.param]


@pytest.mark.parametrize("release", RELEASES)
def test_the_entrances_keep_their_promises(release: str, tmp_path: Path) -> None:
    file = tmp_path / "test_checks.py"
    file.write_text((AGENTS / "checks.py.txt").read_text())
    path = os.pathsep.join(str(ROOT / name) for name in ("service", "telemetry"))
    command = [str(environment(release) / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", file.name]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_executor_has_the_ids_and_the_headers_of_its_request(agent: Served) -> None:
    headers = {
        REQUEST_ID: "request-1",
        SESSION_ID: "session-1",
        f"{PREFIX}Custom-A": "custom",
        "WorkloadAccessToken": "token",
        "OAuth2CallbackUrl": "https://back.example",
        "X-A2A-Extensions": "https://extension.example/1",
    }
    answer = agent.call("message/send", message("context"), **headers)
    assert (answer.headers[REQUEST_ID], answer.headers[SESSION_ID]) == ("request-1", "session-1")
    seen = json.loads(said(answer.json()["result"]))
    assert (seen["request"], seen["session"], seen["token"]) == ("request-1", "session-1", "token")
    assert {name.lower(): value for name, value in seen["headers"].items()}[f"{PREFIX}Custom-A".lower()] == "custom"
    assert seen["state"]["bedrock_request_id"] == "request-1"
    assert seen["state"]["session_id"] == "session-1"
    assert seen["state"]["workload_access_token"] == "token"
    assert seen["state"]["oauth2_callback_url"] == "https://back.example"
    assert seen["state_headers"] == "custom"
    assert seen["extensions"] == ["https://extension.example/1"]
    assert seen["thread"] == "agentcore-loop"


def test_two_agents_that_call_each_other_are_in_one_trace(servers: dict[str, Served], sink: OtlpSink) -> None:
    older, newer = (servers[release] for release in RELEASES)
    answer = older.send(f"call {newer.url}/ echo hello", traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01")
    assert said(answer) == "hello"

    def spans() -> list[Any]:
        return [span for span in sink.spans if span.trace_id.hex() == TRACE_ID]

    eventually(lambda: {"POST /", "work call", "work echo"} <= {span.name for span in spans()}, PATIENCE)
    eventually(lambda: [span.name for span in spans()].count("POST /") == 2, PATIENCE)
    by_id = {span.span_id: span for span in spans()}

    def ancestors(span: Any) -> list[str]:
        names = []
        while (span := by_id.get(span.parent_span_id)) is not None:
            names.append(span.name)
        return names

    (inner,) = (span for span in by_id.values() if span.name == "work echo")
    above = [name for name in ancestors(inner) if name in ("POST /", "work call")]
    assert above == ["POST /", "work call", "POST /"]
    (outer,) = (span for span in by_id.values() if span.name == "POST /" and not ancestors(span))
    attributes = {entry.key: entry.value.string_value for entry in outer.attributes}
    assert attributes["rpc.system.name"] == "jsonrpc"
    assert attributes["rpc.method"] == "message/send"
    assert attributes["jsonrpc.protocol.version"] == "2.0"
    assert attributes["jsonrpc.request.id"] == "call-1"
    assert attributes["gen_ai.agent.name"] == "Worker"
    assert attributes["gen_ai.conversation.id"] == answer["contextId"]
    assert attributes["a2a.task.id"] == answer["id"]
    assert "session.id" not in attributes


def test_what_outlives_its_request_is_an_active_task(agent: Served, sink: OtlpSink) -> None:
    assert agent.health() == "Healthy"
    task = agent.send("sleep 600", wait=False, traceparent=f"00-{'1' * 32}-b7ad6b7169203331-01")
    assert agent.health() == "HealthyBusy"
    assert agent.call("tasks/cancel", {"id": task["id"]}).json()["result"]["status"]["state"] == "canceled"
    eventually(lambda: agent.health() == "Healthy", PATIENCE)
    eventually(
        lambda: (
            {"POST /", "async_task Executor", "work sleep"}
            <= {span.name for span in sink.spans if span.trace_id.hex() == "1" * 32}
        ),
        PATIENCE,
    )


def test_a_client_that_leaves_does_not_end_the_work(agent: Served) -> None:
    task_id = None
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/stream", "params": message("sleep 603")}
    with agent.client.stream("POST", "/", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                task_id = json.loads(line.removeprefix("data: "))["result"]["id"]
                break
    assert task_id is not None
    series = 'agentcore_protocol_requests_total{call="message/stream",outcome="disconnected",protocol="a2a"} 1.0'
    eventually(partial(metrics_have, agent, series), PATIENCE)
    assert (agent.health(), agent.state_of(task_id)) == ("HealthyBusy", "working")
    agent.call("tasks/cancel", {"id": task_id})
    eventually(lambda: agent.health() == "Healthy", PATIENCE)


def test_an_executor_that_blocks_delays_no_ping(agent: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(agent.send, "block 4")
        eventually(lambda: "1.0" in in_progress(agent), PATIENCE)
        assert agent.client.get("/ping").status_code == 200
        assert not blocked.done()
        assert said(blocked.result(PATIENCE)) == "blocked 4"


def in_progress(agent: Served) -> str:
    lines = agent.client.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("agentcore_invocations_in_progress "))


def test_a_thousand_sessions_keep_to_themselves(agent: Served) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": message("context")}

    async def call_each() -> list[tuple[str, str]]:
        places = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(base_url=agent.url, timeout=PATIENCE, trust_env=False) as client:

            async def call(session: str) -> tuple[str, str]:
                async with places:
                    answer = await client.post("/", json=body, headers={SESSION_ID: session})
                return session, json.loads(said(answer.json()["result"]))["session"]

            return await asyncio.gather(*(call(f"session-{number}") for number in range(SESSIONS)))

    found = asyncio.run(call_each())
    assert len(found) == SESSIONS
    assert [pair for pair in found if pair[0] != pair[1]] == []


def test_awss_clients_reach_it(agent: Served) -> None:
    invocations = f"/runtimes/{ARN}/invocations"
    session = "s" * 33
    answer = agent.call("message/send", message("context"), invocations, **{SESSION_ID: session})
    assert json.loads(said(answer.json()["result"]))["session"] == session
    assert answer.headers["x-amzn-requestid"]
    streamed = agent.call("message/stream", message("count 1"), invocations)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert events_of(streamed.text)[-1]["result"]["status"]["state"] == "completed"
    card = agent.client.get(f"{invocations}{CARD}", headers={SESSION_ID: session})
    assert card.json() == agent.client.get(CARD).json()
    assert card.headers[SESSION_ID] == session
    short = agent.client.get(f"{invocations}{CARD}", headers={SESSION_ID: "short"})
    assert (short.status_code, short.headers["x-amzn-errortype"]) == (400, "ValidationException")
    posted = agent.client.post(f"{invocations}{CARD}")
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
    wrong = agent.call("tools/list", None, invocations)
    assert (wrong.status_code, wrong.headers["x-amzn-errortype"]) == (400, "ValidationException")


def test_a_session_that_is_stopped_ends_its_executions(agent: Served) -> None:
    session = f"session-{agent.release}-".ljust(40, "x")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(agent.call, "message/send", message("sleep 601"), **{SESSION_ID: session})
        agent.send("sleep 602", wait=False, **{SESSION_ID: session})
        eventually(lambda: "1.0" in in_progress(agent), PATIENCE)
        stopped = agent.client.post(f"/runtimes/{ARN}/stopruntimesession", headers={SESSION_ID: session})
        assert stopped.status_code == 200
        assert waiting.result(PATIENCE).status_code == 409
    eventually(lambda: agent.health() == "Healthy", PATIENCE)
    eventually(lambda: "agentcore_sessions 0.0" in agent.client.get("/metrics").text, PATIENCE)


def test_errors_are_counted_though_their_status_is_200(agent: Served) -> None:
    assert agent.call("message/send", message("raise nothing here")).json()["error"]["code"] == -32603
    assert agent.call("tasks/get", {"id": "none"}).json()["error"]["code"] == -32001
    for call, outcome in (("message/send", "server_error"), ("tasks/get", "client_error")):
        series = f'agentcore_protocol_requests_total{{call="{call}",outcome="{outcome}",protocol="a2a"}}'
        eventually(partial(metrics_have, agent, series), PATIENCE)


def metrics_have(agent: Served, series: str) -> bool:
    return series in agent.client.get("/metrics").text


MALFORMED = (
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 2000, b"{}", b'{"jsonrpc": "2.0"}',
    b'{"jsonrpc": "1.0", "id": 1, "method": "message/send", "params": {}}',
    b'{"jsonrpc": "2.0", "id": {}, "method": "message/send", "params": {}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": 5}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "message/sent"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": []}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "message/stream", "params": {"message": {"parts": "none"}}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": "none"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "tasks/cancel", "params": {"id": "none"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "tasks/resubscribe", "params": {"id": "none"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "tasks/pushNotificationConfig/get", "params": {"id": "none"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "agent/getAuthenticatedExtendedCard"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": {"parts": []}}}',
    b'[{"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"id": "none"}}]',
)  # fmt: skip
"""What a client may send by mistake. Each is answered by the library, as it is without us."""

MESSAGES = ("echo hello", "message hello", "raise no such thing", "count 3", "ask what", "context")

VOLATILE = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(127\.0\.0\.1|localhost):\d+"
    r"|\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)"
)


def without_ids(text: str) -> Any:
    """An answer without what differs from call to call: fresh ids, times, the port."""
    text = VOLATILE.sub("-", text).replace("MainThread", "-").replace("agentcore-loop", "-")
    return events_of(text) if text.startswith("data: ") else text


def answers_of(server: Served) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    json_type = {"Content-Type": "application/json"}
    for number, body in enumerate(MALFORMED):
        answer = server.client.post("/", content=body, headers=json_type)
        answers[f"{number}: {body[:100]!r}"] = (answer.status_code, without_ids(answer.text))
    for text in MESSAGES:
        for method in ("message/send", "message/stream"):
            answers[f"{method} {text}"] = answer_to(server, method, text)
    for path in (CARD, "/.well-known/agent.json", "/agent/authenticatedExtendedCard"):
        answer = server.client.get(path)
        answers[path] = (answer.status_code, without_ids(answer.text) if answer.status_code == 200 else None)
    return answers


def answer_to(server: Served, method: str, text: str) -> tuple[int, str, Any, bool]:
    """The status, the content type, the body, and whether that was whole: release 0.3 cuts a stream that failed."""
    body = {"jsonrpc": "2.0", "id": "call-1", "method": method, "params": message(text)}
    received, whole = b"", True
    with server.client.stream("POST", "/", json=body, headers={REQUEST_ID: "r-1", SESSION_ID: "s-1"}) as answer:
        try:
            for part in answer.iter_bytes():
                received += part
        except httpx.RemoteProtocolError:
            whole = False
    return answer.status_code, answer.headers["content-type"], without_ids(received.decode()), whole


def seen_by_client(release: str, url: str) -> Any:
    """What the library's own client sees of an agent."""
    command = [str(environment(release) / "python"), "-", url]
    source = (AGENTS / "client.py.txt").read_text()
    variables = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, input=source, env=variables, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("release", RELEASES)
def test_answers_are_those_of_the_reference_runtime(release: str, servers: dict[str, Served]) -> None:
    ours = servers[release]
    with served(release, "reference") as reference:
        expected, found = answers_of(reference), answers_of(ours)
        assert {key: (value, found[key]) for key, value in expected.items() if found[key] != value} == {}
        seen = seen_by_client(release, reference.url)
        assert seen_by_client(release, ours.url) == seen
    assert seen["card"] == "Worker"
    assert seen["unary"] == [["task", "completed", "hello"]]
    assert seen["streaming"][-1] == ["status_update", "completed", "counted 2"]
    assert (seen["working"], seen["cancelled"]) == ("working", "canceled")
    assert all(seen[key] is not None for key in ("raised", "push", "again", "unknown"))


def test_a_client_of_0_3_is_answered_by_release_1(servers: dict[str, Served]) -> None:
    seen = seen_by_client("a2a-0.3", servers["a2a"].url)
    assert seen["unary"] == [["task", "completed", "hello"]]
    assert seen["streaming"][-1] == ["status_update", "completed", "counted 2"]
    assert seen["followed"][-1] == ["status_update", "canceled", ""]
    assert "-32001" in seen["unknown"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_card_that_is_made_is_the_reference_runtimes(release: str) -> None:
    with served(release, CARD="none") as ours, served(release, "reference", CARD="none") as reference:
        found, expected = (json.loads(without_ids(server.client.get(CARD).text)) for server in (ours, reference))
        if release == "a2a":  # what clients of 0.3 look for
            older = found["supportedInterfaces"].pop()
            assert (older["protocolVersion"], found.pop("url")) == ("0.3", older["url"])
            assert (found.pop("protocolVersion"), found.pop("preferredTransport")) == ("0.3", "JSONRPC")
        assert found == expected
        assert ours.health() == "Healthy"


@pytest.mark.parametrize("release", RELEASES)
def test_what_runs_at_a_sigterm_has_its_grace(release: str) -> None:
    with served(release) as agent, ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(agent.call, "message/stream", message("count 150"))
        unary = pool.submit(agent.call, "message/send", message("sleep 1.5"))
        agent.send("sleep 2", wait=False)
        eventually(lambda: "2.0" in in_progress(agent), PATIENCE)
        agent.process.process.terminate()
        events = events_of(streamed.result(PATIENCE).text)
        assert events[-1]["result"]["status"]["state"] == "completed"
        assert len(events) == 153
        assert said(unary.result(PATIENCE).json()["result"]) == "slept 1.5"
        agent.process.process.wait(PATIENCE)
        assert not agent.stderr_has("the executor was cancelled")
        assert not agent.stderr_has("was still running at shutdown")


@pytest.mark.parametrize("release", RELEASES)
def test_what_still_runs_when_the_grace_is_over_is_cancelled(release: str) -> None:
    with served(release, AGENTCORE_SHUTDOWN_GRACE_SECONDS="0.5") as agent, ThreadPoolExecutor(1) as pool:
        task = agent.send("sleep 600", wait=False)
        waiting = pool.submit(agent.call, "message/send", message("sleep 601"))
        eventually(lambda: agent.stderr_has("works: sleep 600") and agent.stderr_has("works: sleep 601"), PATIENCE)
        began = time.monotonic()
        agent.process.process.terminate()
        assert waiting.result(PATIENCE).status_code == 503
        agent.process.process.wait(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2
        assert sum("the executor was cancelled" in line for line in agent.process.stderr()) == 2
        (lost,) = (line for line in agent.process.stderr() if "is lost" in line)
        assert "The task Executor" in lost
        assert task["id"] in lost
