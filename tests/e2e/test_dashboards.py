"""Agents under load, scraped by a real Prometheus: every query of the dashboards and rules finds what it asks for."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, get_args
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
import yaml
from agentcore_telemetry.metrics import Outcome
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from websockets.sync.client import connect

from grafana.generate import DIRECTORIES, ROOT, as_json, generated
from grafana.overview import OUTCOMES
from tests.e2e.prometheus import Prometheus, prometheus
from tests.e2e.runtimes import free_ports
from tests.e2e.served import served
from tests.integration.server import ServerProcess, eventually

HERE = DIRECTORIES[0]
NAMES = ("overview", "rollout")
RATE_INTERVAL = "15s"
UP_TO_NOW = "3m"

CHART = {
    "job": "agent",
    "namespace": "demo",
    "agent": "helper",
    "agent_version": r"1\\.0\\.0|2\\.0\\.0",
    "instance": ".*",
}
"""What is chosen where the chart's monitors attach their labels."""
PLAIN = {"job": "plain", "namespace": ".*", "agent": ".*", "agent_version": ".*", "instance": ".*"}
"""What is chosen where a plain Prometheus attaches none."""


class Target(NamedTuple):
    """A query of a panel."""

    dashboard: str
    panel: str
    expr: str
    exemplar: bool

    def __str__(self) -> str:
        return f"{self.dashboard}-{self.panel}"


def read(name: str) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((HERE / "dashboards" / f"{name}.json").read_text())
    return dashboard


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [inner for outer in dashboard["panels"] for inner in (outer, *outer.get("panels", []))]


def targets() -> list[Target]:
    """Every PromQL query of every panel."""
    found = []
    for name in NAMES:
        dashboard = read(name)
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                if target["datasource"]["type"] == "prometheus":
                    found.append(Target(name, panel["title"], target["expr"], target.get("exemplar", False)))
    return found


def interpolated(text: str, chosen: dict[str, str]) -> str:
    """What Grafana makes of a text with variables."""
    for name, value in {**chosen, "__rate_interval": RATE_INTERVAL}.items():
        text = re.sub(rf"\${name}\b|\${{{name}}}", value.replace("\\", r"\\"), text)
    assert "$" not in text, text
    return text


def rules() -> list[tuple[str, str]]:
    """Every rule's name and expression."""
    groups = yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"]
    return [(rule.get("alert") or rule["record"], rule["expr"]) for group in groups for rule in group["rules"]]


def runbook() -> list[str]:
    """Every PromQL expression of the runbook."""
    spans = re.findall(r"`([^`]+)`", (ROOT / "docs" / "runbook.md").read_text())
    return [span for span in spans if re.search(r"\b(agentcore_|agent:|process_|up\b)", span) and " | " not in span]


SELECTOR = re.compile(r"\b(?:agentcore_|agent:|process_)[\w:]+(?:\{[^}]*\})?|\bup\b(?:\{[^}]*\})?")


TWO_ROUNDS = 'agentcore_invocations_total{pod=~"helper-.", mode="stream", outcome="disconnected"} > 1'
REFUSED_AND_TIMED_OUT = (
    'sum by (pod, outcome) (agentcore_invocations_total{job="agent", outcome=~"rejected|timeout"}) > 0'
)
API_KEY = "a-key-that-the-load-has"
SESSION = {"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": "a-session-that-asks-for-much-at-the-same-time"}


class World(NamedTuple):
    """Agents under load, and a Prometheus that scrapes them."""

    prometheus: Prometheus
    agents: list[ServerProcess]


def jobs(agents: list[ServerProcess]) -> dict[str, list[dict[str, Any]]]:
    """Scrape each agent twice: with the labels that the chart's monitors attach, and with none."""
    addresses = [f"127.0.0.1:{agent.port}" for agent in agents]
    labelled = [
        {
            "targets": [address],
            "labels": {"namespace": "demo", "agent": "helper", "agent_version": version, "pod": f"helper-{number}"},
        }
        for number, (address, version) in enumerate(zip(addresses, ("1.0.0", "2.0.0", "2.0.0"), strict=True))
    ]
    return {"agent": labelled, "plain": [{"targets": addresses}]}


def caller(agent: ServerProcess) -> httpx.Client:
    client = agent.client()
    client.headers["X-Api-Key"] = API_KEY
    return client


def post(client: httpx.Client, **payload: Any) -> int:
    return client.post("/invocations", json=payload).status_code


@contextmanager
def load(agent: ServerProcess) -> Iterator[None]:
    """Keep an agent busy in every way that there is, until the test has seen enough."""
    stop = Event()

    def invoke() -> None:
        with caller(agent) as client:
            for turn in itertools.count():
                assert post(client, do="nothing") == 200
                assert client.post("/invocations", content=b"{").status_code == 400
                assert client.post("/invocations", headers={"X-Api-Key": "another"}, json={}).status_code == 401
                assert post(client, do="raise") == 500
                assert post(client, do="words", count=3) == 200
                assert post(client, do="tasks") == 200
                assert client.post("/mcp", json={}).status_code == 202
                if turn == 0:
                    assert post(client, do="block", seconds=1.5) == 200  # longer than from scrape to scrape
                with client.stream("POST", "/invocations", json={"do": "words", "count": 1000}) as response:
                    assert next(response.iter_text()).startswith("data: ")
                if stop.wait(0.2):
                    return

    def crowd_one_session() -> None:
        """With three at a time, one runs, one waits for its place, and one is refused."""
        with caller(agent) as client:
            while not stop.wait(0.05):
                sleep = {"do": "sleep", "seconds": 1.5}
                assert client.post("/invocations", json=sleep, headers=SESSION).status_code in (200, 429)

    def crowd(_: int) -> None:
        with caller(agent) as client:
            post(client, do="sleep", seconds=1.5)

    with (
        ThreadPoolExecutor(15) as pool,
        connect(f"ws://127.0.0.1:{agent.port}/ws", proxy=None, additional_headers={"X-Api-Key": API_KEY}),
        caller(agent) as slow_reader,
        slow_reader.stream("POST", "/invocations", json={"do": "pages"}) as response,
    ):
        pages = response.iter_text()  # kept, since httpx closes the connection with it
        assert next(pages).startswith("data: ")
        with caller(agent) as client:
            post(client, do="begin a task")
            post(client, do="lose tasks")
            post(client, do="begin a task")
        calls = [pool.submit(invoke), *(pool.submit(crowd, number) for number in range(8))]
        calls += [pool.submit(crowd_one_session) for _ in range(3)]
        try:
            yield
        finally:
            stop.set()
        for call in calls:
            call.result()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two versions under load; of the newer one an instance has just gone, with a task that had not ended."""
    (refusing,) = free_ports(1)
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(API_KEY)
    environment = {
        "AGENTCORE_API_KEYS_FILE": str(keys),
        "AGENTCORE_SYNC_THREADS": "4",
        "AGENTCORE_MAX_CONCURRENT_PER_SESSION": "1",
        "AGENTCORE_QUEUE_SIZE": "2",  # of which one session has a half
        "AGENTCORE_STREAM_IDLE_SECONDS": "4",  # for the reader who has stopped reading
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{refusing}",
        "OTEL_BSP_MAX_QUEUE_SIZE": "8",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
    }
    app = "tests.e2e.dashboards_agent:app"
    with ExitStack() as stack, ExitStack() as going:
        agents = [stack.enter_context(served(app, **environment)) for _ in range(2)]
        agents.append(going.enter_context(served(app, **environment)))
        scraper = stack.enter_context(prometheus(jobs(agents), HERE / "alerts.yaml"))
        with caller(agents[2]) as client:
            post(client, do="begin a task")
        eventually(lambda: scraper.query('agentcore_active_tasks{pod="helper-2"} == 1'))
        for agent in agents[:2]:
            stack.enter_context(load(agent))
        going.close()
        eventually(lambda: scraper.query('up{pod="helper-2"} == 0'))
        eventually(lambda: len(scraper.query(TWO_ROUNDS)) == 2)
        eventually(lambda: len(scraper.query(REFUSED_AND_TIMED_OUT)) == 4)
        yield World(scraper, agents)


def found(world: World, expression: str) -> list[tuple[dict[str, str], float]]:
    return [(labels, value) for labels, value in world.prometheus.query(expression) if not math.isnan(value)]


def test_the_load_moves_every_metric_of_an_agent(world: World) -> None:
    with world.agents[0].client() as client:
        exposed = set(re.findall(r"^(agentcore_\w+)", client.get("/metrics").text, re.MULTILINE))
    still = [name for name in exposed if not found(world, f'max_over_time({name}{{pod="helper-0"}}[{UP_TO_NOW}]) > 0')]
    assert still == []


@pytest.mark.parametrize("state", ["running", "parked"])
def test_the_load_has_threads_in_each_state(world: World, state: str) -> None:
    assert found(world, f'max_over_time(agentcore_handler_threads{{pod="helper-0", state="{state}"}}[{UP_TO_NOW}]) > 0')


@pytest.mark.parametrize("outcome", [outcome for outcome in get_args(Outcome) if outcome != "cancelled"])
def test_the_load_has_invocations_of_each_outcome(world: World, outcome: str) -> None:
    assert found(world, f'sum(agentcore_invocations_total{{pod="helper-0", outcome="{outcome}"}}) > 0')


def test_every_outcome_has_a_colour_of_its_own() -> None:
    assert OUTCOMES.keys() == set(get_args(Outcome))
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)


@pytest.mark.parametrize("chosen", [CHART, PLAIN], ids=["chart", "plain"])
@pytest.mark.parametrize("target", targets(), ids=str)
def test_every_query_of_the_dashboards_finds_something(world: World, target: Target, chosen: dict[str, str]) -> None:
    expression = interpolated(target.expr, chosen)
    assert found(world, expression), expression


@pytest.mark.parametrize(
    "target", [target for target in targets() if target.expr.startswith("sum by (agent_version)")], ids=str
)
def test_a_rollout_shows_both_versions(world: World, target: Target) -> None:
    versions = {labels["agent_version"] for labels, _ in found(world, interpolated(target.expr, CHART))}
    assert versions == {"1.0.0", "2.0.0"}


def test_a_rollout_shows_the_tasks_of_an_instance_that_went_away(world: World) -> None:
    (target,) = (target for target in targets() if target.panel == "Tasks on instances that went away")
    lost = {labels["agent_version"]: value for labels, value in found(world, interpolated(target.expr, CHART))}
    assert lost == {"1.0.0": 0, "2.0.0": 1}


def test_shares_of_traffic_make_a_whole(world: World) -> None:
    (target,) = (target for target in targets() if target.panel == "Share of traffic")
    shares = [value for _, value in found(world, interpolated(target.expr, CHART))]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("target", [target for target in targets() if target.exemplar], ids=str)
def test_exemplars_lead_from_the_durations_to_traces(world: World, target: Target) -> None:
    exemplars = world.prometheus.exemplars(interpolated(target.expr, CHART))
    assert exemplars
    assert all(re.fullmatch("[0-9a-f]{32}", exemplar["trace_id"]) for _, exemplar in exemplars)


@pytest.mark.parametrize(
    ("chosen", "offered"), [(CHART, set(CHART)), (PLAIN, {"job", "instance"})], ids=["chart", "plain"]
)
@pytest.mark.parametrize("name", NAMES)
def test_variables_offer_what_there_is(world: World, name: str, chosen: dict[str, str], offered: set[str]) -> None:
    values = {}
    for variable in read(name)["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert query is not None
            selector, label = query.groups()
            values[variable["name"]] = world.prometheus.get(
                f"label/{label}/values", **{"match[]": interpolated(selector, chosen)}
            )
    assert {name for name, options in values.items() if options} == offered


@pytest.mark.parametrize(("name", "expression"), rules(), ids=[name for name, _ in rules()])
def test_every_selector_of_the_rules_finds_series(world: World, name: str, expression: str) -> None:
    selectors = set(SELECTOR.findall(expression))
    assert selectors
    assert [selector for selector in selectors if not world.prometheus.query(selector)] == []


@pytest.mark.parametrize("expression", runbook())
def test_prometheus_understands_the_queries_of_the_runbook(world: World, expression: str) -> None:
    world.prometheus.query(expression)
    assert all(world.prometheus.query(re.sub(r"\{.*", "", selector)) for selector in SELECTOR.findall(expression))


def test_every_rule_is_evaluated_without_an_error(world: World) -> None:
    groups = world.prometheus.get("rules")["groups"]
    healths = Counter(rule["health"] for group in groups for rule in group["rules"])
    assert healths == {"ok": len(rules())}


def test_an_agent_that_fails_pages_with_the_labels_of_the_chart(world: World) -> None:
    alert = 'ALERTS{alertname="AgentErrorBudgetBurnFast", alertstate="firing", severity="page", agent="helper"}'
    eventually(lambda: world.prometheus.query(alert))


@pytest.mark.parametrize("name", NAMES)
def test_grafana_models_hold_all_of_a_dashboard(name: str) -> None:
    register_default_plugins()
    dashboard = read(name)
    assert json.loads(as_json(Dashboard.from_json(dashboard))) == dashboard


@pytest.mark.parametrize("directory", DIRECTORIES, ids=["by-hand", "chart"])
def test_the_files_are_what_the_sources_say(directory: Path) -> None:
    files = generated()
    assert {path: (directory / path).read_text() for path in files} == files, "run `python -m grafana.generate`"
    assert {f"dashboards/{file.name}" for file in (directory / "dashboards").iterdir()} == set(files) - {"alerts.yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_can_be_imported_anywhere(name: str) -> None:
    dashboard = read(name)
    assert dashboard["uid"] == f"agentcore-{name}"
    assert dashboard.get("id") is None
    assert not {"__inputs", "__requires"} & set(dashboard)
    parts = [*panels(dashboard), *dashboard["templating"]["list"]]
    parts += [target for panel in panels(dashboard) for target in panel.get("targets", [])]
    uids = {part["datasource"]["uid"] for part in parts if "datasource" in part}
    assert uids == {"${datasource}", "${tempo}"}


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_used_and_every_one_used_is_there(name: str) -> None:
    dashboard = read(name)
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
    assert {name for name in used if not name.startswith("__")} == defined


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_their_own_ids_places_and_explanations(name: str) -> None:
    every = panels(read(name))
    assert len({panel["id"] for panel in every}) == len(every)
    cells = Counter(
        (column, row)
        for panel in every
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    )
    assert [cell for cell, number in cells.items() if number > 1 or cell[0] >= 24] == []
    assert [panel["title"] for panel in every if panel["type"] != "row" and not panel.get("description")] == []
    drawn = [panel for panel in every if panel["type"] in ("stat", "timeseries")]
    assert [panel["title"] for panel in drawn if not panel["fieldConfig"]["defaults"].get("unit")] == []
    assert [panel["title"] for panel in drawn if panel.get("interval") != "30s"] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("Session in Tempo", {"queryType": "traceql", "tableType": "traces", "query": '{ span.session.id = "a%b&c" }'}),
        ("Session in Jaeger", {"queryType": "search", "service": "agent", "tags": "session.id=a%b&c"}),
    ],
)
def test_a_session_id_leads_to_its_traces(name: str, title: str, query: dict[str, str]) -> None:
    (link,) = (link for link in read(name)["links"] if link["title"] == title)
    chosen = {"tempo": "T", "jaeger": "J", "__from": "1700000000000", "__to": "1700003600000"}
    encoded = {"session:percentencode": quote("a%b&c", safe=""), "service:percentencode": "agent"}
    url = urlsplit(interpolated(link["url"], {**chosen, **encoded}))
    parameters = parse_qs(url.query, strict_parsing=True)

    assert url.path == "/explore"
    assert parameters["schemaVersion"] == ["1"]
    (pane,) = json.loads(parameters["panes"][0]).values()
    uid = title.removeprefix("Session in ")[0]
    datasource = {"type": title.removeprefix("Session in ").lower(), "uid": uid}
    assert pane["datasource"] == uid
    assert pane["range"] == {"from": "1700000000000", "to": "1700003600000"}
    assert pane["queries"] == [{"refId": "A", "datasource": datasource, "limit": 100, **query}]
