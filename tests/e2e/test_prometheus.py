"""A real Prometheus scrapes the quick-start agent while load runs, and its HTTP API tells what happened."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from websockets.sync.client import connect

from tests.e2e.otlp_sink import OtlpSink, otlp_sink
from tests.e2e.prometheus import Prometheus, check_metrics, executable, prometheus
from tests.integration.server import Server, eventually, free_port, litestar_run, run

CLIENTS = 4


class Count:
    """What the clients of a load have counted."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.invocations: Counter[tuple[str, str]] = Counter()
        self.events = 0

    def add(self, mode: str, outcome: str, events: int = 0) -> None:
        with self._lock:
            self.invocations[mode, outcome] += 1
            self.events += events


@contextmanager
def load(agent: Server) -> Iterator[Count]:
    """Invoke an agent in every way, from several clients, until the test has seen enough."""
    count = Count()
    stop = Event()

    def invoke(number: int) -> None:
        with agent.client() as client:
            for turn in itertools.count():
                if turn % 4 == 0:
                    assert client.post("/invocations", json={"prompt": "hi"}).status_code == 200
                    count.add("unary", "ok")
                elif turn % 4 == 1:
                    assert client.post("/invocations", json={"prompt": number}).status_code == 400
                    count.add("unary", "client_error")
                elif turn % 4 == 2:
                    assert client.post("/invocations", content=b"{").status_code == 400
                    count.add("unary", "client_error")
                else:
                    events = client.post("/invocations", json={"prompt": "one two", "stream": True}).text
                    count.add("stream", "ok", events.count("data: "))
                if stop.wait(0.01):
                    return

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(invoke, number) for number in range(CLIENTS)]
        try:
            yield count
        finally:
            stop.set()
        for each in clients:
            each.result()


@pytest.fixture(scope="module")
def backend() -> Iterator[OtlpSink]:
    with otlp_sink() as sink:
        yield sink


@pytest.fixture(scope="module")
def agent(backend: OtlpSink) -> Iterator[Server]:
    port = free_port()
    environment = [
        f"OTEL_EXPORTER_OTLP_ENDPOINT={backend.endpoint}",
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY=200",
    ]
    with run(["env", *environment, *litestar_run("app", port)], port) as server:
        yield server


@pytest.fixture(scope="module")
def scraper(agent: Server) -> Iterator[Prometheus]:
    with prometheus({"agent": [{"targets": [f"127.0.0.1:{agent.port}"]}]}) as scraper:
        scraper.wait_for_scrape()
        yield scraper


def invocations(scraper: Prometheus) -> Counter[tuple[str, str]]:
    counted = scraper.query("agentcore_invocations_total")
    return Counter({(labels["mode"], labels["outcome"]): int(value) for labels, value in counted})


def test_counters_agree_with_what_the_clients_counted_to_the_last_request(agent: Server, scraper: Prometheus) -> None:
    before = invocations(scraper)
    durations = Counter({mode: scraper.value(DURATIONS.format(mode)) for mode in ("unary", "stream")})
    events = scraper.value("agentcore_stream_chunks_total")

    with load(agent) as counted:
        for _ in range(4):
            scraper.wait_for_scrape()
        assert invocations(scraper) > before
    scraper.wait_for_scrape()

    assert set(counted.invocations) == {("unary", "ok"), ("unary", "client_error"), ("stream", "ok")}
    assert invocations(scraper) - before == counted.invocations
    assert scraper.value("agentcore_stream_chunks_total") - events == counted.events
    for mode in ("unary", "stream"):
        number = sum(counted.invocations[key] for key in counted.invocations if key[0] == mode)
        assert scraper.value(DURATIONS.format(mode)) - durations[mode] == number
    assert scraper.value("agentcore_invocations_in_progress") == 0


DURATIONS = 'agentcore_invocation_duration_seconds_count{{mode="{}"}}'


def test_streams_whose_clients_leave_are_counted_and_over(agent: Server, scraper: Prometheus) -> None:
    left = 'agentcore_invocations_total{mode="stream",outcome="disconnected"}'
    before = scraper.value(left)
    with agent.client() as client:
        for _ in range(5):
            ask = {"prompt": "word " * 1000, "stream": True}
            with client.stream("POST", "/invocations", json=ask) as response:
                assert next(response.iter_text()).startswith("data: ")
    eventually(lambda: scraper.value(left) - before == 5)
    assert scraper.value("agentcore_invocations_in_progress") == 0


def test_active_tasks_rise_and_fall_while_load_runs(agent: Server, scraper: Prometheus) -> None:
    began = time.time()
    completed = 'agentcore_async_tasks_total{name="research",outcome="completed"}'
    before = sum(value for _, value in scraper.query(completed))
    assert scraper.value("agentcore_active_tasks") == 0

    with load(agent), agent.client() as client:
        for seconds in (3, 4, 5):
            client.post("/invocations", json={"prompt": "dig", "research_seconds": seconds})
        eventually(lambda: scraper.value("agentcore_active_tasks") == 3)
        eventually(lambda: scraper.value("agentcore_active_tasks") == 0)

    history = scraper.values("agentcore_active_tasks", began)
    rise = history.index(3)
    assert history[:rise] == sorted(history[:rise])
    assert history[rise:] == sorted(history[rise:], reverse=True)
    assert scraper.value(completed) - before == 3
    assert scraper.value('agentcore_async_task_duration_seconds_sum{name="research"}') >= 12


def assert_health_is_that_of(client: httpx.Client, scraper: Prometheus, status: str) -> None:
    scraper.wait_for_scrape()
    health = client.get("/ping").json()
    assert health["status"] == status
    statuses = {labels["status"]: value for labels, value in scraper.query("agentcore_ping_status")}
    assert statuses == {"Healthy": status == "Healthy", "HealthyBusy": status == "HealthyBusy"}
    changed = scraper.value("agentcore_ping_status_last_change_timestamp_seconds")
    assert int(changed) == health["time_of_last_update"]


def test_the_health_gauge_follows_ping_while_load_runs(agent: Server, scraper: Prometheus) -> None:
    with load(agent), agent.client() as client:
        assert_health_is_that_of(client, scraper, "Healthy")
        client.post("/invocations", json={"prompt": "dig", "research_seconds": 4})
        eventually(lambda: client.get("/ping").json()["status"] == "HealthyBusy")
        assert_health_is_that_of(client, scraper, "HealthyBusy")
        eventually(lambda: client.get("/ping").json()["status"] == "Healthy")
        assert_health_is_that_of(client, scraper, "Healthy")


def test_open_websockets_rise_and_fall(agent: Server, scraper: Prometheus) -> None:
    url = f"ws://127.0.0.1:{agent.port}/ws"
    with connect(url, proxy=None), connect(url, proxy=None):
        scraper.wait_for_scrape()
        assert scraper.value("agentcore_websocket_connections") == 2
    eventually(lambda: scraper.value("agentcore_websocket_connections") == 0)


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("agentcore_invocation_duration_seconds", "mode", {"unary", "stream"}),
        ("agentcore_async_task_duration_seconds", "name", {"research"}),
    ],
)
def test_exemplars_are_stored_and_the_backend_has_their_traces(
    agent: Server, scraper: Prometheus, backend: OtlpSink, name: str, label: str, values: set[str]
) -> None:
    with agent.client() as client:
        client.post("/invocations", json={"prompt": "hi", "stream": True})
        client.post("/invocations", json={"prompt": "dig", "research_seconds": 0.01})

    eventually(lambda: {labels[label] for labels, _ in scraper.exemplars(f"{name}_bucket")} == values)

    trace_ids = {exemplar["trace_id"] for _, exemplar in scraper.exemplars(f"{name}_bucket")}
    eventually(lambda: trace_ids <= backend.trace_ids)
    of_requests = {span.trace_id.hex() for span in backend.spans if span.kind == Span.SPAN_KIND_SERVER}
    assert trace_ids <= of_requests


def test_no_span_was_dropped(scraper: Prometheus) -> None:
    scraper.wait_for_scrape()
    assert scraper.value("agentcore_spans_dropped_total") == 0


def test_every_scrape_was_answered(scraper: Prometheus) -> None:
    scraper.wait_for_scrape()
    assert scraper.value('min_over_time(up{job="agent"}[10m])') == 1


def test_promtool_finds_nothing_to_say_about_the_metrics(agent: Server) -> None:
    with agent.client() as client:
        client.post("/invocations", json={"prompt": "dig", "research_seconds": 0.01})
        client.post("/invocations", json={"prompt": "hi", "stream": True})
        text = client.get("/metrics").text
    assert check_metrics(text) == ""


def test_promtool_has_a_word_for_metrics_that_are_wrong() -> None:
    assert "no help text" in check_metrics("# TYPE wrong counter\nwrong 1\n")


def test_a_missing_binary_is_a_failure_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match=r"`promtool` is not on the PATH: .* install prometheus"):
        executable("promtool")
