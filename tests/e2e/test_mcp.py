"""MCP beside HTTP: real servers and clients of the library's releases 1 and 2, and npm's inspector."""

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.environments import environment, run
from tests.e2e.otlp_sink import OtlpSink, otlp_sink
from tests.e2e.runtimes import HERE, OURS, ROOT
from tests.integration.server import PATIENCE, REQUEST_ID, SESSION_ID, ServerProcess, eventually, free_port
from tests.integration.server import run as serve
from tests.integration.test_serving import ENDED_BY_SIGTERM

AGENT = HERE / "protocols" / "mcp_agent.py"
CLIENT = HERE / "protocols" / "mcp_client.py"
OUR_PATHS = os.pathsep.join(str(ROOT / part) for part in ("service", "telemetry"))
START_SECONDS = 60.0
SESSIONS = 1000
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
RELEASES = {"1": "mcp-1", "2": "mcp"}
TOOLS = ["block", "count", "fail", "noted", "traced", "who"]


def python_of(release: str) -> Path:
    return environment(RELEASES[release]) / "python"


@contextmanager
def server(release: str, *, stateless: bool = True, variables: Mapping[str, str] = {}) -> Iterator[ServerProcess]:
    """An MCP server in a process of its own."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("OTEL_", "AGENTCORE_")):
                patch.delenv(name)
        for name, value in {"PYTHONPATH": OUR_PATHS, "STATELESS": "yes" if stateless else "no", **variables}.items():
            patch.setenv(name, value)
        command = [str(python_of(release)), str(AGENT), str(port)]
        with serve(command, port, cwd=AGENT.parent, start_seconds=START_SECONDS) as running:
            yield running


@pytest.fixture(scope="module", params=list(RELEASES))
def release(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def stateless(release: str) -> Iterator[ServerProcess]:
    with server(release) as running:
        yield running


@pytest.fixture(scope="module")
def stateful(release: str) -> Iterator[ServerProcess]:
    with server(release, stateless=False) as running:
        yield running


@pytest.fixture(scope="module", params=["stateless", "stateful"])
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def running(mode: str, stateless: ServerProcess, stateful: ServerProcess) -> ServerProcess:
    return stateless if mode == "stateless" else stateful


_ids = itertools.count(1)


def message(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": params}


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return message("tools/call", name=tool, arguments=arguments)


def initialize() -> dict[str, Any]:
    client = {"name": "test", "version": "1"}
    return message("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)


def responses_of(text: str) -> list[dict[str, Any]]:
    """The messages of a stream of events, or of a JSON body."""
    if text.startswith("{"):
        return [json.loads(text)]
    return [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]


def result_of(answer: httpx.Response) -> Any:
    """What a tool answered."""
    assert answer.status_code == 200, answer.text
    result = responses_of(answer.text)[-1]["result"]
    assert not result.get("isError"), result
    text = result["content"][0]["text"]
    return json.loads(text) if text[:1] in "{[" else text


def post(running: ServerProcess, body: Any, **headers: str) -> httpx.Response:
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    with running.client(timeout=2 * PATIENCE) as client:
        return client.post("/mcp", json=body, headers=HEADERS | own)


def begin(running: ServerProcess) -> str:
    """Open a session of a stateful server."""
    answer = post(running, initialize())
    session: str = answer.headers["mcp-session-id"]
    done = post(running, {"jsonrpc": "2.0", "method": "notifications/initialized"}, mcp_session_id=session)
    assert done.status_code == 202
    return session


# The library's own clients


@pytest.mark.parametrize("client", list(RELEASES))
def test_a_client_of_either_release_gets_all_that_it_asks_for(client: str, mode: str, running: ServerProcess) -> None:
    command = [str(python_of(client)), str(CLIENT), f"{running.url}/mcp"]
    done = subprocess.run(command, env=OURS.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["tools"] == TOOLS
    assert got["counted"] == "counted"
    assert got["progress"] == [0, 1, 2]
    assert got["failed"][0] is True
    assert got["failed"][1].startswith("Error executing tool fail")
    assert got["resource"] == "The memo first"
    assert got["prompt"] == "Say hello to Ada"
    assert all(who["same"] for who in got["who"])
    assert len({who["request_id"] for who in got["who"]}) == len(got["who"])
    assert {who["thread"] for who in got["who"]} == {"agentcore-loop"}
    assert len({who["loop"] for who in got["who"]}) == 1
    sessions = {who["session_id"] for who in got["who"]}
    assert len(sessions) == 1
    assert (sessions == {None}) == (mode == "stateless")


def test_npms_inspector_lists_and_calls(stateless: ServerProcess) -> None:
    def inspect(*arguments: str) -> Any:
        command = ["node", str(inspector()), "--cli", f"{stateless.url}/mcp", "--transport", "http", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert sorted(tool["name"] for tool in inspect("--method", "tools/list")["tools"]) == TOOLS
    called = inspect("--method", "tools/call", "--tool-name", "count", "--tool-arg", "to=1")
    assert called["content"][0]["text"] == "counted"


def inspector() -> Path:
    """The program of npm's inspector, installed unless it was from just these files already."""
    source, directory = HERE / "clients" / "mcp", ROOT / ".npm-mcp"
    stamp, wanted = directory / ".installed", (source / "package-lock.json").read_text()
    directory.mkdir(exist_ok=True)
    (directory / ".gitignore").write_text("*\n")
    for file in ("package.json", "package-lock.json"):
        shutil.copy(source / file, directory)
    if not stamp.exists() or stamp.read_text() != wanted:
        npm = shutil.which("npm")
        assert npm is not None, "npm is needed, and is not on the PATH"
        run(npm, "ci", "--no-audit", "--no-fund", cwd=directory)
        # The program reads what it is from where it lies within the whole inspector, with its user interface.
        itself = {"name": "@modelcontextprotocol/inspector", "version": "1.0.3"}
        (directory / "node_modules" / "@modelcontextprotocol" / "package.json").write_text(json.dumps(itself))
        stamp.write_text(wanted)
    return directory / "node_modules" / "@modelcontextprotocol" / "inspector-cli" / "build" / "cli.js"


# Ids and headers


def test_the_ids_and_the_headers_of_a_request_are_those_of_its_tool(mode: str, running: ServerProcess) -> None:
    headers = {"mcp_session_id": begin(running)} if mode == "stateful" else {}
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(
                lambda number: post(
                    running,
                    call("who", delay=0.05),
                    **headers,
                    **{REQUEST_ID: f"request-{number}", SESSION_ID: f"session-{number}", "X-Own": str(number)},
                ),
                range(16),
            )
        )
    for number, answer in enumerate(answers):
        who = result_of(answer)
        assert (who["request_id"], who["session_id"]) == (f"request-{number}", f"session-{number}")
        assert who["headers"]["x-own"] == str(number)
        assert answer.headers[REQUEST_ID] == f"request-{number}"


def test_the_platforms_session_id_is_never_refused(stateless: ServerProcess, stateful: ServerProcess) -> None:
    made_up = "f3b1a0c4-0000-4000-8000-0123456789ab"
    who = result_of(post(stateless, call("who"), mcp_session_id=made_up))
    assert who["session_id"] == made_up
    assert who["headers"]["mcp-session-id"] == made_up
    assert post(stateful, initialize(), mcp_session_id=made_up).status_code == 200
    assert post(stateful, call("who"), mcp_session_id=made_up).status_code == 404, "it never was a session there"


def test_a_session_that_its_client_ends_is_over(stateful: ServerProcess) -> None:
    session = begin(stateful)
    assert result_of(post(stateful, call("who"), mcp_session_id=session))["session_id"] == session
    with stateful.client() as client:
        assert client.delete("/mcp", headers=HEADERS | {"Mcp-Session-Id": session}).status_code == 200
    assert post(stateful, call("who"), mcp_session_id=session).status_code == 404


def test_stateless_requests_may_go_to_any_server(release: str, stateless: ServerProcess) -> None:
    with server(release) as other:
        assert post(stateless, initialize()).status_code == 200
        loops = [result_of(post(running, call("who")))["loop"] for running in (other, stateless, other, stateless)]
    assert len(set(loops)) == 2


# Work that takes long


def test_a_call_that_is_cancelled_ends(stateful: ServerProcess) -> None:
    session = begin(stateful)
    asked = call("count", to=10_000)
    asked["params"]["_meta"] = {"progressToken": 7}
    headers = HEADERS | {"Mcp-Session-Id": session}
    with stateful.client() as client, client.stream("POST", "/mcp", json=asked, headers=headers) as answer:
        events = answer.iter_lines()
        assert any("notifications/progress" in line for line in events)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": asked["id"]}}
        assert post(stateful, cancelled, mcp_session_id=session).status_code == 202
        eventually(lambda: "cancelled" in result_of(post(stateful, call("noted"), mcp_session_id=session)))


def test_a_client_that_leaves_is_counted_and_harms_nobody(release: str) -> None:
    with server(release) as running:
        asked = call("count", to=10_000)
        asked["params"]["_meta"] = {"progressToken": 7}
        with running.client() as client, client.stream("POST", "/mcp", json=asked, headers=HEADERS) as answer:
            assert any("notifications/progress" in line for line in answer.iter_lines())
        left = 'agentcore_protocol_requests_total{call="tools/call",outcome="disconnected",protocol="mcp"} 1.0'
        with running.client() as client:
            eventually(lambda: left in client.get("/metrics").text)
            eventually(lambda: "agentcore_invocations_in_progress 0.0" in client.get("/metrics").text)
        assert result_of(post(running, call("who")))["same"]


def test_a_tool_that_blocks_delays_no_ping(stateless: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as threads, stateless.client() as client:
        blocked = threads.submit(post, stateless, call("block", seconds=2))
        pings = 0
        while not blocked.done():
            assert client.get("/ping").status_code == 200
            pings += 1
        assert result_of(blocked.result()) == "done"
    assert pings > 20


@pytest.mark.parametrize("is_stateless", [True, False], ids=["stateless", "stateful"])
def test_a_call_in_flight_is_finished_at_sigterm(release: str, is_stateless: bool) -> None:
    with server(release, stateless=is_stateless) as running:
        headers = {} if is_stateless else {"mcp_session_id": begin(running)}
        standing: list[int] = []

        def listen() -> None:
            with (
                running.client(timeout=60) as client,
                client.stream("GET", "/mcp", headers=HEADERS | {"Mcp-Session-Id": headers["mcp_session_id"]}) as answer,
            ):
                standing.append(answer.status_code)
                standing.append(len(list(answer.iter_lines())))

        with ThreadPoolExecutor(2) as threads:
            listening = None if is_stateless else threads.submit(listen)
            if listening is not None:
                eventually(lambda: standing)
            counting = threads.submit(post, running, call("count", to=20, delay=0.1), **headers)
            with running.client() as client:
                eventually(lambda: "agentcore_invocations_in_progress 1.0" in client.get("/metrics").text)
                running.process.terminate()
                eventually(lambda: client.get("/ready").status_code == 503)
            assert result_of(counting.result()) == "counted"
            if listening is not None:
                listening.result(PATIENCE)
        assert running.process.wait(PATIENCE) in ENDED_BY_SIGTERM
        assert not [line for line in running.stderr() if "Traceback" in line or '"level":"ERROR"' in line]


def test_a_thousand_sessions(stateful: ServerProcess) -> None:
    async def one(client: httpx.AsyncClient, number: int, limit: asyncio.Semaphore) -> None:
        async with limit:
            opened = await client.post("/mcp", json=initialize(), headers=HEADERS)
            headers = {SESSION_ID: f"session-{number}", "Mcp-Session-Id": opened.headers["mcp-session-id"]}
            answer = await client.post("/mcp", json=call("who"), headers=HEADERS | headers)
            assert result_of(answer)["session_id"] == f"session-{number}"

    async def all_of_them() -> None:
        async with httpx.AsyncClient(base_url=stateful.url, timeout=60, trust_env=False) as client:
            limit = asyncio.Semaphore(32)
            await asyncio.gather(*(one(client, number, limit) for number in range(SESSIONS)))

    asyncio.run(all_of_them())


# Telemetry


def test_one_trace_has_the_request_the_library_and_the_tools_own_spans(release: str) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    with ExitStack() as stack:
        sink = stack.enter_context(otlp_sink())
        exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        running = stack.enter_context(server(release, variables=exported))
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", SESSION_ID: "session-1", REQUEST_ID: "request-1"}
        assert result_of(post(running, call("traced", name="inside"), **headers)) == "inside"
        eventually(lambda: {"POST /mcp", "inside"} <= {span.name for span in sink.spans})
        spans = {span.name: span for span in sink.spans}
        ours, inner = spans["POST /mcp"], spans["inside"]
        assert {span.trace_id.hex() for span in sink.spans} == {trace}
        ancestors = parents(sink, inner)
        assert ours.span_id in ancestors
        own = attributes(ours)
        assert own["mcp.method.name"] == "tools/call"
        assert own["gen_ai.tool.name"] == "traced"
        assert own["gen_ai.operation.name"] == "execute_tool"
        assert own["gen_ai.agent.name"] == "tools"
        assert own["http.route"] == "/mcp"
        for span in sink.spans:
            assert attributes(span)["session.id"] == "session-1", span.name
            assert attributes(span)["request.id"] == "request-1", span.name


def parents(sink: OtlpSink, span: Any) -> list[bytes]:
    by_id = {each.span_id: each for each in sink.spans}
    found = []
    while (parent := by_id.get(span.parent_span_id)) is not None:
        found.append(parent.span_id)
        span = parent
    return found


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


# Bad input


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "tools/list"}', 400),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', 400),
    ],
)
def test_a_malformed_message_is_told_so_by_the_library(stateless: ServerProcess, body: bytes, status: int) -> None:
    with stateless.client() as client:
        answer = client.post("/mcp", content=body, headers=HEADERS)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"[" * 50_000])
def test_what_no_decoder_takes_harms_nobody(stateless: ServerProcess, body: bytes) -> None:
    with stateless.client() as client:
        answer = client.post("/mcp", content=body, headers=HEADERS)
    assert answer.status_code in {400, 500}, "the library's release 1 answers these with 500, and release 2 with 400"
    assert answer.json()["error"]
    assert result_of(post(stateless, call("who")))["same"]


def test_an_unknown_tool_and_an_unknown_method_are_errors_of_the_protocol(stateless: ServerProcess) -> None:
    (unknown,) = responses_of(post(stateless, message("tools/nothing")).text)
    assert unknown["error"]["code"] < 0
    (missing,) = responses_of(post(stateless, call("nothing")).text)
    assert missing.get("error") or missing["result"]["isError"]
    with stateless.client() as client:
        metrics = client.get("/metrics").text
    assert 'call="tools/nothing"' not in metrics
    assert 'call="other"' in metrics


def test_a_request_of_another_protocol_is_told_so_by_name(stateless: ServerProcess) -> None:
    answer = post(stateless, message("message/send"))
    assert answer.status_code == 400
    assert answer.json()["details"] == "This looks like an A2A request; the agent serves MCP here"


def test_a_page_of_another_origin_is_refused(stateless: ServerProcess) -> None:
    answer = post(stateless, call("who"), Origin="http://evil.example:8000", Host="evil.example:8000")
    assert answer.status_code == 403
    assert post(stateless, call("who"), Origin="http://localhost:6274").status_code == 200


def test_a_server_that_asks_for_tokens_itself_is_not_served_without_them(release: str) -> None:
    source = """
try:
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:
    from mcp.server import MCPServer as Server
from mcp.server.auth.settings import AuthSettings
from litestar_agentcore.mcp import mcp_app
settings = AuthSettings(issuer_url="https://id.example", resource_server_url="https://agent.example")
class Verifier:
    async def verify_token(self, token): return None
try:
    mcp_app(Server("guarded", auth=settings, token_verifier=Verifier()))
except ValueError as error:
    print(error)
try:
    mcp_app(object())
except TypeError as error:
    print(error)
"""
    variables = OURS.environment | {"PYTHONPATH": OUR_PATHS}
    command = [str(python_of(release)), "-c", source]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    guarded, other = done.stdout.splitlines()
    assert "has authentication of its own, which is not asked here" in guarded, done.stderr
    assert other.startswith("An MCP server of the library mcp is needed")


def test_it_ends_quietly(stateless: ServerProcess) -> None:
    started = time.monotonic()
    assert stateless.terminate() in ENDED_BY_SIGTERM
    assert time.monotonic() - started < PATIENCE
