"""The HorizontalPodAutoscaler that the chart makes."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.kubernetes import PATIENCE, Client, Cluster, Namespace, Release, agent_source, eventually

pytestmark = pytest.mark.serial

METRICS = "metrics.k8s.io/v1beta1"

VALUES = {
    "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 3, "cpuUtilization": 50},
    "resources": {"requests": {"cpu": "50m"}},
}


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


def condition(release: Release, kind: str) -> dict[str, Any]:
    """A condition of the autoscaler; empty as long as it has none of the kind."""
    status = release.namespace.get("horizontalpodautoscaler", release.full_name).get("status", {})
    found: list[dict[str, Any]] = [one for one in status.get("conditions", []) if one["type"] == kind]
    return found[0] if found else {}


def test_the_least_number_of_pods_is_there_and_an_upgrade_keeps_it(namespace: Namespace) -> None:
    release = Release(namespace, values=VALUES)
    release.install(agent_source(1))
    eventually(lambda: len(release.ready_pods()) == 2, "the autoscaler has two pods made")
    eventually(lambda: condition(release, "AbleToScale").get("status") == "True", "it finds the Deployment")
    release.upgrade(agent_source(2), wait=False)
    assert namespace.get("deployment", release.full_name)["spec"]["replicas"] == 2


def test_by_the_cpu(namespace: Namespace) -> None:
    """Where the cluster has the metrics API, pods are added; where it has none, the autoscaler says just that."""
    client, release = Client.started(namespace), Release(namespace, values=VALUES | agent_source())
    client.install(release)
    if not namespace.cluster.has(METRICS):
        print(f"there is no {METRICS}: that the autoscaler adds pods is not proven here")
        active = eventually(
            lambda: (found := condition(release, "ScalingActive")).get("status") == "False" and found, "it has asked"
        )
        assert active["reason"] == "FailedGetResourceMetric"
        assert "metrics" in active["message"]
        return
    eventually(lambda: condition(release, "ScalingActive").get("status") == "True", "it sees the pods' CPU")
    ask = json.dumps({"do": "compute", "seconds": PATIENCE})
    compute = client.program("call", release.url, "POST", "/invocations", "--body", ask, f"--seconds={2 * PATIENCE:g}")
    with subprocess.Popen(namespace.command(*compute), stdout=subprocess.DEVNULL) as load:
        try:
            eventually(lambda: len(release.ready_pods()) == 3, "a pod was added")
        finally:
            load.kill()
    assert client.invoke(release)["version"] == 0
