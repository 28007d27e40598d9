"""Streams, late answers and sockets that are silent for long, through Envoy as its controllers set it up.

Every timeout, keep-alive and silence is ``HASTE`` times shorter than in a cluster, so that the proportions are the
chart's. With ``HASTE=1`` in the environment they are as long as there, which takes a quarter of an hour.
"""

import inspect
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import httpx
import pytest
import uvicorn
from litestar_agentcore.protocol.settings import Settings
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.chart import Manifests, example, merged, render, set_values
from tests.e2e.proxies import ROUTE_TIMEOUT, STREAM_IDLE_TIMEOUT, Envoy, envoy_gateway, hastened, istio
from tests.e2e.runtimes import OURS, free_ports

pytestmark = pytest.mark.serial

HASTE = float(os.environ.get("HASTE", "100"))

SILENCE = 2 * STREAM_IDLE_TIMEOUT / HASTE
"""Seconds that a stream, an answer or a socket is silent: longer than Envoy's own idle timeout."""

PATIENCE = 60.0
"""Seconds after which what should have happened long ago counts as not happening."""

PAUSE = ROUTE_TIMEOUT / HASTE / 3
PAUSES = 12
"""A stream that is never silent for long, and longer as a whole than Envoy's own timeout of a request."""

AGENT = """\
import asyncio
import sys

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


async def events(pauses, pause):
    for number in range(pauses):
        yield number
        await asyncio.sleep(pause)
    yield "last"


@app.entrypoint
async def agent(payload):
    if "pauses" in payload:
        return events(**payload)
    await asyncio.sleep(payload["pause"])
    return "last"


@app.websocket
async def echo(websocket, context):
    await websocket.accept()
    async for message in websocket.iter_data("text"):
        await websocket.send_text(message)


app.run(int(sys.argv[1]), ws_ping_interval=float(sys.argv[2]) or None)
"""

PING_INTERVAL: float = inspect.signature(uvicorn.Config).parameters["ws_ping_interval"].default
KEEP_ALIVES = {"silent": (0.0, 0.0), "lively": (Settings().sse_keepalive_seconds / HASTE, PING_INTERVAL / HASTE)}
"""Seconds of silence after which a server sends a comment in a stream, and between its pings of a socket; 0: never."""


class Exchange(NamedTuple):
    """How an exchange ended: with its last event, answer or message, or cut off before, and after which status."""

    whole: bool
    status: int


def invocation(proxy: Envoy, payload: dict[str, float]) -> Exchange:
    url, headers = f"http://127.0.0.1:{proxy.port}/invocations", {"Host": proxy.host}
    status, text = 0, ""
    try:
        with httpx.stream(
            "POST", url, headers=headers, json=payload, timeout=SILENCE + PATIENCE, trust_env=False
        ) as response:
            status = response.status_code
            for part in response.iter_text():
                text += part
    except (httpx.ReadError, httpx.RemoteProtocolError):
        return Exchange(False, status)
    return Exchange('"last"' in text, status)


def quiet_socket(proxy: Envoy) -> Exchange:
    connection = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE)
    try:
        with connect(
            f"ws://{proxy.host}/ws", sock=connection, proxy=None, ping_interval=None, open_timeout=PATIENCE
        ) as websocket:
            websocket.send("first")
            assert websocket.recv(PATIENCE) == "first"
            time.sleep(SILENCE)
            websocket.send("last")
            return Exchange(websocket.recv(PATIENCE) == "last", 101)
    except ConnectionClosed:
        return Exchange(False, 101)


EXCHANGES: dict[str, Callable[[Envoy], Exchange]] = {
    "long stream": lambda proxy: invocation(proxy, {"pauses": PAUSES, "pause": PAUSE}),
    "quiet stream": lambda proxy: invocation(proxy, {"pauses": 1, "pause": SILENCE}),
    "late answer": lambda proxy: invocation(proxy, {"pause": SILENCE}),
    "quiet socket": quiet_socket,
}
WHOLE = dict.fromkeys(EXCHANGES, True)

GATEWAY, ISTIO = example("affinity-envoy-gateway"), example("affinity-istio")


def untimed() -> Manifests:
    """What the chart renders for Envoy Gateway where it says nothing of time."""
    return render(merged(GATEWAY, set_values("httpRoute.requestTimeout=")))


ROUTINGS = {
    "envoy's own": (envoy_gateway(untimed()), "silent"),
    "envoy-gateway": (envoy_gateway(render(GATEWAY)), "silent"),
    "istio": (istio(render(ISTIO)), "silent"),
    "istio-sidecar": (istio(render(ISTIO), sidecar=True), "silent"),
    "client policy": (envoy_gateway(render(GATEWAY), STREAM_IDLE_TIMEOUT), "silent"),
    "client policy, keep-alives": (envoy_gateway(render(GATEWAY), STREAM_IDLE_TIMEOUT), "lively"),
}
"""What is decided of time, and whether the server behind keeps silent streams and sockets alive."""

ENVOYS = ("envoy-gateway", "istio")


class Ran(NamedTuple):
    """What became of each exchange, and how often Envoy ended one, for a request's timeout and for silence."""

    exchanges: dict[str, Exchange]
    timed_out: int
    idled_out: int

    @property
    def whole(self) -> dict[str, bool]:
        return {name: exchange.whole for name, exchange in self.exchanges.items()}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """A server that sends nothing of itself, and one that keeps streams and sockets alive: their ports."""
    ports = dict(zip(KEEP_ALIVES, free_ports(len(KEEP_ALIVES)), strict=True))
    with ExitStack() as stack:
        for name, (comment, ping) in KEEP_ALIVES.items():
            file = tmp_path_factory.mktemp("server") / "agent.py"
            file.write_text(AGENT)
            arguments = (str(ports[name]), str(ping))
            stack.enter_context(
                OURS.serve(file, *arguments, ports=[ports[name]], AGENTCORE_SSE_KEEPALIVE_SECONDS=str(comment))
            )
        yield ports


@pytest.fixture(scope="module")
def left_idle(servers: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Envoy]]:
    """A proxy of each controller with connections to the server that no request uses any more, in no haste."""
    directory = tmp_path_factory.mktemp("idle")
    with ExitStack() as stack:
        proxies: dict[str, Envoy] = {}
        for name in ENVOYS:
            routing, server = ROUTINGS[name]
            proxies[name] = Envoy(routing, directory / name)
            stack.enter_context(proxies[name].running({server: servers[server]}))
            with ThreadPoolExecutor(8) as executor:
                answers = list(executor.map(invocation, [proxies[name]] * 16, [{"pause": 0.05}] * 16))
            assert all(answer.whole for answer in answers)
        yield proxies


@pytest.fixture(scope="module")
def ran(
    servers: dict[str, int], left_idle: dict[str, Envoy], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Ran]:
    """Every exchange through every proxy, all at the same time, since most of it is waiting."""
    directory = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        proxies: dict[str, Envoy] = {}
        for number, (name, (routing, server)) in enumerate(ROUTINGS.items()):
            proxies[name] = Envoy(hastened(routing, HASTE), directory / str(number))
            stack.enter_context(proxies[name].running({server: servers[server]}))
        executor = stack.enter_context(ThreadPoolExecutor(len(proxies) * len(EXCHANGES)))
        futures: dict[str, dict[str, Future[Exchange]]] = {
            name: {exchange: executor.submit(run, proxy) for exchange, run in EXCHANGES.items()}
            for name, proxy in proxies.items()
        }
        return {
            name: Ran(
                {exchange: future.result() for exchange, future in futures[name].items()},
                proxy.counted("cluster.agent.upstream_rq_timeout"),
                proxy.counted("http.http.downstream_rq_idle_timeout"),
            )
            for name, proxy in proxies.items()
        }


@pytest.mark.parametrize("routing", [*ENVOYS, "istio-sidecar"])
def test_nothing_is_cut_by_what_the_chart_renders(ran: dict[str, Ran], routing: str) -> None:
    assert ran[routing].whole == WHOLE
    assert (ran[routing].timed_out, ran[routing].idled_out) == (0, 0)


def test_envoys_own_timeouts_would_cut_all_of_it(ran: dict[str, Ran]) -> None:
    own = ran["envoy's own"]
    assert own.whole == dict.fromkeys(EXCHANGES, False)
    assert own.exchanges["late answer"].status == 504
    assert (own.timed_out, own.idled_out) == (3, 1), "the timeout of a request does not concern a socket, silence does"


def test_the_idle_timeout_of_a_gateways_owner_cuts_what_is_silent(ran: dict[str, Ran]) -> None:
    policy = ran["client policy"]
    assert policy.whole == {**dict.fromkeys(EXCHANGES, False), "long stream": True}
    assert policy.exchanges["late answer"].status == 504
    assert (policy.timed_out, policy.idled_out) == (0, 3)


def test_keep_alives_outlast_the_idle_timeout_of_a_gateways_owner(ran: dict[str, Ran]) -> None:
    policy = ran["client policy, keep-alives"]
    assert policy.whole == {**WHOLE, "late answer": False}, "before its answer begins, nothing can be sent for it"
    assert (policy.timed_out, policy.idled_out) == (0, 1)


@pytest.mark.parametrize("routing", ENVOYS)
def test_idle_connections_are_closed_by_envoy_before_the_server_closes_them(
    left_idle: dict[str, Envoy], routing: str
) -> None:
    proxy = left_idle[routing]
    proxy.wait(lambda: proxy.counted("cluster.agent.upstream_cx_active") == 0)
    closed = proxy.counted("cluster.agent.upstream_cx_destroy_local")
    assert closed == proxy.counted("cluster.agent.upstream_cx_total") > 0
    assert proxy.counted("cluster.agent.upstream_cx_destroy_remote") == 0
