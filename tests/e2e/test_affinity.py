"""Requests of one session reach one server, through real proxies that are set up as the chart has them set up."""

import asyncio
import json
import random
import resource
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.e2e.chart import Manifests, example, merged, render
from tests.e2e.proxies import KINDS, PATIENCE, Envoy, Proxy, istio, proxy
from tests.e2e.runtimes import OURS, free_ports
from tests.integration.server import SESSION_ID

AGENT = """\
import asyncio
import os
import sys
from collections import defaultdict

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
released = defaultdict(asyncio.Event)


async def held(session):
    yield os.environ["SERVER"]
    await released[session].wait()
    yield "last"


@app.entrypoint
async def agent(payload, context):
    if payload.get("stream"):
        return held(context.session_id)
    if payload.get("release"):
        released[context.session_id].set()
    return os.environ["SERVER"]


@app.websocket
async def echo(websocket, context):
    await websocket.accept()
    await websocket.send_text(os.environ["SERVER"])
    async for message in websocket.iter_data("text"):
        await websocket.send_text(message)


app.run(int(sys.argv[1]))
"""

SERVERS = 3
SESSIONS = [str(uuid.UUID(int=random.Random(number).getrandbits(128), version=4)) for number in range(1000)]
CALLS = 10
CONNECTIONS = 16

ENVOYS = ("envoy-gateway", "istio")

MAGLEV_STRAY = len(SESSIONS) // 100
"""How many sessions may move on Envoy, besides those that must, when a server goes: Maglev promises few, not none."""

MANY = 1100
"""More streams than Envoy lets run at the same time by default, which is 1,024."""

Sessions = dict[str, Counter[str]]


async def _call(proxy: Proxy, sessions: Iterator[str | None], answers: Sessions) -> None:
    """Make the calls that are left, over one connection after the other, whichever sessions they belong to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        for session in sessions:
            header = f"{SESSION_ID}: {session}\r\n" if session else ""
            request = f"POST /invocations HTTP/1.1\r\nHost: {proxy.host}\r\nContent-Length: 2\r\n{header}\r\n{{}}"
            writer.write(request.encode())
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
            assert " 200 " in status, (status, lines)
            (length,) = (int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
            answers.setdefault(session or "", Counter())[json.loads(await reader.readexactly(length))] += 1
            if "connection: close" in lines:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    finally:
        writer.close()
        await writer.wait_closed()


def call(proxy: Proxy, sessions: Iterable[str | None]) -> Sessions:
    """Which servers answered each session, where every session's calls come over many connections."""
    answers: Sessions = {}

    async def calls() -> None:
        left = iter(sessions)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(_call(proxy, left, answers))

    asyncio.run(calls())
    return answers


def homes(proxy: Proxy) -> dict[str, str]:
    """The one server of each session."""
    answers = call(proxy, SESSIONS)
    assert set(answers) == set(SESSIONS)
    return {session: server for session, (server,) in answers.items()}


@contextmanager
def open_files(number: int) -> Iterator[None]:
    """Let this process, and those that it starts meanwhile, have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Three real servers: the UID of each one's pod, which it answers with, and its port."""
    ports = free_ports(SERVERS)
    with ExitStack() as stack:
        stack.enter_context(open_files(4 * MANY))
        running = {}
        for number, port in enumerate(ports):
            uid = str(uuid.UUID(int=random.Random(-1 - number).getrandbits(128), version=4))
            file = tmp_path_factory.mktemp("server") / "agent.py"
            file.write_text(AGENT)
            stack.enter_context(OURS.serve(file, str(port), ports=[port], SERVER=uid))
            running[uid] = port
        yield running


@pytest.fixture(scope="module", params=list(KINDS))
def controller(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def manifests(controller: str) -> Manifests:
    """The chart's objects; TLS is left out, which decides nothing here."""
    name, _ = KINDS[controller]
    return render(merged(example(name), {"ingress": {"tls": []}}))


@pytest.fixture(scope="module")
def ingress(
    controller: str, manifests: Manifests, servers: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    with proxy(controller, manifests, servers, tmp_path_factory.mktemp(controller) / "proxy") as running:
        yield running


def test_every_session_sees_one_server_only(ingress: Proxy, servers: dict[str, int]) -> None:
    calls = SESSIONS * CALLS
    random.Random(0).shuffle(calls)
    answers = call(ingress, calls)
    assert len(answers) == len(SESSIONS)
    assert all(answered.total() == CALLS and len(answered) == 1 for answered in answers.values())
    shares = Counter(server for answered in answers.values() for server in answered)
    assert set(shares) == set(servers)
    assert min(shares.values()) > len(SESSIONS) / SERVERS / 2, f"sessions are not spread: {shares}"


def test_requests_without_a_session_are_spread_over_all_servers(ingress: Proxy, servers: dict[str, int]) -> None:
    (answered,) = call(ingress, [None] * 300).values()
    assert set(answered) == set(servers)
    assert min(answered.values()) >= 80


def test_when_a_server_goes_only_its_sessions_move_and_they_come_back_with_it(
    ingress: Proxy, controller: str, servers: dict[str, int]
) -> None:
    before = homes(ingress)
    for gone in servers:
        ingress.lead_to({uid: port for uid, port in servers.items() if uid != gone})
        after = homes(ingress)
        moved = {session for session in SESSIONS if after[session] != before[session]}
        must = {session for session in SESSIONS if before[session] == gone}
        assert moved >= must
        assert len(moved - must) <= (MAGLEV_STRAY if controller in ENVOYS else 0)
        assert set(after.values()) == set(servers) - {gone}
    ingress.lead_to(servers)
    assert homes(ingress) == before


def test_every_replica_of_the_controller_sends_a_session_to_the_same_server(
    ingress: Proxy, controller: str, manifests: Manifests, servers: dict[str, int], tmp_path: Path
) -> None:
    in_another_order = dict(reversed(servers.items()))
    with proxy(controller, manifests, in_another_order, tmp_path / "replica") as replica:
        assert homes(replica) == homes(ingress)


def test_the_first_event_of_a_stream_arrives_before_the_last_is_sent(ingress: Proxy) -> None:
    headers = {"Host": ingress.host, SESSION_ID: str(uuid.uuid4())}
    url = f"http://127.0.0.1:{ingress.port}/invocations"
    with (
        httpx.Client(headers=headers, timeout=PATIENCE, trust_env=False) as client,
        client.stream("POST", url, json={"stream": True}) as response,
    ):
        events = response.iter_lines()
        server = json.loads(next(events).removeprefix("data: "))
        assert client.post(url, json={"release": True}).json() == server
        assert [line for line in events if line] == ['data: "last"']


def test_a_websocket_reaches_the_server_of_its_session(ingress: Proxy) -> None:
    answers = call(ingress, SESSIONS[:10])

    def meets_its_server(session: str) -> bool:
        connection = socket.create_connection(("127.0.0.1", ingress.port), PATIENCE)
        with connect(
            f"ws://{ingress.host}/ws", sock=connection, additional_headers={SESSION_ID: session}, proxy=None
        ) as websocket:
            server = websocket.recv(PATIENCE)
            websocket.send("hello")
            return websocket.recv(PATIENCE) == "hello" and server in answers[session]

    with ThreadPoolExecutor(len(answers)) as executor:  # Envoy takes a second to close a connection.
        assert all(executor.map(meets_its_server, answers))


async def _stream(proxy: Proxy, number: int, all_open: asyncio.Barrier) -> None:
    """Have a stream that has begun, and does not end by itself, until all have begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        body = b'{"stream": true}'
        head = f"POST /invocations HTTP/1.1\r\nHost: {proxy.host}\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}{SESSION_ID}: {uuid.UUID(int=number)}\r\n\r\n".encode() + body)
        await reader.readuntil(b"data: ")
        await all_open.wait()
    finally:
        writer.close()


@pytest.mark.parametrize("controller", ENVOYS, indirect=True)
def test_more_streams_are_open_at_the_same_time_than_envoys_own_limit_allows(ingress: Proxy) -> None:
    async def streams() -> None:
        all_open = asyncio.Barrier(MANY)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(MANY):
                group.create_task(_stream(ingress, number, all_open))

    asyncio.run(streams())


@pytest.mark.parametrize("controller", ["istio"], indirect=True)
def test_a_client_in_the_mesh_reaches_the_server_that_the_gateway_leads_to(
    ingress: Proxy, manifests: Manifests, servers: dict[str, int], tmp_path: Path
) -> None:
    with Envoy(istio(manifests, sidecar=True), tmp_path / "sidecar").running(servers) as sidecar:
        assert sidecar.host != ingress.host
        assert homes(sidecar) == homes(ingress)


@pytest.mark.parametrize("path", ["/metrics", "/schema"])
def test_what_is_not_public_stays_inside(ingress: Proxy, path: str) -> None:
    url = f"http://127.0.0.1:{ingress.port}{path}"
    assert httpx.get(url, headers={"Host": ingress.host}, trust_env=False).status_code == 404
