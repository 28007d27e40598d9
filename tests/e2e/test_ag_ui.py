"""AG-UI with what speaks it: its library, its client for JavaScript, two frameworks' adapters, the official SDK."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from litestar_agentcore.cli.client import ExitCode
from litestar_agentcore.cli.group import agent_group
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e.environments import environment, node_modules, tool
from tests.e2e.otlp_sink import OtlpSink, otlp_sink
from tests.e2e.runtimes import HERE, ROOT, ported
from tests.e2e.test_playground import names_of
from tests.integration.server import ServerProcess, eventually, free_port, run
from tests.markdown import blocks

AGENTS = HERE / "ag_ui"
CHECKS = HERE / "ag_ui_checks.py"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"

PATIENCE = 60.0
"""Seconds after which what should have happened long ago counts as not happening."""

START_SECONDS = 120.0
CHECKS_SECONDS = 300.0


def body(text: str, **members: Any) -> dict[str, Any]:
    message = {"id": "u-1", "role": "user", "content": text}
    needed = {"threadId": "thread-1", "runId": "run-1", "messages": [message]}
    return {**needed, "state": {}, "tools": [], "context": [], "forwardedProps": {}, **members}


def event_of(text: str) -> dict[str, Any]:
    assert text.startswith("data: ")
    event: dict[str, Any] = json.loads(text.removeprefix("data: "))
    return event


def events_of(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n\n")
    return [event_of(part) for part in text.split("\n\n")[:-1]]


def said(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


# Servers


class Places(msgspec.Struct):
    """Where agents are written to, and what serves them."""

    directory: Path
    python: Path

    def write(self, name: str, *, is_reference: bool = False) -> Path:
        directory = self.directory / ("reference" if is_reference else "ours")
        directory.mkdir(exist_ok=True)
        source = (AGENTS / f"{name}.py.txt").read_text()
        file = directory / f"{name}.py"
        file.write_text(source if is_reference else ported(source))
        shutil.copy(HERE / "moved" / "scripted_strands_model.py.txt", directory / "scripted_strands_model.py")
        return file

    def environment(self, file: Path, **variables: str) -> list[str]:
        variables = {
            "AGENTCORE_STALL_SECONDS": "30",  # on a busy machine the first request of a framework takes its time
            "HOME": os.environ["HOME"],
            "PATH": os.environ["PATH"],
            **({} if file.parent.name == "reference" else {"PYTHONPATH": f"{ROOT / 'service'}:{ROOT / 'telemetry'}"}),
            **variables,
        }
        assignments = [f"{name}={value}" for name, value in variables.items()]
        return ["env", "--ignore-environment", *assignments, str(self.python)]

    def command(self, file: Path, port: int, **variables: str) -> list[str]:
        return [*self.environment(file, **variables), str(file), str(port)]

    def agent_command(self, *arguments: str, **variables: str) -> list[str]:
        """A command of ``litestar-agent``, with the files of the official SDK in its working directory."""
        module = ["-P", "-m", "litestar_agentcore.cli.console"]
        return [*self.environment(self.directory / "ours" / "any.py", **variables), *module, *arguments]


class Served(msgspec.Struct):
    ours: ServerProcess
    reference: ServerProcess
    pydantic_ai: ServerProcess
    strands: ServerProcess
    sink: OtlpSink


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("agents"), environment("ag-ui") / "python")


@pytest.fixture(scope="module")
def served(places: Places) -> Iterator[Served]:
    with otlp_sink() as sink, ExitStack() as stack:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}

        def start(name: str, *, is_reference: bool = False) -> ServerProcess:
            file, port = places.write(name, is_reference=is_reference), free_port()
            command = places.command(file, port, **({} if is_reference else traced))
            return stack.enter_context(run(command, port, file.parent, START_SECONDS))

        def start_unchanged(name: str) -> ServerProcess:
            file, port = places.write(name, is_reference=True), free_port()
            command = places.agent_command("run", file.name, "--port", str(port), **traced)
            return stack.enter_context(run(command, port, file.parent, START_SECONDS))

        with ThreadPoolExecutor(4) as pool:
            ours, pydantic_ai = (pool.submit(start, name) for name in ("agent", "pydantic_ai_agent"))
            strands = pool.submit(start_unchanged, "strands_agent")
            reference = pool.submit(start, "agent", is_reference=True)
        yield Served(ours.result(), reference.result(), pydantic_ai.result(), strands.result(), sink)


@pytest.fixture
def ours(served: Served) -> ServerProcess:
    return served.ours


def ask(server: ServerProcess, text: str, **headers: str) -> httpx.Response:
    with server.client(PATIENCE) as client:
        return client.post("/invocations", json=body(text), headers=headers)


def frames(server: ServerProcess, message: str) -> tuple[list[str], int]:
    """The text messages that a WebSocket brings, and the code of its close."""
    with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None, max_size=None) as socket:
        socket.send(message)
        return frames_until_close(socket)


def frames_until_close(socket: ClientConnection) -> tuple[list[str], int]:
    texts: list[str] = []
    while True:
        try:
            texts.append(str(socket.recv(PATIENCE)))
        except ConnectionClosed as error:
            closed = error.rcvd
            break
    assert closed is not None, "the connection broke"
    return texts, closed.code


# In one process


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, list[str]]]:
    """By library, and by the name of each check, what it said where it failed."""
    directory = tmp_path_factory.mktemp("checks")
    pythons = {name: environment(name) / "python" for name in ("ag-ui", "ag-ui-0")}
    with ThreadPoolExecutor(len(pythons)) as pool:
        found = pool.map(lambda name: check(pythons[name], directory / name), pythons)
    return dict(zip(pythons, found, strict=True))


def check(python: Path, directory: Path) -> dict[str, list[str]]:
    directory.mkdir()
    report = directory / "report.xml"
    options = ["--noconftest", "--import-mode=importlib", "-p", "no:cacheprovider", "-W", "error", "-c", os.devnull]
    foreign = ("AGENTCORE_", "OTEL_", "PYTEST_", "PYTHON")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        [python, "-m", "pytest", *options, f"--junitxml={report}", CHECKS],
        cwd=directory,
        env=variables | {"PYTHONPATH": f"{ROOT / 'service'}:{ROOT / 'telemetry'}"},
        capture_output=True,
        text=True,
        timeout=CHECKS_SECONDS,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        said = found.setdefault(case.attrib["name"].partition("[")[0], [])
        said += [fault.text or fault.attrib.get("message", "") for fault in case]
    return found


@pytest.mark.parametrize("library", ["ag-ui", "ag-ui-0"])
@pytest.mark.parametrize("name", names_of(CHECKS))
def test_in_one_process(name: str, library: str, outcomes: Mapping[str, Mapping[str, list[str]]]) -> None:
    assert outcomes[library][name] == [], "\n".join(outcomes[library][name])


# Beside the official SDK

ASKED = (
    "hello",
    "call a tool",
    "keep state",
    "say who you are",
    "raise",
    "raise at once",
    "fail",
    "no event",
    "many",
)


@pytest.mark.parametrize("asked", ASKED)
def test_an_agent_answers_as_on_the_official_sdk(asked: str, served: Served) -> None:
    headers = {SESSION_ID: "session-1", "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Tenant": "t"}
    ours, theirs = (ask(server, asked, **headers) for server in (served.ours, served.reference))
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    media_types = [answer.headers["content-type"].partition(";")[0] for answer in (ours, theirs)]
    assert media_types == ["text/event-stream"] * 2
    message = json.dumps(body(asked))
    if asked != "say who you are":  # where the query of a WebSocket may have a session's id, which it has on ours alone
        assert frames(served.ours, message) == frames(served.reference, message)


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"5",
    b'{"prompt": "hi"}',
    json.dumps(body("x", runId=[])).encode(),
    json.dumps(body("x", messages=None)).encode(),
    json.dumps(body("x", messages=[{"role": "tool"}])).encode(),
    json.dumps(body("x", tools={})).encode(),
]


@pytest.mark.parametrize("content", MALFORMED)
def test_what_is_no_run_is_refused_as_on_the_official_sdk(content: bytes, served: Served) -> None:
    answers = []
    for server in (served.ours, served.reference):
        with server.client(PATIENCE) as client:
            answer = client.post("/invocations", content=content)
        answers.append((answer.status_code, answer.json()["error"], sorted(answer.json())))
    assert frames(served.ours, content.decode()) == ([], 1003)
    assert answers[0] == answers[1]
    assert answers[0][0] == 400


# With frameworks, and the client for JavaScript


@pytest.fixture(scope="module")
def npm(served: Served) -> Any:
    """What AG-UI's client for JavaScript makes of the agents."""
    variables = {"AGENT": served.ours.url, "PYDANTIC_AI": served.pydantic_ai.url, "STRANDS": served.strands.url}
    foreign = ("AGENTCORE_", "NODE_", "OTEL_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        [tool("node"), node_modules("ag-ui", AGENTS) / "client.mjs"],
        env=own | variables,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_client_for_javascript_reads_messages(npm: Any) -> None:
    told = npm["message"]
    assert told["error"] is None
    assert told["said"] == [{"role": "assistant", "content": "Hello wörld 😀\n", "calls": []}]
    assert told["types"][0] == "RUN_STARTED"
    assert told["types"][-1] == "RUN_FINISHED"


def test_the_client_for_javascript_reads_tool_calls(npm: Any) -> None:
    told = npm["tool"]
    assert told["error"] is None
    assert told["tools"] == [["weather", {"city": "Oslo"}]]
    assert {"role": "tool", "content": "snow", "calls": []} in told["said"]


def test_the_client_for_javascript_follows_the_state(npm: Any) -> None:
    assert npm["state"]["error"] is None
    assert npm["state"]["state"] == {"count": 2, "steps": ["packed"]}


def test_the_client_for_javascript_has_its_session(npm: Any) -> None:
    (message,) = npm["ids"]["said"]
    assert message["content"].startswith("npm-1 ")
    assert message["content"].endswith(" npm-1 True")


def test_the_client_for_javascript_is_told_of_errors(npm: Any) -> None:
    assert npm["raised"]["error"] == ["the map is lost: é 😀", "INTERNAL_ERROR"]
    assert npm["raisedAtOnce"]["error"] == ["no such thing", "INTERNAL_ERROR"]
    assert npm["failed"]["error"] == ["no more credit", "CREDIT"]


def test_a_run_that_the_client_for_javascript_aborts_is_closed(npm: Any, ours: ServerProcess) -> None:
    assert npm["abort"]["events"] == 3
    eventually(lambda: said(events_of(ask(ours, "what was seen").text)).endswith("closed"), PATIENCE)


@pytest.mark.parametrize("framework", ["pydanticAI", "strands"])
def test_frameworks_adapters_run_as_they_are(framework: str, npm: Any) -> None:
    told = npm[framework]
    assert told["error"] is None
    assert told["tools"] == [["look_up", {"title": "Emma"}]]
    assert "Emma was published in 1815" in told["said"][-1]["content"]
    assert told["types"][-1] == "RUN_FINISHED"


@pytest.mark.parametrize("framework", ["pydantic_ai", "strands"])
def test_frameworks_adapters_run_over_a_websocket(framework: str, served: Served) -> None:
    texts, code = frames(getattr(served, framework), json.dumps(body("look up Emma", threadId="thread-ws")))
    events = [event_of(text) for text in texts]
    assert (events[0]["type"], events[-1]["type"], code) == ("RUN_STARTED", "RUN_FINISHED", 1000)
    assert "Emma was published in 1815" in said(events)


def test_one_trace_has_the_run_and_what_the_framework_records(served: Served) -> None:
    headers = {SESSION_ID: "session-traced", "traceparent": TRACEPARENT}
    assert "RUN_FINISHED" in ask(served.strands, "look up Emma", **headers).text

    def spans() -> list[Any]:
        return [span for span in served.sink.spans if span.trace_id.hex() == TRACE_ID]

    eventually(lambda: any(span.name == "POST /invocations" for span in spans()), PATIENCE)
    by_id = {span.span_id: span for span in spans()}
    (run_span,) = [span for span in by_id.values() if span.name == "POST /invocations"]
    children = [span for span in by_id.values() if span is not run_span]
    assert children
    for span in by_id.values():
        attributes = {each.key: each.value.string_value for each in span.attributes}
        assert attributes["session.id"] == attributes["gen_ai.conversation.id"] == "session-traced"
        while span is not run_span:
            span = by_id[span.parent_span_id]
    attributes = {each.key: each.value.string_value for each in run_span.attributes}
    assert (attributes["ag_ui.thread_id"], attributes["ag_ui.run_id"]) == ("thread-1", "run-1")
    assert run_span.parent_span_id.hex() == TRACEPARENT.split("-")[2]


# Under load, and at the end


def test_an_agent_that_blocks_does_not_delay_ping(ours: ServerProcess) -> None:
    """In the order of what comes, and not by a clock: the run is at its end once the agent has stopped blocking."""
    with ours.client(PATIENCE) as client, client.stream("POST", "/invocations", json=body("block")) as answer:
        lines = answer.iter_lines()
        assert event_of(next(lines))["type"] == "RUN_STARTED"
        with ThreadPoolExecutor(1) as pool, ours.client(PATIENCE) as other:
            rest = pool.submit(list, lines)
            assert other.get("/ping").status_code == 200
            assert not rest.done()
            assert event_of([line for line in rest.result(PATIENCE) if line][-1])["type"] == "RUN_FINISHED"


def test_a_thousand_sessions_have_each_their_own_ids(ours: ServerProcess) -> None:
    places = asyncio.Semaphore(32)  # the client's pool takes ever longer, the more wait for it

    async def ask_in(session: str, client: httpx.AsyncClient) -> bool:
        asked = body("say who you are", threadId=session, runId=session)
        async with places:
            answer = await client.post("/invocations", json=asked, headers={SESSION_ID: session})
        events = events_of(answer.text)
        return said(events) == f"{session} None {session} True" and events[0]["threadId"] == session

    async def ask_in_all() -> list[bool]:
        async with httpx.AsyncClient(base_url=ours.url, timeout=PATIENCE, trust_env=False) as client:
            return await asyncio.gather(*(ask_in(f"session-{number}", client) for number in range(1000)))

    assert all(asyncio.run(ask_in_all()))


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_run_is_waited_for_at_the_end_of_the_service(transport: str, places: Places) -> None:
    events = end_of(places, "take a while", transport, AGENTCORE_SHUTDOWN_GRACE_SECONDS="30")
    assert [event["type"] for event in events] == ["RUN_STARTED", *["CUSTOM"] * 20, "RUN_FINISHED"]


@pytest.mark.parametrize("transport", ["http", "websocket"])
def test_a_run_that_takes_too_long_for_that_ends_with_an_error(transport: str, places: Places) -> None:
    events = end_of(places, "wait", transport, AGENTCORE_SHUTDOWN_GRACE_SECONDS="1")
    assert events[-1] == {
        "type": "RUN_ERROR",
        "message": "The service is shutting down",
        "code": "INTERNAL_ERROR",
    }


def end_of(places: Places, asked: str, transport: str, **variables: str) -> list[dict[str, Any]]:
    """Have SIGTERM come while a run goes on, and give its events."""
    file, port = places.write("agent"), free_port()
    with run(places.command(file, port, **variables), port, file.parent, START_SECONDS) as server:
        if transport == "http":
            with server.client(PATIENCE) as client, client.stream("POST", "/invocations", json=body(asked)) as answer:
                lines = answer.iter_lines()
                events = [event_of(next(lines))]
                server.process.terminate()
                events += [event_of(line) for line in lines if line]
        else:
            with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
                socket.send(json.dumps(body(asked)))
                first = str(socket.recv(PATIENCE))
                server.process.terminate()
                texts, code = frames_until_close(socket)
                events = [event_of(text) for text in (first, *texts)]
                assert code == (1000 if events[-1]["type"] == "RUN_FINISHED" else 1001)
        server.process.wait(PATIENCE)
        assert not [line for line in server.stderr() if "Traceback" in line]
        return events


# The commands


def test_invoke_prints_a_run_as_it_comes(served: Served) -> None:
    told = invoke(served.strands, "look up Emma")
    assert told.code == 0
    assert [line.strip() for line in told.out.splitlines()] == [
        'look_up({"title": "Emma"})',
        '-> "Emma was published in 1815"',
        "success: Emma was published in 1815",
    ]


def test_invoke_prints_the_events_where_that_is_asked_for(ours: ServerProcess) -> None:
    told = invoke(ours, "--json", "hello")
    assert [json.loads(line)["type"] for line in told.out.splitlines()][::6] == ["RUN_STARTED", "RUN_FINISHED"]


def test_invoke_ends_with_the_error_of_a_run(ours: ServerProcess) -> None:
    told = invoke(ours, "fail")
    assert (told.code, told.out) == (ExitCode.ERROR_EVENT, "")
    assert "CREDIT: no more credit" in told.err


def test_invoke_tells_what_is_no_run(ours: ServerProcess) -> None:
    told = invoke(ours, '{"messages": 5}')
    assert told.code == ExitCode.CLIENT_ERROR
    assert "Invalid RunAgentInput" in told.err


class Told(msgspec.Struct):
    code: int
    out: str
    err: str


def invoke(server: ServerProcess, *arguments: str) -> Told:
    options = ["invoke", "--protocol", "ag-ui", "--url", server.url, "--timeout", str(PATIENCE)]
    result = CliRunner().invoke(agent_group, [*options, *arguments])
    return Told(result.exit_code, result.stdout, result.stderr)


def test_doctor_says_which_protocol_it_found_and_where(places: Places, tmp_path: Path) -> None:
    """Of the agent that the page on AG-UI shows."""
    page = (ROOT / "docs" / "ag-ui.md").read_text()
    (sample,) = [block for block in blocks(page) if block.file == "agent.py"]
    file = tmp_path / "agent.py"
    file.write_text(sample.text)
    command = places.agent_command("doctor", file.name, "--json", "--port", str(free_port()))
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    checks = json.loads(done.stdout)["checks"]
    found = {check["subject"]: check["text"] for check in checks}
    assert found["protocol"] == "AG-UI: /invocations, /ws; AgentCore expects it on port 8080"
    assert found["handler"] == "agent: async, on the agent's loop; AG-UI"
    assert [check for check in checks if check["level"] == "failure"] == []
