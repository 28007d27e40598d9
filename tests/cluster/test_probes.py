"""The chart's probes, as a kubelet asks them: what is not up is let be, what hangs restarted, what ends may finish."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.kubernetes import (
    PATIENCE,
    Client,
    Cluster,
    Namespace,
    Release,
    agent_source,
    eventually,
    exit_codes,
    is_ready,
    watched_pods,
)
from tests.e2e.chart import render

pytestmark = pytest.mark.serial

LIVENESS = render().agent["livenessProbe"]

SLACK_SECONDS = 20.0
"""What a kubelet may take on top, on a machine with other things to do."""


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


def restarts(release: Release) -> int:
    (status,) = release.pod()["status"].get("containerStatuses") or [{"restartCount": 0}]
    count: int = status["restartCount"]
    return count


def test_an_agent_that_takes_long_to_start_is_not_restarted_and_gets_no_requests_meanwhile(
    namespace: Namespace,
) -> None:
    """Longer than the liveness probe would wait, were there no startup probe."""
    seconds = LIVENESS["periodSeconds"] * LIVENESS["failureThreshold"] + 5
    release = Release(namespace, values=agent_source() | {"env": {"IMPORT_SECONDS": seconds}})
    began = time.monotonic()
    release.install(wait=False)
    eventually(lambda: release.pods() and release.pod()["status"]["phase"] == "Running", "the container runs")
    assert not release.ready_pods()
    eventually(release.ready_pods, "it is ready in the end")
    assert time.monotonic() - began >= seconds
    assert restarts(release) == 0


def test_an_agent_that_never_comes_up_is_restarted(namespace: Namespace) -> None:
    values = {"env": {"IMPORT_SECONDS": 10_000}, "probes": {"startup": {"failureThreshold": 5}}}
    release = Release(namespace, values=agent_source() | values)
    began = time.monotonic()
    release.install(wait=False)
    eventually(lambda: release.pods() and restarts(release) == 1, "it is restarted")
    took = time.monotonic() - began
    pod = release.pod()
    assert not is_ready(pod)
    assert any("Startup probe failed" in message for message in namespace.events(pod["metadata"]["name"], "Unhealthy"))
    most = 5 * 2 + render().agent["startupProbe"]["terminationGracePeriodSeconds"] + SLACK_SECONDS
    assert took < most, f"{took:.0f} s, and {most:.0f} s at most were expected"


@pytest.mark.parametrize("grace", [60, 14_400])
def test_an_agent_that_hangs_is_restarted_soon_however_long_its_grace_is(namespace: Namespace, grace: int) -> None:
    """It holds the interpreter, so that it answers no probe, and takes no SIGTERM either."""
    client = Client.started(namespace)
    release = Release(namespace, values=agent_source() | {"shutdown": {"graceSeconds": grace}})
    client.install(release)
    pod = release.pod()["metadata"]["name"]
    ask = json.dumps({"do": "hold the interpreter"})
    began = time.monotonic()
    call = client.program("call", release.url, "POST", "/invocations", "--body", ask, "--seconds=1")
    assert "ReadTimeout" in namespace.run(*call).stderr
    eventually(lambda: not release.ready_pods(), "the pod gets no more requests")
    unready = time.monotonic() - began
    eventually(lambda: restarts(release) == 1, "it is restarted")
    restarted = time.monotonic() - began
    eventually(release.ready_pods, "it is ready again")
    ready = time.monotonic() - began

    print(f"grace {grace} s: not ready after {unready:.1f} s, restarted after {restarted:.1f} s, ready {ready:.1f} s")
    assert client.invoke(release)["pod"] == pod
    assert any("Liveness probe failed" in message for message in namespace.events(pod, "Unhealthy"))
    (status,) = release.pod()["status"]["containerStatuses"]
    assert status["lastState"]["terminated"]["exitCode"] == 137
    probing = (LIVENESS["periodSeconds"] + LIVENESS["timeoutSeconds"]) * LIVENESS["failureThreshold"]
    assert restarted < probing + LIVENESS["terminationGracePeriodSeconds"] + SLACK_SECONDS


def test_a_pod_that_is_told_to_end_is_taken_out_of_the_service_finishes_and_is_not_ready(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace, values=agent_source())
    client.install(release)
    pod = release.pod()
    name, url = pod["metadata"]["name"], f"http://{pod['status']['podIP']}:8080"
    client.invoke(release, do="research", seconds=25, task="long", report=client.report)
    assert endpoint(release, name) == {"ready": True, "serving": True, "terminating": False}

    with watched_pods(release) as pods:
        namespace.kubectl("delete", "pod", name, "--wait=false")
        eventually(lambda: (endpoint(release, name) or {}).get("terminating"), "the Service knows", 10)
        assert endpoint(release, name)["ready"] is False
        eventually(lambda: client.call(url, "GET", "/ready")["status"] == 503, "it is not ready", 30)
        assert json.loads(client.call(url, "GET", "/ready")["body"]) == {"ready": False}
        ping = client.call(url, "GET", "/ping")
        assert (ping["status"], json.loads(ping["body"])["status"]) == (200, "HealthyBusy")
        answer = client.call(url, "POST", "/invocations", {"do": "answer"})
        assert answer["headers"]["connection"] == "close"
        eventually(
            lambda: client.call(url, "POST", "/invocations", {"do": "answer"})["status"] == 503, "it takes no more", 30
        )
        eventually(lambda: endpoint(release, name).get("serving") is False, "the kubelet has asked /ready", 30)
        eventually(lambda: namespace.run("get", "pod", name).returncode, "the pod is gone", PATIENCE)
        eventually(lambda: exit_codes(pods[name]), "the end of the pod was seen")
    assert client.reports() == ["long"]
    assert exit_codes(pods[name]) == [0]
    assert pods[name]["status"]["containerStatuses"][0]["restartCount"] == 0, "no liveness probe ended it meanwhile"


def endpoint(release: Release, pod: str) -> Any:
    """The conditions of a pod in the Service's endpoints; nothing where it is not among them."""
    label = f"--selector=kubernetes.io/service-name={release.full_name}"
    for part in release.namespace.get("endpointslices", label):
        for found in part.get("endpoints") or []:
            if found["targetRef"]["name"] == pod:
                return found["conditions"]
    return {}
