"""The chart's NetworkPolicy, where something in the cluster enforces such policies."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.kubernetes import Client, Cluster, CommandError, Release, agent_source, eventually
from tests.cluster.local.cluster import Cluster as OwnCluster

pytestmark = pytest.mark.serial

CALLERS = {"podSelector": {"matchLabels": {"caller": "yes"}}}
CLIENT = {"podSelector": {"matchLabels": {"app": "client"}}}

Enforced = Callable[[Callable[[], bool], str], None]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.namespace() as namespace:
        yield Client.started(namespace)


@pytest.fixture
def enforced(own_cluster: OwnCluster | None) -> Enforced:
    """Wait for what a policy brings about; a cluster of others' may have nothing that enforces one."""

    def wait(condition: Callable[[], bool], what: str) -> None:
        try:
            eventually(condition, what)
        except AssertionError:
            if own_cluster:
                raise
            pytest.skip(f"nothing in this cluster seems to enforce a NetworkPolicy: {what}")

    return wait


def test_it_lets_in_the_callers_that_it_names_the_kubelet_and_the_test(client: Client, enforced: Enforced) -> None:
    release = Release(client.namespace)
    release.install({"networkPolicy": {"enabled": True, "ingress": {"from": [CALLERS]}}}, agent_source())
    enforced(lambda: not reaches(client, release), "a stranger is refused")
    client.namespace.kubectl("label", "pod", "client", "caller=yes")
    eventually(lambda: reaches(client, release), "a caller is let in")
    assert "200 {" in release.test()


def test_agents_reach_what_it_names_and_nothing_else(client: Client, enforced: Enforced) -> None:
    release = Release(client.namespace)
    release.install(restricted(), agent_source())
    enforced(lambda: is_refused(client, release), "an agent cannot report")
    release.upgrade(restricted(rules=[{"to": [CLIENT], "ports": [{"port": 8080}]}]), agent_source())
    eventually(lambda: has_reported(client, release), "an agent can report")


def restricted(**egress: Any) -> dict[str, Any]:
    return {"networkPolicy": {"enabled": True, "egress": {"restricted": True, **egress}}}


def reaches(client: Client, release: Release) -> bool:
    try:
        client.invoke(release)
    except CommandError as error:
        if "Connect" not in error.stderr:  # refused, or no answer at all
            raise
        return False
    return True


def is_refused(client: Client, release: Release) -> bool:
    client.invoke(release, do="research", task="refused", report=client.report)
    logs = client.namespace.kubectl("logs", f"--selector={release.pods_selector}", "--tail=-1")
    return "ConnectError" in logs or "ConnectTimeout" in logs


def has_reported(client: Client, release: Release) -> bool:
    client.invoke(release, do="research", task="done", report=client.report)
    return "done" in client.reports()
