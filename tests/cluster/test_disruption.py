"""What takes pods away that nobody upgrades: crashes, a lack of memory, drains."""

import json
import subprocess
import time
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from tests.cluster.kubernetes import (
    PATIENCE,
    Client,
    Cluster,
    Namespace,
    Release,
    agent_source,
    eventually,
    signal_from_the_node,
)

pytestmark = pytest.mark.serial

TWO = {"replicaCount": 2}


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


def last_end(release: Release, pod: str) -> dict[str, object]:
    """How the container before the running one ended; empty where there was none."""
    (status,) = release.namespace.pod(pod)["status"]["containerStatuses"]
    ended: dict[str, object] = status["lastState"].get("terminated", {})
    return ended


def test_a_killed_pod_takes_only_its_own_requests_with_it_and_is_back_by_itself(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace, values=TWO)
    client.install(release, agent_source())
    victim = release.pods()[0]
    name = victim["metadata"]["name"]
    with client.load(release) as load:
        time.sleep(10)
        signal_from_the_node(victim, SIGKILL, namespace.cluster)
        eventually(lambda: last_end(release, name), "the container was restarted")
        eventually(lambda: name in release.ready_pods(), "it is ready again")
        back = time.time()
        time.sleep(10)

    ended = last_end(release, name)
    assert ended["exitCode"] == 137
    failures = load.failures
    first = min((began + took for _, began, took, _ in failures), default=back)
    print(
        f"{len(failures)} of {len(failures) + len(load.done)} requests failed; ready again {back - first:.1f} s after"
    )
    for failure in failures:
        print("failed", failure)
    # Each is an error of its connection: no truncated answer passes for a whole one.
    assert not [failure for failure in failures if "AssertionError" in failure[3]]
    assert not [failure for failure in failures if failure[1] > back], "a request failed after it was back"
    assert {pod for _, began, _, pod, _ in load.done if began > back} == {p["metadata"]["name"] for p in release.pods()}
    # The other pod has served throughout.
    assert len([1 for kind, began, _, _, _ in load.done if kind == "answer" and first <= began <= back]) > 0


def test_an_agent_without_memory_is_restarted_and_the_cluster_says_why(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace)
    client.install(release, {"resources": {"limits": {"memory": "256Mi"}}}, agent_source())
    name = release.pod()["metadata"]["name"]
    ask = json.dumps({"do": "take memory"})
    failed = namespace.run(*client.program("call", release.url, "POST", "/invocations", "--body", ask))
    assert "RemoteProtocolError" in failed.stderr or "ReadError" in failed.stderr, failed.stdout + failed.stderr
    eventually(lambda: last_end(release, name), "it was restarted")
    assert (last_end(release, name)["reason"], last_end(release, name)["exitCode"]) == ("OOMKilled", 137)
    eventually(release.ready_pods, "it is ready again")
    assert client.invoke(release)["pod"] == name


def test_an_eviction_is_refused_as_long_as_the_budget_is_used_up(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace, values=TWO)
    client.install(release, agent_source())
    budget = eventually(
        lambda: (
            (found := namespace.get("poddisruptionbudget", release.full_name))["status"].get("disruptionsAllowed")
            and found
        ),
        "one pod may go",
    )
    assert budget["status"]["expectedPods"] == 2
    one, other = release.ready_pods()
    assert namespace.evict(one).returncode == 0
    refused = namespace.evict(other)
    assert refused.returncode
    assert "TooManyRequests" in refused.stderr or "disruption budget" in refused.stderr, refused.stderr
    assert client.invoke(release)["pod"] == other
    eventually(lambda: len(release.ready_pods()) == 2, "its place is taken")
    eventually(lambda: namespace.evict(other).returncode == 0, "the next may go")


def test_a_drain_takes_one_pod_after_the_other_and_no_request_fails(namespace: Namespace) -> None:
    """Both are on the node that is drained. Of several nodes others take them; a single one must take pods again."""
    cluster = namespace.cluster
    node, *others = sorted(it["metadata"]["name"] for it in cluster.get("nodes") if not it["spec"].get("unschedulable"))
    client, release = Client.started(namespace), Release(namespace, values=TWO)
    drain = cluster.command(
        "drain", node, f"--pod-selector={release.pods_selector}", "--delete-emptydir-data", f"--timeout={PATIENCE:g}s"
    )
    try:
        for other in others:
            cluster.kubectl("cordon", other)
        client.install(release, agent_source())
        for other in others:
            cluster.kubectl("uncordon", other)
        old = set(release.ready_pods())
        assert {pod["spec"]["nodeName"] for pod in release.pods()} == {node}
        with (
            client.load(release) as load,
            subprocess.Popen(drain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        ):
            try:
                if not others:
                    eventually(lambda: len(set(release.ready_pods()) & old) == 1, "one was evicted")
                    time.sleep(15)  # it goes on asking every five seconds
                    assert len(set(release.ready_pods()) & old) == 1, "the budget does not hold"
                    assert process.poll() is None
                    cluster.kubectl("uncordon", node)
                said, _ = process.communicate(timeout=2 * PATIENCE)
            finally:
                process.kill()
            assert process.returncode == 0, said
    finally:
        cluster.kubectl("uncordon", node, *others)
    print(said)
    assert "Cannot evict pod as it would violate the pod's disruption budget" in said
    eventually(lambda: len(release.ready_pods()) == 2, "both places are taken")
    assert not set(release.ready_pods()) & old
    print(f"{len(load.done)} requests, {len(load.failures)} failures")
    assert load.failures == []
    eventually(lambda: set(load.tasks) == set(client.reports()), "every task is done")
