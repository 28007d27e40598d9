"""The chart: Helm renders it, and what comes out is what a cluster accepts and an operator was promised."""

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import ANY

import helm_python as helm
import httpx
import kubernetes_validate
import pytest
import uvicorn
import yaml
from litestar_agentcore.protocol.settings import Settings
from litestar_agentcore.version import __version__
from msgspec.structs import fields

from tests.e2e.chart import (
    CHART,
    EXAMPLES,
    Manifest,
    Manifests,
    complaints,
    example,
    merged,
    notes,
    render,
    render_text,
    set_values,
)
from tests.e2e.prometheus import executable
from tests.e2e.runtimes import ROOT
from tests.integration.server import Server, eventually, free_port, litestar_run, run
from tests.integration.test_workers import LONG as WORKERS_PATIENCE
from tests.integration.test_workers import metrics, served

OLDEST = "1.27"
NEWEST = kubernetes_validate.latest_version()

SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

SERVER_KEEP_ALIVE: int = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
"""Seconds after which the server closes a connection that no request uses."""

MIB = 2**20

AGENT = """\
from litestar_agentcore import BedrockAgentCoreApp
from tools import shout

app = BedrockAgentCoreApp()


@app.entrypoint
def agent(payload):
    return shout(payload["prompt"])
"""
TOOLS = """\
def shout(text):
    return text.upper()
"""

WORKERS_AGENT = """\
import asyncio
import os

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
async def agent(payload):
    while "until" in payload and not os.path.exists(payload["until"]):
        await asyncio.sleep(0.05)
    return {"pid": os.getpid(), "parent": os.getppid()}
"""

INGRESS = set_values("ingress.enabled=true,ingress.hosts={agent.example.com}")
ROUTE = set_values("httpRoute.enabled=true,httpRoute.parentRefs[0].name=public")
DISCOVERY_URL = "https://issuer.example.com/.well-known/openid-configuration"
JWT = set_values(
    f"auth.jwt.discoveryUrl={DISCOVERY_URL}",
    "auth.jwt.allowedAudience={agents,tools},auth.jwt.allowedClients={app},auth.jwt.allowedScopes={agents:invoke}",
)

SWITCHES: dict[str, tuple[dict[str, Any], ...]] = {
    "door": (
        {},
        INGRESS,
        merged(INGRESS, set_values("ingress.controller=haproxy,ingress.tls[0].secretName=tls,ingress.className=x")),
        merged(INGRESS, set_values("sessionAffinity.controller=ingress-nginx")),
        merged(INGRESS, set_values("sessionAffinity.controller=haproxy")),
        ROUTE,
        merged(ROUTE, set_values("sessionAffinity.controller=envoy-gateway,httpRoute.hostnames={a.example.com}")),
        set_values("sessionAffinity.controller=istio"),
    ),
    "scaling": (
        {},
        set_values("replicaCount=3"),
        set_values("autoscaling.enabled=true"),
        set_values("autoscaling.enabled=true,autoscaling.invocationsPerPod=8,autoscaling.memoryUtilization=80"),
        set_values("keda.enabled=true,keda.prometheus.serverAddress=http://prometheus:9090"),
        set_values(
            "keda.enabled=true,keda.minReplicas=0,keda.prometheus.serverAddress=http://prometheus:9090",
            "keda.triggers[0].type=cron,keda.triggers[0].metadata.timezone=UTC",
            "keda.prometheus.authenticationRef.name=prometheus,keda.behavior.scaleDown.stabilizationWindowSeconds=60",
        ),
    ),
    "monitor": (
        {},
        set_values("metrics.monitor.enabled=true"),
        set_values("metrics.monitor.enabled=true,metrics.monitor.kind=PodMonitor,metrics.monitor.scrapeTimeout=5s"),
        set_values("metrics.scrapeAnnotations=true"),
    ),
    "alerts": ({}, set_values("metrics.alerts.enabled=true,metrics.alerts.labels.release=prometheus")),
    "dashboards": ({}, set_values("metrics.dashboards.enabled=true,metrics.dashboards.annotations.folder=Agents")),
    "traces": (
        {},
        set_values(
            "otel.endpoint=http://collector:4318,otel.headersSecret.name=otlp,otel.headersSecret.key=headers",
            "otel.sampler=traceidratio,otel.samplerArg=0.1,otel.resourceAttributes.team=a b",
        ),
    ),
    "auth": (
        {},
        set_values("auth.apiKeysSecret.name=callers,auth.apiKeysSecret.key=api-keys,auth.schema=true"),
        merged(
            JWT,
            set_values(
                "auth.metrics=true,metrics.monitor.credentialsSecret.name=callers",
                "metrics.monitor.credentialsSecret.key=prometheus,networkPolicy.egress.rules[0].ports[0].port=8443",
                "helmTest.credentialsSecret.name=callers,helmTest.credentialsSecret.key=helm-test",
            ),
        ),
    ),
    "network": (
        {},
        set_values("networkPolicy.enabled=true"),
        set_values(
            "networkPolicy.enabled=true,networkPolicy.egress.restricted=true",
            "networkPolicy.ingress.from[0].podSelector.matchLabels.role=gateway",
        ),
        set_values("networkPolicy.enabled=true,networkPolicy.egress.restricted=true,networkPolicy.egress.https=false"),
    ),
    "workers": ({}, set_values("agent.workers=4")),
    "source": ({}, {"agent": {"source": AGENT, "files": {"tools.py": TOOLS}}}),
    "budget": (
        {},
        set_values("podDisruptionBudget.enabled=false"),
        set_values("podDisruptionBudget.minAvailable=50%"),
        set_values("podDisruptionBudget.minAvailable=1"),
    ),
    "account": (
        {},
        set_values("serviceAccount.create=false"),
        set_values("serviceAccount.name=me,serviceAccount.annotations.role=reader,serviceAccount.automount=true"),
    ),
    "shutdown": ({}, set_values("shutdown.graceSeconds=14400"), set_values("shutdown.delaySeconds=0")),
    "probes": (
        {},
        set_values("probes.startup.enabled=false,probes.liveness.enabled=false,probes.readiness.enabled=false"),
    ),
    "service": ({}, set_values("service.type=NodePort,service.nodePort=30080,service.port=80,service.labels.a=b")),
    "update": ({}, set_values("strategy.type=Recreate"), set_values("strategy.rollingUpdate.maxSurge=25%")),
    "test": ({}, set_values("helmTest.enabled=false")),
    "pod": (
        {},
        set_values("runtimeClassName=gvisor,hostUsers=false,tmp.medium=Memory,priorityClassName=high"),
        {
            "env": {"MODEL": "large", "ROUNDS": 3, "FAST": True},
            "secretEnv": {"KEY": {"secret": "provider", "key": "api-key", "optional": True}},
            "envFrom": [{"configMapRef": {"name": "more"}}],
            "extraEnv": [{"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            "initContainers": [{"name": "warm", "image": "acme/warm:1", "command": ["warm"]}],
            "sidecars": [{"name": "proxy", "image": "acme/proxy:1"}],
            "topologySpreadConstraints": [
                {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "affinity": {"podAntiAffinity": {}},
            "tolerations": [{"key": "agents", "operator": "Exists"}],
            "nodeSelector": {"pool": "agents"},
            "image": {"digest": "sha256:" + "a" * 64, "pullSecrets": [{"name": "registry"}]},
            "command": ["litestar"],
            "args": ["run"],
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
            "commonLabels": {"team": "agents"},
            "agent": {"name": "support", "version": "v7+dirty/2", "settings": {"syncThreads": 8}},
        },
    ),
}


def pairwise() -> list[dict[str, int]]:
    """Few rows of choices, so that any two choices of two switches meet in one of them."""
    missing = {
        frozenset({(one, i), (other, j)})
        for one, other in itertools.combinations(SWITCHES, 2)
        for i, j in itertools.product(range(len(SWITCHES[one])), range(len(SWITCHES[other])))
    }
    rows = []
    while missing:
        row: dict[str, int] = dict(min(missing, key=sorted))
        for switch, choices in SWITCHES.items():
            if switch not in row:
                gains = [
                    sum(frozenset({(switch, i), taken}) in missing for taken in row.items())
                    for i in range(len(choices))
                ]
                row[switch] = gains.index(max(gains))
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(row)
    return rows


MATRIX = {
    f"matrix-{number}": merged(*(SWITCHES[switch][choice] for switch, choice in row.items()))
    for number, row in enumerate(pairwise())
}
CASES: dict[str, dict[str, Any]] = {"defaults": {}} | {name: example(name) for name in EXAMPLES} | MATRIX

every_case = pytest.mark.parametrize("case", CASES)


@cache
def rendered(case: str) -> Manifests:
    return render(CASES[case])


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# -- The chart as Helm and a cluster see it


@pytest.mark.parametrize("case", ["defaults", *EXAMPLES])
def test_lint_finds_nothing(case: str) -> None:
    report = helm.lint(CHART, CASES[case], strict=True)
    assert report["total_charts_linted"] == 1
    assert report["messages"] == []
    assert report["errors"] == []


def test_the_matrix_has_every_pair_of_choices() -> None:
    rows = pairwise()
    for one, other in itertools.combinations(SWITCHES, 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(range(len(SWITCHES[one])), range(len(SWITCHES[other]))))


def test_the_oldest_kubernetes_is_the_one_that_the_chart_declares() -> None:
    with helm.Chart.load(CHART) as chart:
        assert chart.metadata["kubeVersion"] == f">={OLDEST}.0-0"


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
@every_case
def test_every_manifest_is_what_the_api_takes(case: str, kubernetes: str) -> None:
    found = {
        f"{manifest['kind']}/{manifest['metadata']['name']}": problems
        for manifest in rendered(case)
        if (problems := complaints(manifest, kubernetes))
    }
    assert found == {}


def test_the_check_of_manifests_sees_a_wrong_field() -> None:
    for manifest in rendered("production"):
        assert complaints({**manifest, "spce": {}}, NEWEST), manifest["kind"]


@every_case
def test_no_two_objects_share_a_name(case: str) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered(case)]
    assert len(names) == len(set(names))


@every_case
def test_every_object_says_what_it_belongs_to(case: str) -> None:
    for manifest in rendered(case):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "demo"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"].startswith("agentcore-")
        assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value) for value in labels.values())


@every_case
def test_an_upgrade_with_the_same_values_changes_no_byte(case: str) -> None:
    with helm.Chart.load(CHART) as chart:
        installed = chart.render(CASES[case], name="demo", namespace="agents")
    assert render_text(CASES[case], upgrade=True) == installed


def test_the_app_version_is_that_of_the_service() -> None:
    with helm.Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == __version__
    assert render().agent["image"] == f"litestar-agentcore:{__version__}"


def test_the_packaged_chart_fits_into_a_release(tmp_path: Path) -> None:
    archive = Path(helm.package(CHART, destination=tmp_path))
    assert archive.stat().st_size < MIB / 2, "Helm keeps the chart in a Secret of one mebibyte at most"
    with helm.Chart.load(archive) as chart:
        names = {file["name"] for file in chart.files}
        assert {"README.md", "files/alerts.yaml"} <= names
        assert not [name for name in names if name.startswith("ci/")]
        assert chart.render({}, name="demo", namespace="agents") == render_text()


# -- Values


def unlike(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where the defaults and the schema do not know the same values."""
    known = schema["properties"]
    yield from (path + key for key in values.keys() ^ known.keys())
    for key in values.keys() & known.keys():
        if values[key] and isinstance(values[key], dict) and "properties" in known[key]:
            yield from unlike(values[key], known[key], f"{path}{key}.")


def test_the_schema_and_the_defaults_know_the_same_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    del schema["properties"]["global"]  # Helm's own, where the chart is part of another
    assert list(unlike(yaml.safe_load((CHART / "values.yaml").read_text()), schema)) == []


@pytest.mark.parametrize(
    ("expressions", "named"),
    [
        (["replicas=3"], "'replicas'"),
        (["agent.setings.syncThreads=3"], "'setings'"),
        (["agent.settings.syncThread=3"], "'syncThread'"),
        (["agent.settings.syncThreads=many"], "/agent/settings/syncThreads"),
        (["agent.settings.stallSeconds=soon"], "/agent/settings/stallSeconds"),
        (["agent.settings.stallSeconds=0"], "/agent/settings/stallSeconds"),
        (["agent.workers=0"], "/agent/workers"),
        (["agent.workers=65"], "/agent/workers"),
        (["agent.workers=many"], "/agent/workers"),
        (["agent.workers=2,args={run}"], "args: with agent.workers above 1"),
        (["agent.workers=2,env.WEB_CONCURRENCY=2"], "WEB_CONCURRENCY is set twice"),
        (
            [
                "autoscaling.enabled=true,autoscaling.invocationsPerPod=240,agent.workers=2",
                "agent.settings.maxConcurrentInvocations=20",
            ],
            "never more than 240 invocations",
        ),
        (["agent.settings.syncThreads=0"], "/agent/settings/syncThreads"),
        (["agent.settings.handlerIsolation=threads"], "/agent/settings/handlerIsolation"),
        (["agent.settings.logLevel=info"], "/agent/settings/logLevel"),
        (["agent.settings.maxConcurrentInvocations=0"], "/agent/settings/maxConcurrentInvocations"),
        (["agent.settings.maxWebsockets=many"], "/agent/settings/maxWebsockets"),
        (["agent.settings.queueSize=-1"], "/agent/settings/queueSize"),
        (["agent.settings.invocationTimeoutSeconds=15m"], "/agent/settings/invocationTimeoutSeconds"),
        (["agent.settings.cancelOnDisconnect=0"], "/agent/settings/cancelOnDisconnect"),
        (
            ["agent.settings.maxConcurrentInvocations=8,agent.settings.maxConcurrentPerSession=9"],
            "maxConcurrentPerSession is larger",
        ),
        (
            ["agent.settings.streamTimeoutSeconds=60,agent.settings.streamIdleSeconds=60"],
            "streamIdleSeconds is not smaller",
        ),
        (["streaming.idleSeconds=15"], "streaming.idleSeconds: proxies would cut"),
        (
            ["streaming.idleSeconds=60,agent.settings.sseKeepaliveSeconds=90.5"],
            "after 60 s, and agent.settings.sseKeepaliveSeconds has a comment sent after 90.5 s",
        ),
        (
            [
                "autoscaling.enabled=true,autoscaling.invocationsPerPod=20",
                "agent.settings.maxConcurrentInvocations=20,agent.settings.queueSize=0",
            ],
            "never more than 20 invocations",
        ),
        (
            [
                "autoscaling.enabled=true,autoscaling.invocationsPerPod=120",
                "agent.settings.maxConcurrentInvocations=20",
            ],
            "never more than 120 invocations",
        ),
        (["image.tag=7"], "/image/tag"),
        (["image.digest=sha256:abc"], "/image/digest"),
        (["image.pullPolicy=always"], "/image/pullPolicy"),
        (["service.port=http"], "/service/port"),
        (["service.port=70000"], "/service/port"),
        (["shutdown.graceSeconds=1h"], "/shutdown/graceSeconds"),
        (["shutdown.graceSeconds=-1"], "/shutdown/graceSeconds"),
        (["shutdown.grace=60"], "'grace'"),
        (["probes.readiness.path=ready"], "/probes/readiness/path"),
        (["probes.readyness.path=/ready"], "'readyness'"),
        (["autoscaling.enabled=yes"], "/autoscaling/enabled"),
        (["autoscaling.targetCPU=70"], "'targetCPU'"),
        (["keda.prometheus.serverAddress=prometheus:9090"], "/keda/prometheus/serverAddress"),
        (["podDisruptionBudget.maxUnavailable=half"], "/podDisruptionBudget/maxUnavailable"),
        (["sessionAffinity.controller=nginx"], "/sessionAffinity/controller"),
        (["sessionAffinity.header=X Session"], "/sessionAffinity/header"),
        (["metrics.monitor.kind=Probe"], "/metrics/monitor/kind"),
        (["metrics.monitor.interval=30"], "/metrics/monitor/interval"),
        (["metrics.serviceMonitor.enabled=true"], "'serviceMonitor'"),
        (["otel.endpoint=collector:4317"], "/otel/endpoint"),
        (["otel.protocol=http"], "/otel/protocol"),
        (["secretEnv.KEY.name=provider"], "/secretEnv/KEY"),
        (["env.KEY.value=x"], "/env/KEY"),
        (["ingress.hosts=agent.example.com"], "/ingress/hosts"),
        (["httpRoute.requestTimeout=forever"], "/httpRoute/requestTimeout"),
        (["networkPolicy.ingress.from[0].podSelektor.a=b"], "'podSelektor'"),
        (["nameOverride=Agent"], "/nameOverride"),
        (["autoscaling.enabled=true,keda.enabled=true"], "autoscaling.enabled and keda.enabled"),
        (["autoscaling.enabled=true,autoscaling.minReplicas=20"], "autoscaling.minReplicas"),
        (["autoscaling.enabled=true,autoscaling.cpuUtilization=0"], "autoscaling: nothing to scale by"),
        (["keda.enabled=true"], "keda.prometheus.serverAddress"),
        (["keda.enabled=true,keda.minReplicas=20,keda.prometheus.serverAddress=http://p"], "keda.minReplicas"),
        (["httpRoute.enabled=true"], "httpRoute.parentRefs"),
        (["sessionAffinity.controller=ingress-nginx"], "ingress.enabled=true"),
        (["sessionAffinity.controller=haproxy"], "ingress.enabled=true"),
        (["sessionAffinity.controller=envoy-gateway"], "httpRoute.enabled=true"),
        (
            [
                "ingress.enabled=true,sessionAffinity.controller=ingress-nginx",
                r"ingress.annotations.nginx\.ingress\.kubernetes\.io/service-upstream=true",
            ],
            "/ingress/annotations",
        ),
        (["otel.headersSecret.name=otlp"], "otel.headersSecret.key"),
        (["auth.apiKeysSecret.name=callers"], "auth.apiKeysSecret.key"),
        (["auth.apiKeys=secret"], "'apiKeys'"),
        (["auth.jwt.discoveryUrl=https://issuer.example.com"], "/auth/jwt/discoveryUrl"),
        (["auth.jwt.allowedAudience=agents"], "/auth/jwt/allowedAudience"),
        (["auth.jwt.allowedScopes={a b}"], "/auth/jwt/allowedScopes/0"),
        (["auth.jwt.allowedClients={app}"], "auth.jwt.discoveryUrl: who issues"),
        ([f"auth.jwt.discoveryUrl={DISCOVERY_URL}"], "auth.jwt.discoveryUrl: every token"),
        (["auth.metrics=true"], "auth.metrics and auth.schema need"),
        (["auth.schema=true"], "auth.metrics and auth.schema need"),
        (
            [
                "auth.apiKeysSecret.name=callers,auth.apiKeysSecret.key=keys,auth.metrics=true",
                "metrics.monitor.enabled=true",
            ],
            "metrics.monitor.credentialsSecret",
        ),
        (
            [
                f"auth.jwt.discoveryUrl={DISCOVERY_URL},auth.jwt.allowedClients={{app}},networkPolicy.enabled=true",
                "networkPolicy.egress.restricted=true,networkPolicy.egress.https=false",
            ],
            "networkPolicy.egress: nothing lets the agent reach",
        ),
        (["helmTest.credentialsSecret.name=callers"], "helmTest.credentialsSecret.key"),
        (["env.AGENTCORE_SHUTDOWN_GRACE_SECONDS=5"], "AGENTCORE_SHUTDOWN_GRACE_SECONDS is set twice"),
        (["env.A=1,secretEnv.A.secret=s,secretEnv.A.key=k"], "A is set twice"),
        (["agent.files.tools=x"], "agent.files needs agent.source"),
        (["agent.source=x", r"agent.files.app\.py=y"], "agent.files: app.py"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(expressions: list[str], named: str) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(named)):
        render_text(set_values(*expressions))


@pytest.mark.parametrize(
    "expressions",
    [
        ["agent.settings.maxConcurrentInvocations=8,agent.settings.maxConcurrentPerSession=8"],
        ["agent.settings.maxConcurrentPerSession=2"],
        ["agent.settings.streamIdleSeconds=60"],
        ["agent.settings.streamIdleSeconds=60,agent.settings.streamTimeoutSeconds=0"],
        ["streaming.idleSeconds=16"],
        ["streaming.idleSeconds=15,agent.settings.sseKeepaliveSeconds=0"],
        ["autoscaling.enabled=true,autoscaling.invocationsPerPod=119,agent.settings.maxConcurrentInvocations=20"],
        [
            "autoscaling.enabled=true,autoscaling.invocationsPerPod=239,agent.workers=2",
            "agent.settings.maxConcurrentInvocations=20",
        ],
        ["agent.workers=1,args={litestar,run}"],
    ],
)
def test_limits_that_agree_are_taken(expressions: list[str]) -> None:
    assert render(set_values(*expressions)).one("Deployment")


def test_the_checks_of_limits_know_the_defaults_of_the_server() -> None:
    checks = (CHART / "templates" / "_helpers.tpl").read_text()
    assert re.findall(r"ternary \S+\.sseKeepaliveSeconds (\d+) ", checks) == [f"{Settings().sse_keepalive_seconds:g}"]
    assert re.findall(r"ternary \S*\.queueSize (\d+) ", checks) == [str(Settings().queue_size)]


def test_an_annotation_that_hides_the_pods_is_refused_where_sessions_stick() -> None:
    name = "nginx.ingress.kubernetes.io/service-upstream"
    values = merged(INGRESS, {"ingress": {"annotations": {name: "true"}}})
    assert render(values).one("Ingress")["metadata"]["annotations"] == {name: "true"}
    with pytest.raises(helm.HelmError, match=f"{name} sends everything to the Service"):
        render(merged(values, set_values("sessionAffinity.controller=ingress-nginx")))


def test_a_source_that_no_config_map_can_hold_is_refused() -> None:
    with pytest.raises(helm.HelmError, match="1200000 bytes together"):
        render({"agent": {"source": "#" * 1_200_000}})


def test_large_numbers_stay_whole_numbers() -> None:
    values = set_values(
        "replicaCount=1000000,keda.pollingInterval=2000000,agent.settings.maxBodyBytes=5000000000",
        "podSecurityContext.runAsUser=1000660000,env.LIMIT=3000000,agent.settings.stallSeconds=0.25",
    )
    manifests = render(values)
    assert manifests.one("Deployment")["spec"]["replicas"] == 1_000_000
    assert manifests.pod["securityContext"]["runAsUser"] == 1_000_660_000
    assert manifests.environment["AGENTCORE_MAX_BODY_BYTES"] == "5000000000"
    assert manifests.environment["AGENTCORE_STALL_SECONDS"] == "0.25"
    assert manifests.environment["LIMIT"] == "3000000"


def test_a_release_whose_name_is_a_number_keeps_it_a_string() -> None:
    manifests = render(set_values("fullnameOverride=agent"), name="20261103")
    assert manifests.one("Service")["spec"]["selector"]["app.kubernetes.io/instance"] == "20261103"
    assert not any(complaints(manifest, NEWEST) for manifest in manifests)


# -- The pods


@every_case
def test_selectors_match_the_pods_of_the_release_and_no_other(case: str) -> None:
    manifests = rendered(case)
    (deployment,) = manifests.all("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in manifests.all("Service")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in manifests.all("NetworkPolicy")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in manifests.all("PodDisruptionBudget")]
    selectors += [monitor["spec"]["selector"]["matchLabels"] for monitor in manifests.all("PodMonitor")]
    selectors += [
        constraint["labelSelector"]["matchLabels"] for constraint in manifests.pod.get("topologySpreadConstraints", [])
    ]
    assert len(selectors) >= 2
    for selector in selectors:
        assert selects(selector, labels)
        assert not any(selects(selector, pod["metadata"]["labels"]) for pod in manifests.all("Pod"))


def test_selectors_outlive_new_versions() -> None:
    old, new = render(), render(set_values("image.tag=v2,agent.version=v8,podLabels.a=b,commonLabels.c=d"))
    for kind in ("Deployment", "Service"):
        assert old.one(kind)["spec"]["selector"] == new.one(kind)["spec"]["selector"]
    assert new.pod_templates[0]["metadata"]["labels"]["app.kubernetes.io/version"] == "v8"


def test_a_newer_chart_alone_rolls_no_pod(tmp_path: Path) -> None:
    with helm.Chart.load(helm.package(CHART, destination=tmp_path, version="9.9.9")) as newer:
        text = newer.render({}, name="demo", namespace="agents")["agentcore/templates/deployment.yaml"]
    assert "agentcore-9.9.9" in text
    assert yaml.safe_load(text)["spec"]["template"] == render().one("Deployment")["spec"]["template"]


SAFE_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def forbidden_by_the_restricted_standard(pod: Manifest) -> Iterator[str]:
    """What the Pod Security Standard "restricted" has against a pod."""
    spec = pod["spec"]
    context = spec.get("securityContext", {})
    yield from (host for host in ("hostNetwork", "hostPID", "hostIPC") if spec.get(host))
    yield from (f"volume {it['name']}" for it in spec.get("volumes", []) if not it.keys() - {"name"} <= SAFE_VOLUMES)
    if context.get("sysctls"):
        yield "sysctls"
    for container in containers(spec):
        yield from (f"{container['name']}: {problem}" for problem in forbidden_in_a_container(container, context))


def forbidden_in_a_container(container: Manifest, context: Manifest) -> Iterator[str]:
    own = context | container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    hooks = [
        container.get(probe, {}).get("httpGet", {}) for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    ]
    checks = {
        "privileged": not own.get("privileged"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "runAsNonRoot": own.get("runAsNonRoot") is True,
        "runAsUser": own.get("runAsUser") != 0,
        "seccompProfile": own.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
        "drop ALL": "ALL" in capabilities.get("drop", []),
        "add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "procMount": own.get("procMount", "Default") == "Default",
        "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        "probe host": not any(hook.get("host") for hook in hooks),
    }
    yield from (name for name, fits in checks.items() if not fits)


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


@every_case
def test_every_pod_fits_the_restricted_security_standard(case: str) -> None:
    for pod in rendered(case).pod_templates:
        assert list(forbidden_by_the_restricted_standard(pod)) == []


def test_the_check_of_the_restricted_standard_sees_what_it_forbids() -> None:
    values = {
        "podSecurityContext": {"runAsNonRoot": False, "seccompProfile": None},
        "securityContext": {"capabilities": None},
    }
    found = set(forbidden_by_the_restricted_standard(render(values).pod_templates[0]))
    assert found == {"agent: runAsNonRoot", "agent: seccompProfile", "agent: drop ALL"}


@every_case
def test_no_pod_can_write_but_to_its_volumes_nor_talk_to_the_api(case: str) -> None:
    for pod in rendered(case).pod_templates:
        spec = pod["spec"]
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers(spec))
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["runAsGroup"] == 10001
        asked = CASES[case].get("serviceAccount", {}).get("automount", False) and pod.get("kind") != "Pod"
        assert spec["automountServiceAccountToken"] is asked
    (agent,) = (container for container in rendered(case).pod["containers"] if container["name"] == "agent")
    assert {"name": "tmp", "mountPath": "/tmp"} in agent["volumeMounts"]


def test_a_sidecars_own_security_context_is_left_as_it_is() -> None:
    own = {"readOnlyRootFilesystem": False, "allowPrivilegeEscalation": False}
    sidecar = {"name": "proxy", "image": "acme/proxy:1", "securityContext": own}
    assert render({"sidecars": [sidecar]}).pod["containers"][1] == sidecar


def test_probes_ask_ping_for_life_and_ready_for_traffic() -> None:
    agent = render().agent
    asked = {kind: agent[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/ping", "port": "http"},
        "liveness": {"path": "/ping", "port": "http"},
        "readiness": {"path": "/ready", "port": "http"},
    }
    assert {port["name"]: port["containerPort"] for port in agent["ports"]} == {"http": 8080}
    changed = render(set_values("probes.readiness.path=/health/ready")).agent
    assert changed["readinessProbe"]["httpGet"]["path"] == "/health/ready"


@pytest.mark.parametrize("grace", [60, 4 * 3600])
def test_what_hangs_is_killed_soon_however_long_the_pod_may_take_to_end(grace: int) -> None:
    agent = render(set_values(f"shutdown.graceSeconds={grace}")).agent
    assert agent["livenessProbe"]["terminationGracePeriodSeconds"] == 30
    assert agent["startupProbe"]["terminationGracePeriodSeconds"] == 30
    # The API server refuses it there: a pod that is not ready is not ended.
    assert "terminationGracePeriodSeconds" not in agent["readinessProbe"]
    changed = render(set_values("probes.liveness.graceSeconds=600,probes.startup.graceSeconds=null")).agent
    assert changed["livenessProbe"]["terminationGracePeriodSeconds"] == 600
    assert "terminationGracePeriodSeconds" not in changed["startupProbe"]


@pytest.mark.parametrize("grace", [0, 1, 30, 900, 4 * 3600, 30 * 24 * 3600])
@pytest.mark.parametrize("delay", [0, 5, 45])
def test_one_value_says_how_long_a_pod_may_take_to_end(grace: int, delay: int) -> None:
    manifests = render(set_values(f"shutdown.graceSeconds={grace},shutdown.delaySeconds={delay}"))
    server = Settings.from_environment(manifests.environment)
    assert (server.shutdown_delay_seconds, server.shutdown_grace_seconds) == (delay, grace)
    assert manifests.pod["terminationGracePeriodSeconds"] == delay + grace + 20
    assert "lifecycle" not in manifests.agent


AUTHENTICATION = {
    "jwt_discovery_url": DISCOVERY_URL,
    "jwt_allowed_audience": ("agents", "tools"),
    "jwt_allowed_clients": ("app",),
    "jwt_allowed_scopes": ("agents:invoke",),
    "api_keys_file": "/etc/agentcore/api-keys/keys",
    "auth_metrics": True,
    "auth_schema": True,
}
"""The settings that the values under ``auth`` make."""


def test_who_may_come_in_is_a_value_and_reaches_the_server() -> None:
    values = merged(JWT, set_values("auth.apiKeysSecret.name=callers,auth.apiKeysSecret.key=k,auth.metrics=true"))
    manifests = render(merged(values, set_values("auth.schema=true")))
    settings = Settings.from_environment(manifests.environment)
    assert {name: getattr(settings, name) for name in AUTHENTICATION} == AUTHENTICATION
    secret = {"secretName": "callers", "items": [{"key": "k", "path": "keys"}]}
    assert {"name": "api-keys", "secret": secret} in manifests.pod["volumes"]
    mounts = {mount["mountPath"]: mount for mount in manifests.agent["volumeMounts"] if mount["name"] == "api-keys"}
    assert mounts == {"/etc/agentcore/api-keys": {"name": "api-keys", "mountPath": ANY, "readOnly": True}}


def test_an_agent_that_authenticates_has_open_probes_and_says_so() -> None:
    values = set_values("auth.apiKeysSecret.name=callers,auth.apiKeysSecret.key=api-keys")
    assert "-H 'Authorization: Bearer <token or API key>'" in notes(values)
    assert "Authorization" not in notes()
    probes = [render(values).agent[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert probes == ["/ping", "/ping", "/ready"]


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_prometheus_has_credentials_where_metrics_ask_for_them(kind: str) -> None:
    monitor = render(
        merged(SWITCHES["auth"][2], set_values(f"metrics.monitor.enabled=true,metrics.monitor.kind={kind}"))
    )
    (endpoint,) = monitor.one(kind)["spec"]["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "callers", "key": "prometheus"}}


def snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)


def unlike_default(kind: dict[str, Any], default: Any) -> Any:
    """Another value than the default, of the kind that the schema says."""
    if "examples" in kind:
        return kind["examples"][0]
    if "enum" in kind:
        return next(choice for choice in kind["enum"] if choice != default)
    if kind.get("type") == "boolean":
        return not default
    return (default or 2) * 2


def test_every_setting_of_the_server_is_a_value_and_reaches_it() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    declared = schema["properties"]["agent"]["properties"]["settings"]["properties"]
    elsewhere = {"agent_name", "protocol", "shutdown_delay_seconds", "shutdown_grace_seconds", *AUTHENTICATION}
    snake = {snake_case(name): name for name in declared}
    assert snake.keys() == {field.name for field in fields(Settings)} - elsewhere

    other = {name: unlike_default(declared[value], getattr(Settings(), name)) for name, value in snake.items()}
    other["stream_timeout_seconds"] = 2 * other["stream_idle_seconds"]  # the other way round would be refused
    values = {"agent": {"name": "support", "settings": {snake[name]: value for name, value in other.items()}}}
    assert Settings.from_environment(render(values).environment) == Settings(
        **other, agent_name="support", shutdown_delay_seconds=5, shutdown_grace_seconds=60
    )


PROTOCOLS = ("", "http", "ag-ui", "a2a", "mcp")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_has_its_port_everywhere(protocol: str) -> None:
    port = {"a2a": 9000, "mcp": 8000}.get(protocol, 8080)
    manifests = render(merged(ROUTE, set_values(f"agent.protocol={protocol},metrics.scrapeAnnotations=true")))
    assert manifests.agent["ports"] == [{"name": "http", "containerPort": port, "protocol": "TCP"}]
    template = manifests.one("Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    (served,) = manifests.one("Service")["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (port, "http")
    (rule,) = manifests.one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "demo-agentcore", "port": port}]
    assert manifests.environment.get("AGENTCORE_PROTOCOL", "") == protocol
    assert Settings.from_environment(manifests.environment).protocol == (protocol or None)
    command = manifests.agent.get("command")
    assert command == (None if port == 8080 else ["litestar", "run", "--host", "0.0.0.0", "--port", str(port)])
    workers = render(set_values(f"agent.protocol={protocol},agent.workers=2")).agent["command"]
    assert f"port={port}," in workers[-1]
    chosen = render(set_values(f"agent.protocol={protocol},service.port=80"))
    assert chosen.one("Service")["spec"]["ports"][0]["port"] == 80


@pytest.mark.parametrize(
    ("protocol", "paths"),
    [
        ("", {"/invocations", "/ws", "/ping"}),
        ("http", {"/invocations", "/ws", "/ping"}),
        ("ag-ui", {"/invocations", "/ws", "/ping"}),
        ("a2a", {"/", "/.well-known/agent-card.json", "/ping"}),
        ("mcp", {"/mcp", "/ping"}),
    ],
)
def test_a_protocols_paths_lead_in_and_no_others(protocol: str, paths: set[str]) -> None:
    chosen = set_values(f"agent.protocol={protocol}")
    (rule,) = render(merged(INGRESS, chosen)).one("Ingress")["spec"]["rules"]
    entries = {entry["path"]: entry["pathType"] for entry in rule["http"]["paths"]}
    assert entries == {path: "Exact" if path == "/" else "Prefix" for path in paths}
    (route,) = render(merged(ROUTE, chosen)).one("HTTPRoute")["spec"]["rules"]
    matches = {match["path"]["value"]: match["path"]["type"] for match in route["matches"]}
    assert matches == {path: "Exact" if path == "/" else "PathPrefix" for path in paths}
    own = render(merged(INGRESS, chosen, {"publicPaths": ["/"]})).one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert [(entry["path"], entry["pathType"]) for entry in own] == [("/", "Prefix")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sessions_go_by_the_protocols_own_header(protocol: str) -> None:
    header = "Mcp-Session-Id" if protocol == "mcp" else SESSION_HEADER
    chosen = set_values(f"agent.protocol={protocol}")
    istio = merged(chosen, set_values("sessionAffinity.controller=istio"))
    balancer = render(istio).one("DestinationRule")["spec"]["trafficPolicy"]["loadBalancer"]
    assert balancer["consistentHash"]["httpHeaderName"] == header
    nginx = merged(INGRESS, chosen, set_values("sessionAffinity.controller=ingress-nginx"))
    sessions = render(nginx).named("Ingress", "demo-agentcore-sessions")["metadata"]["annotations"]
    assert sessions["nginx.ingress.kubernetes.io/canary-by-header"] == header
    own = merged(istio, set_values("sessionAffinity.header=X-Own"))
    balancer = render(own).one("DestinationRule")["spec"]["trafficPolicy"]["loadBalancer"]
    assert balancer["consistentHash"]["httpHeaderName"] == "X-Own"


@pytest.mark.parametrize(
    ("protocol", "path", "member"),
    [
        ("", "/invocations", "prompt"),
        ("ag-ui", "/invocations", "threadId"),
        ("a2a", "/", "method"),
        ("mcp", "/mcp", "method"),
    ],
)
def test_helm_test_and_the_notes_call_the_protocol(protocol: str, path: str, member: str) -> None:
    chosen = set_values(f"agent.protocol={protocol}")
    (container,) = render(chosen).one("Pod")["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["CALL"] == path
    assert member in json.loads(environment["PAYLOAD"])
    port = {"a2a": 9000, "mcp": 8000}.get(protocol, 8080)
    assert f"curl http://localhost:{port}{path} " in notes(chosen)
    assert environment["PAYLOAD"] in notes(chosen)


def test_what_is_left_out_of_the_settings_is_no_variable() -> None:
    own = {name for name in render().environment if name.startswith("AGENTCORE_")}
    assert own == {"AGENTCORE_SHUTDOWN_DELAY_SECONDS", "AGENTCORE_SHUTDOWN_GRACE_SECONDS"}


def test_zero_and_false_are_values() -> None:
    off: dict[str, Any] = {
        "queueSize": 0,
        "queueTimeoutSeconds": 0,
        "invocationTimeoutSeconds": 0,
        "streamTimeoutSeconds": 0,
        "streamIdleSeconds": 0,
        "sseKeepaliveSeconds": 0,
        "bodyIdleSeconds": 0,
        "sessionIdleSeconds": 0,
        "cancelOnDisconnect": False,
    }
    environment = render({"agent": {"settings": off}}).environment
    for name, value in off.items():
        assert environment[f"AGENTCORE_{snake_case(name).upper()}"] == str(value).lower()
    assert Settings.from_environment(environment) == Settings(
        **{snake_case(name): value for name, value in off.items()}, shutdown_delay_seconds=5, shutdown_grace_seconds=60
    )


def test_the_comments_of_the_values_tell_of_every_setting_and_its_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    told = dict(re.findall(r"^  #   (\w+): (\S+) {2,}\S", (CHART / "values.yaml").read_text(), re.MULTILINE))
    assert sorted(told) == sorted(schema["properties"]["agent"]["properties"]["settings"]["properties"])
    for name, text in told.items():
        default = getattr(Settings(), snake_case(name))
        assert (None if text == "unlimited" else yaml.safe_load(text)) == default, name


def test_the_example_for_production_has_the_time_limits_of_agentcore() -> None:
    settings = Settings.from_environment(render(example("production")).environment)
    assert (settings.invocation_timeout_seconds, settings.stream_timeout_seconds) == (900, 3600)
    assert settings.shutdown_grace_seconds >= settings.invocation_timeout_seconds


def test_variables_come_from_values_secrets_and_fields() -> None:
    manifests = render(SWITCHES["pod"][-1])
    variables = {variable["name"]: variable for variable in manifests.agent["env"]}
    assert [variables[name]["value"] for name in ("MODEL", "ROUNDS", "FAST")] == ["large", "3", "true"]
    reference = {"name": "provider", "key": "api-key", "optional": True}
    assert variables["KEY"]["valueFrom"] == {"secretKeyRef": reference}
    assert variables["NODE_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert manifests.agent["envFrom"] == [{"configMapRef": {"name": "more"}}]


def test_traces_know_where_to_go_and_where_they_come_from() -> None:
    manifests = render(SWITCHES["traces"][1])
    environment = manifests.environment
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert environment["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert (environment["OTEL_TRACES_SAMPLER"], environment["OTEL_TRACES_SAMPLER_ARG"]) == ("traceidratio", "0.1")
    attributes = dict(member.split("=", 1) for member in environment["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    assert attributes["team"] == "a%20b"
    names = [variable["name"] for variable in manifests.agent["env"]]
    for attribute, field in {"k8s.pod.name": "metadata.name", "k8s.namespace.name": "metadata.namespace"}.items():
        name = attributes[attribute].removeprefix("$(").removesuffix(")")
        variable = manifests.agent["env"][names.index(name)]
        assert variable["valueFrom"]["fieldRef"]["fieldPath"] == field
        assert names.index(name) < names.index("OTEL_RESOURCE_ATTRIBUTES"), "only earlier variables are expanded"
    headers = manifests.agent["env"][names.index("OTEL_EXPORTER_OTLP_HEADERS")]["valueFrom"]
    assert headers == {"secretKeyRef": {"name": "otlp", "key": "headers"}}
    assert not [name for name in render().environment if name.startswith("OTEL_EXPORTER")]


# -- An agent without an image build


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    """What ``--set-file`` makes of two files."""
    (tmp_path / "app.py").write_text(AGENT)
    (tmp_path / "tools.py").write_text(TOOLS)
    expression = rf"agent.source={tmp_path}/app.py,agent.files.tools\.py={tmp_path}/tools.py"
    values: dict[str, Any] = helm.parse_set_file(expression)
    return values


def test_a_source_file_takes_the_place_of_the_image_s(source: dict[str, Any]) -> None:
    manifests = render(source)
    config = manifests.one("ConfigMap")
    assert config["data"] == {"app.py": AGENT, "tools.py": TOOLS}
    assert config["immutable"] is True, "a pod's files do not change while it runs"
    name = config["metadata"]["name"]
    assert name.startswith("demo-agentcore-source-")
    assert {"name": "source", "mountPath": "/app", "readOnly": True} in manifests.agent["volumeMounts"]
    assert {"name": "source", "configMap": {"name": name}} in manifests.pod["volumes"]


def test_a_changed_source_rolls_the_pods_and_an_unchanged_one_does_not(source: dict[str, Any]) -> None:
    def template(values: dict[str, Any]) -> Manifest:
        pods: Manifest = render(values).one("Deployment")["spec"]["template"]
        return pods

    assert template(source) == template(source)
    for changed in ({"source": AGENT + "\n"}, {"files": {"tools.py": TOOLS + "\n"}}):
        assert template(merged(source, {"agent": changed})) != template(source)


def mounted(source: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    """The directory of a source as Kubernetes mounts it, and one with what the image has installed."""
    directory, revision = tmp_path / "app", tmp_path / "app" / "..2026_11_03"
    revision.mkdir(parents=True)
    (directory / "..data").symlink_to(revision.name)
    for name, text in render(source).one("ConfigMap")["data"].items():
        (revision / name).write_text(text)
        (directory / name).symlink_to(Path("..data") / name)
    installed = tmp_path / "installed"
    installed.mkdir()
    for package in ("service/litestar_agentcore", "telemetry/agentcore_telemetry"):
        (installed / Path(package).name).symlink_to(ROOT / package)
    return directory, installed


def test_the_start_command_serves_the_mounted_source(source: dict[str, Any], tmp_path: Path) -> None:
    directory, installed = mounted(source, tmp_path)
    port = free_port()
    # The image has the service installed, and the command starts where the source is mounted.
    start = 'cd "$1" && PYTHONPATH="$1:$2" exec "$3" run --host 127.0.0.1 --port "$4"'
    command = ["sh", "-c", start, "sh", directory, installed, Path(sys.executable).with_name("litestar"), port]
    with run([str(argument) for argument in command], port) as agent, agent.client() as client:
        answer = client.post("/invocations", json={"prompt": "hello"})
    assert answer.json() == "HELLO"


# -- Several workers


def test_one_process_is_what_the_image_starts_unless_workers_are_asked_for() -> None:
    for values in ({}, set_values("agent.workers=null"), set_values("agent.workers=1")):
        assert "command" not in render(values).agent
    assert "WEB_CONCURRENCY" not in render().environment
    assert render(set_values("agent.workers=1")).environment["WEB_CONCURRENCY"] == "1"


def test_a_command_of_ones_own_is_kept_and_told_how_many_workers() -> None:
    manifests = render(set_values("agent.workers=3,command={uvicorn},args={agent:app,--proxy-headers}"))
    assert (manifests.agent["command"], manifests.agent["args"]) == (["uvicorn"], ["agent:app", "--proxy-headers"])
    assert manifests.environment["WEB_CONCURRENCY"] == "3"


def test_the_workers_of_a_pod_serve_its_source_and_end_gracefully_with_it(tmp_path: Path) -> None:
    values = merged(set_values("agent.workers=2"), {"agent": {"source": WORKERS_AGENT}})
    manifests = render(values)
    directory, installed = mounted(values, tmp_path)
    python, *arguments = manifests.agent["command"]
    assert python == "python"

    def start(port: int) -> list[str]:
        settings = [f"{name}={value}" for name, value in manifests.environment.items() if not name.startswith("OTEL_")]
        own = [argument.replace("8080", str(port)).replace("0.0.0.0", "127.0.0.1") for argument in arguments]
        where = ["sh", "-c", 'cd "$1" && shift && exec env "$@"', "sh", str(directory), f"PYTHONPATH={installed}"]
        return [*where, *settings, sys.executable, *own]

    def running() -> float:
        found = metrics(prober)
        return sum(found[name] for name in found if name.startswith("agentcore_invocations_in_progress"))

    def is_ending() -> bool:
        try:
            return httpx.get(f"{workers.url}/ready", trust_env=False).status_code == 503
        except httpx.TransportError:
            return True

    until = tmp_path / "until"
    with served(start) as workers, ThreadPoolExecutor() as pool:
        pids = set(workers.clients)
        try:
            with workers.client() as prober:
                asked = [
                    pool.submit(client.post, "/invocations", json={"until": str(until)}, timeout=WORKERS_PATIENCE)
                    for client in workers.clients.values()
                ]
                eventually(lambda: running() == 2)
            workers.process.terminate()  # the main process alone, as a kubelet does
            eventually(is_ending)
        finally:
            until.touch()
        answers = [future.result() for future in asked]
        assert {answer.json()["pid"] for answer in answers} <= pids
        assert workers.process.wait(WORKERS_PATIENCE) == 0
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


# -- Names


LONG = "a" * 52


def names(manifests: Manifests) -> set[tuple[str, str]]:
    return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}


@every_case
def test_long_releases_in_one_namespace_have_valid_names_and_do_not_collide(case: str) -> None:
    values = merged(CASES[case], {"serviceAccount": {"name": ""}})
    first, second = render(values, name=LONG + "y"), render(values, name=LONG + "z")
    assert names(first).isdisjoint(names(second))
    for kind, name in names(first):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= (63 if kind == "Service" else 253)
    for service in first.all("Service"):
        assert not selects(service["spec"]["selector"], second.pod_templates[0]["metadata"]["labels"])


def test_short_releases_in_one_namespace_do_not_collide() -> None:
    assert names(render(name="one")).isdisjoint(names(render(name="other")))


@pytest.mark.parametrize("value", ["fullnameOverride", "nameOverride"])
def test_names_of_ones_own_are_cut_too(value: str) -> None:
    manifests = render(merged(example("affinity-ingress-nginx"), {value: "b" * 63}), name=LONG)
    assert not any(complaints(manifest, NEWEST) for manifest in manifests)
    services = [service["metadata"]["name"] for service in manifests.all("Service")]
    assert sorted(map(len, services)) == [63, 63]
    assert len(set(services)) == 2
    assert all(len(label) <= 63 for it in manifests for label in it["metadata"]["labels"].values())


# -- Size


@every_case
def test_one_thing_at_most_decides_how_many_pods_there_are(case: str) -> None:
    manifests = rendered(case)
    deciding = [
        "replicas" in manifests.one("Deployment")["spec"],
        bool(manifests.all("HorizontalPodAutoscaler")),
        bool(manifests.all("ScaledObject")),
    ]
    assert deciding.count(True) == 1


def test_an_autoscaler_scales_by_cpu_and_by_invocations() -> None:
    manifests = render(SWITCHES["scaling"][3])
    scaler = manifests.one("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == manifests.one("Deployment")["metadata"]["name"]
    pods = {
        "metric": {"name": "agentcore_invocations_in_progress"},
        "target": {"type": "AverageValue", "averageValue": "8"},
    }
    assert {"type": "Pods", "pods": pods} in scaler["metrics"]
    resources = {
        metric["resource"]["name"]: metric["resource"]["target"]["averageUtilization"]
        for metric in scaler["metrics"]
        if metric["type"] == "Resource"
    }
    assert resources == {"cpu": 70, "memory": 80}


def check_rules(groups: list[Manifest], path: Path) -> str:
    path.write_text(yaml.safe_dump({"groups": groups}))
    command = [executable("promtool"), "check", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_keda_asks_prometheus_for_the_work_of_this_release(tmp_path: Path) -> None:
    values = merged(SWITCHES["scaling"][5], set_values("metrics.monitor.enabled=true"))
    manifests = render(values, name="support", namespace="team-a")
    scaled = manifests.one("ScaledObject")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 10)
    assert scaled["scaleTargetRef"]["name"] == manifests.one("Deployment")["metadata"]["name"]
    own, further = scaled["triggers"]
    query = own["metadata"]["query"]
    assert query.count('{namespace="team-a",agent="support-agentcore"}') == 3
    assert (own["metadata"]["threshold"], own["metadata"]["activationThreshold"]) == ("10", "0")
    assert further["type"] == "cron"
    check_rules([{"name": "keda", "rules": [{"record": "agentcore:work", "expr": query}]}], tmp_path / "rules.yaml")


def test_scaling_to_zero_is_told_for_what_it_is() -> None:
    keda = set_values("keda.enabled=true,keda.prometheus.serverAddress=http://prometheus:9090")
    assert "scales to zero" not in notes(keda)
    zero = merged(keda, set_values("keda.minReplicas=0"))
    assert "NOTHING WAKES IT" in notes(zero)
    assert "clients must retry" in notes(example("scale-to-zero"))


# -- Ways in


def backend(ingress: Manifest) -> str:
    services = {
        path["backend"]["service"]["name"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]
    }
    (service,) = services
    return str(service)


@every_case
def test_every_way_in_leads_to_a_service_of_the_release(case: str) -> None:
    manifests = rendered(case)
    services = {service["metadata"]["name"]: service["spec"]["ports"] for service in manifests.all("Service")}
    for ingress in manifests.all("Ingress"):
        assert [port["name"] for port in services[backend(ingress)]] == ["http"]
    for route in manifests.all("HTTPRoute"):
        (reference,) = route["spec"]["rules"][0]["backendRefs"]
        assert reference["port"] in [port["port"] for port in services[reference["name"]]]


def test_metrics_and_schema_stay_inside() -> None:
    paths = {"/invocations", "/ws", "/ping"}
    ingress = render(INGRESS).one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert {path["path"] for path in ingress} == paths
    matches = render(ROUTE).one("HTTPRoute")["spec"]["rules"][0]["matches"]
    assert {match["path"]["value"] for match in matches} == paths


def test_ingress_nginx_sends_sessions_one_way_and_the_rest_another() -> None:
    manifests = render(example("affinity-ingress-nginx"))
    plain, sessions = (
        manifests.named("Ingress", "demo-agentcore"),
        manifests.named("Ingress", "demo-agentcore-sessions"),
    )
    prefix = "nginx.ingress.kubernetes.io/"
    assert sessions["metadata"]["annotations"] == {
        f"{prefix}canary": "true",
        f"{prefix}canary-by-header": SESSION_HEADER,
        f"{prefix}canary-by-header-pattern": ".+",
        f"{prefix}upstream-hash-by": "$http_x_amzn_bedrock_agentcore_runtime_session_id",
    }
    assert not [name for name in plain["metadata"]["annotations"] if "hash" in name]
    assert backend(plain) != backend(sessions), "ingress-nginx ignores a canary with the Service of its main Ingress"
    assert plain["spec"]["tls"] == sessions["spec"]["tls"]
    strip = json.dumps(sessions["spec"]["rules"]).replace("-sessions", "")
    assert json.loads(strip) == plain["spec"]["rules"], "a canary is found by the host and the path of its main Ingress"


def test_ingress_nginx_lets_streams_and_large_bodies_through() -> None:
    values = merged(
        example("affinity-ingress-nginx"), set_values("streaming.idleSeconds=7200,agent.settings.maxBodyBytes=5000000")
    )
    annotations = render(values).named("Ingress", "demo-agentcore")["metadata"]["annotations"]
    assert annotations == {
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-http-version": "1.1",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": "7200",
        "nginx.ingress.kubernetes.io/proxy-send-timeout": "7200",
        "nginx.ingress.kubernetes.io/proxy-body-size": "5000000",
    }


def test_the_largest_body_of_an_ingress_is_that_of_the_server() -> None:
    annotations = render(example("affinity-ingress-nginx")).all("Ingress")[0]["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == str(Settings().max_body_bytes)


def test_haproxy_hashes_the_header_onto_a_ring_that_outlives_pods() -> None:
    values = merged(example("affinity-haproxy"), set_values("streaming.idleSeconds=7200"))
    assert render(values).one("Ingress")["metadata"]["annotations"] == {
        "haproxy-ingress.github.io/balance-algorithm": f"hdr({SESSION_HEADER})",
        "haproxy-ingress.github.io/config-backend": "hash-type consistent",
        "haproxy-ingress.github.io/assign-backend-server-id": "true",
        "haproxy-ingress.github.io/initial-weight": "100",
        "haproxy-ingress.github.io/timeout-server": "7200s",
        "haproxy-ingress.github.io/timeout-tunnel": "7200s",
    }


def test_envoy_gateway_hashes_the_header_for_the_route() -> None:
    manifests = render(SWITCHES["door"][6])
    policy = manifests.one("BackendTrafficPolicy")["spec"]
    target = {
        "group": "gateway.networking.k8s.io",
        "kind": "HTTPRoute",
        "name": manifests.one("HTTPRoute")["metadata"]["name"],
    }
    assert policy["targetRefs"] == [target]
    hashing = {"type": "Header", "header": {"name": SESSION_HEADER}}
    assert policy["loadBalancer"] == {"type": "ConsistentHash", "consistentHash": hashing}


def test_envoy_gateway_closes_idle_connections_before_the_server_does() -> None:
    policy = render(example("affinity-envoy-gateway")).one("BackendTrafficPolicy")["spec"]
    assert policy["timeout"] == {"http": {"connectionIdleTimeout": f"{SERVER_KEEP_ALIVE - 1}s"}}


def test_envoy_gateway_leaves_it_to_the_agent_how_much_is_enough() -> None:
    policy = render(example("affinity-envoy-gateway")).one("BackendTrafficPolicy")["spec"]
    limits = ("maxConnections", "maxPendingRequests", "maxParallelRequests")
    assert policy["circuitBreaker"] == dict.fromkeys(limits, 2**32 - 1)


def test_istio_hashes_the_header_for_the_service() -> None:
    manifests = render(example("affinity-istio"), namespace="team-a")
    rule = manifests.one("DestinationRule")["spec"]
    assert rule["host"] == f"{manifests.one('Service')['metadata']['name']}.team-a.svc.cluster.local"
    hashing = {"httpHeaderName": SESSION_HEADER, "maglev": {}}
    assert rule["trafficPolicy"]["loadBalancer"]["consistentHash"] == hashing


def test_istio_closes_idle_connections_before_the_server_does() -> None:
    rule = render(example("affinity-istio")).one("DestinationRule")["spec"]
    assert rule["trafficPolicy"]["connectionPool"] == {"http": {"idleTimeout": f"{SERVER_KEEP_ALIVE - 1}s"}}


def test_a_route_sets_streams_no_end_unless_told_to() -> None:
    assert render(ROUTE).one("HTTPRoute")["spec"]["rules"][0]["timeouts"] == {"request": "0s"}
    limited = render(merged(ROUTE, set_values("httpRoute.requestTimeout=")))
    assert "timeouts" not in limited.one("HTTPRoute")["spec"]["rules"][0]


def test_annotations_of_ones_own_win() -> None:
    name = "nginx.ingress.kubernetes.io/proxy-read-timeout"
    values = merged(example("affinity-ingress-nginx"), {"ingress": {"annotations": {name: "60", "a/b": "c"}}})
    annotations = render(values).named("Ingress", "demo-agentcore")["metadata"]["annotations"]
    assert (annotations[name], annotations["a/b"]) == ("60", "c")


def ports(rules: list[Manifest]) -> set[tuple[str, Any]]:
    return {(port["protocol"], port["port"]) for rule in rules for port in rule["ports"]}


def test_the_network_policy_lets_requests_in_from_everyone_or_from_whom_it_is_told() -> None:
    (open_rule,) = render(SWITCHES["network"][1]).one("NetworkPolicy")["spec"]["ingress"]
    assert open_rule == {"ports": [{"port": "http", "protocol": "TCP"}]}
    manifests = render(SWITCHES["network"][2])
    (rule,) = manifests.one("NetworkPolicy")["spec"]["ingress"]
    gateway, test = rule["from"]
    assert gateway == {"podSelector": {"matchLabels": {"role": "gateway"}}}
    assert selects(test["podSelector"]["matchLabels"], manifests.one("Pod")["metadata"]["labels"])


def test_the_network_policy_leaves_egress_open_unless_it_is_restricted() -> None:
    spec = render(SWITCHES["network"][1]).one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert "egress" not in spec


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.observability:4318", 4318),
        ("http://collector.observability:4317/", 4317),
        ("https://otlp.example.com/v1", 443),
        ("http://collector", 80),
        ("http://[2001:db8::1]:4318", 4318),
        ("http://[2001:db8::1]", 80),
    ],
)
def test_restricted_egress_reaches_dns_and_the_collector(endpoint: str, port: int) -> None:
    values = merged(SWITCHES["network"][3], set_values(f"otel.endpoint={endpoint}"))
    policy = render(values).one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert ports(policy["egress"]) == {("UDP", 53), ("TCP", 53), ("TCP", port)}


def test_restricted_egress_reaches_model_providers_but_not_the_metadata_service() -> None:
    rules = render(SWITCHES["network"][2]).one("NetworkPolicy")["spec"]["egress"]
    assert ports(rules) == {("UDP", 53), ("TCP", 53), ("TCP", 443)}
    (https,) = [rule for rule in rules if "to" in rule]
    excepted = [cidr for peer in https["to"] for cidr in peer["ipBlock"]["except"]]
    assert {"169.254.0.0/16", "fd00:ec2::/32"} <= set(excepted)


# -- What it tells


@every_case
def test_a_service_monitor_finds_the_pods_once(case: str) -> None:
    manifests = rendered(case)
    for monitor in manifests.all("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        found = [service for service in manifests.all("Service") if selects(selector, service["metadata"]["labels"])]
        assert [service["metadata"]["name"] for service in found] == ["demo-agentcore"]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in [port["name"] for port in found[0]["spec"]["ports"]]


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_targets_carry_the_release_and_the_version_of_the_agent(kind: str) -> None:
    values = set_values(
        f"metrics.monitor.enabled=true,metrics.monitor.kind={kind},agent.version=v7,metrics.monitor.labels.a=b"
    )
    manifests = render(values)
    monitor = manifests.one(kind)
    assert monitor["metadata"]["labels"]["a"] == "b"
    (endpoint,) = monitor["spec"]["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
    assert (endpoint["path"], endpoint["port"]) == ("/metrics", "http")
    rules = {rule["targetLabel"]: rule for rule in endpoint["relabelings"]}
    assert rules["agent"]["replacement"] == manifests.one("Deployment")["metadata"]["name"]
    (source_label,) = rules["agent_version"]["sourceLabels"]
    label = source_label.removeprefix("__meta_kubernetes_pod_label_")
    pod = manifests.pod_templates[0]["metadata"]["labels"]
    assert {re.sub(r"[^A-Za-z0-9_]", "_", name): value for name, value in pod.items()}[label] == "v7"
    job = rules["job"]["replacement"] if kind == "PodMonitor" else manifests.one("Service")["metadata"]["name"]
    assert job == "demo-agentcore"


def test_the_alerts_are_the_files_and_prometheus_takes_them(tmp_path: Path) -> None:
    rule = render(SWITCHES["alerts"][1]).one("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    count = sum(len(group["rules"]) for group in rule["spec"]["groups"])
    assert f"SUCCESS: {count} rules found" in check_rules(rule["spec"]["groups"], tmp_path / "rules.yaml")


def test_every_dashboard_is_a_config_map_that_grafana_finds() -> None:
    files = {path.name: path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")}
    assert files
    values = merged(SWITCHES["dashboards"][1], set_values("metrics.dashboards.namespace=grafana"))
    maps = render(values).all("ConfigMap")
    assert {name: json.loads(text) for config in maps for name, text in config["data"].items()} == {
        name: json.loads(text) for name, text in files.items()
    }
    for config in maps:
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert config["metadata"]["annotations"] == {"folder": "Agents"}
        assert config["metadata"]["namespace"] == "grafana"
        assert len(json.dumps(config)) < MIB


# -- What people read


@every_case
def test_the_notes_name_what_is_there(case: str) -> None:
    text = notes(CASES[case])
    assert "<no value>" not in text
    assert "%!" not in text
    names = {f"{manifest['kind'].lower()}/{manifest['metadata']['name']}" for manifest in rendered(case)}
    assert set(re.findall(r"(?:service|deployment)/[a-z0-9-]+", text)) <= names


def test_the_notes_lead_to_the_first_invocation() -> None:
    plain = notes()
    assert "port-forward service/demo-agentcore 8080:8080" in plain
    assert "helm --namespace agents test demo" in plain
    assert "logs deployment/demo-agentcore" in plain
    assert "curl http://agent.example.com/invocations" in notes(INGRESS)
    assert "curl https://agent.example.com/invocations" in notes(example("affinity-ingress-nginx"))
    assert "rollout status" in notes(set_values("helmTest.enabled=false"))
    assert "may take up to 14425 seconds" in notes(set_values("shutdown.graceSeconds=14400"))


def test_the_readme_speaks_of_values_that_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = (CHART / "README.md").read_text()
    named = re.findall(r"`([a-z][A-Za-z]*(?:\.[a-z][A-Za-z]*)+)(?:=[^`]*)?`", text)
    named += re.findall(r"--set(?:-file)? '?([a-z][A-Za-z]*(?:\.[a-z][A-Za-z]*)+)=", text)
    assert len(set(named)) >= 12
    settings = json.loads((CHART / "values.schema.json").read_text())["properties"]["agent"]["properties"]["settings"]
    values["agent"]["settings"] = settings["properties"]
    for name in named:
        found = values
        for key in name.split("."):
            assert key in found, f"{name} is no value of the chart"
            found = found[key]


# -- helm test


@contextmanager
def quick_start() -> Iterator[Server]:
    port = free_port()
    with run(litestar_run("app", port), port) as server:
        yield server


def helm_test(
    agent: Server, values: dict[str, Any], secrets: Mapping[str, str] = MappingProxyType({})
) -> "subprocess.CompletedProcess[str]":
    """Run what the test's pod runs, against an agent.

    Args:
        agent: The agent.
        values: The chart's values.
        secrets: What the keys of the Secrets hold that the pod refers to.
    """
    (container,) = render(values).one("Pod")["spec"]["containers"]
    environment = {
        variable["name"]: variable["value"]
        if "value" in variable
        else secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
        for variable in container["env"]
    }
    assert environment["AGENT_URL"] == "http://demo-agentcore:8080"
    command = [sys.executable, *container["command"][1:], *container["args"]]
    return subprocess.run(
        command, env=environment | {"AGENT_URL": agent.url}, capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_helm_test_passes_where_the_agent_answers_and_fails_where_it_does_not() -> None:
    with quick_start() as agent:
        good = helm_test(agent, {})
        bad = helm_test(agent, {"helmTest": {"payload": {"prompt": 1}}})
    gone = helm_test(Server(free_port()), {"helmTest": {"timeoutSeconds": 1}})
    assert (good.returncode, good.stderr) == (0, "")
    assert "You said: hello" in good.stdout
    assert (bad.returncode, "400: " in bad.stderr) == (1, True)
    assert (gone.returncode, "cannot be reached" in gone.stderr) == (1, True)


def test_helm_test_waits_until_the_agent_can_be_reached() -> None:
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(helm_test, Server(port), {})
        with run(litestar_run("app", port), port):
            done = waiting.result()
    assert (done.returncode, done.stderr) == (0, "")


def test_helm_test_has_credentials_or_sees_that_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("helm-test:right\n")
    monkeypatch.setenv("AGENTCORE_API_KEYS_FILE", str(keys))
    refused = set_values("auth.apiKeysSecret.name=callers,auth.apiKeysSecret.key=keys")
    let_in = merged(refused, set_values("helmTest.credentialsSecret.name=callers,helmTest.credentialsSecret.key=key"))
    with quick_start() as guarded:
        without = helm_test(guarded, refused)
        right = helm_test(guarded, let_in, {"key": "right\n"})
        wrong = helm_test(guarded, let_in, {"key": "wrong"})
    monkeypatch.delenv("AGENTCORE_API_KEYS_FILE")
    with quick_start() as open_to_all:
        unguarded = helm_test(open_to_all, refused)
    assert (without.returncode, without.stderr) == (0, "")
    assert "refuses callers without credentials" in without.stdout
    assert (right.returncode, right.stderr) == (0, "")
    assert "You said: hello" in right.stdout
    assert (wrong.returncode, "401: " in wrong.stderr) == (1, True)
    assert (unguarded.returncode, "expected 401, got 200" in unguarded.stderr) == (1, True)


@every_case
def test_helm_test_is_a_hook_with_the_image_of_the_agent(case: str) -> None:
    manifests = rendered(case)
    pods = manifests.all("Pod")
    assert len(pods) == (CASES[case].get("helmTest", {}).get("enabled", True) is True)
    for pod in pods:
        assert pod["metadata"]["annotations"] == {
            "helm.sh/hook": "test",
            "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
        }
        assert pod["spec"]["restartPolicy"] == "Never"
        (container,) = pod["spec"]["containers"]
        assert container["image"] == manifests.agent["image"]
