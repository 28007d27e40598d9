"""Upgrades under load, in a cluster: nobody notices, and work that began may finish."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.kubernetes import (
    PATIENCE,
    Client,
    Cluster,
    Load,
    Namespace,
    Release,
    agent_source,
    eventually,
    exit_codes,
    watched_pods,
)

pytestmark = pytest.mark.serial

ROLLOUTS = 20

SOME = 3
"""How often something has to be met by a rollout, at least."""

QUIET_SECONDS = 20.0
"""How long the load goes on before the first upgrade, to compare with."""


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


def test_upgrades_under_load_fail_no_request_cut_no_stream_and_lose_no_task(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace, values={"replicaCount": 2})
    client.install(release, agent_source(0))
    rollouts: list[float] = []
    with watched_pods(release) as pods:
        with client.load(release) as load:
            time.sleep(QUIET_SECONDS)
            first_upgrade = time.time()
            for version in range(1, ROLLOUTS + 1):
                began = time.monotonic()
                release.upgrade(agent_source(version))
                rollouts.append(time.monotonic() - began)
                client.wait_for_version(release, version)
        last = set(release.ready_pods())
        eventually(
            lambda: all(exit_codes(pod) for name, pod in pods.items() if name not in last), "the old pods have ended"
        )

    report(load, rollouts, first_upgrade)
    met = met_by_the_end_of_their_pod(load, pods)
    print(f"begun before their pod was told to end, and finished after: {dict(met)}")
    assert load.failures == []
    eventually(lambda: set(load.tasks) == set(client.reports()), "every task is done")
    ended = {name: pod for name, pod in pods.items() if name not in last}
    assert len(ended) == 2 * ROLLOUTS
    assert {tuple(exit_codes(pod)) for pod in ended.values()} == {(0,)}
    assert {pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods.values()} == {0}
    # Otherwise it would have proved little.
    assert {version for *_, version in load.done} == set(range(ROLLOUTS + 1))
    for kind in ("long answer", "long answer, connection kept", "stream", "WebSocket"):
        assert met[kind] >= SOME, met


def report(load: Load, rollouts: list[float], first_upgrade: float) -> None:
    """Print the figures of docs/kubernetes.md."""
    counts = Counter(kind for kind, *_ in load.done)
    print(f"{len(rollouts)} rollouts: median {sorted(rollouts)[len(rollouts) // 2]:.1f} s, max {max(rollouts):.1f} s")
    print(f"done {dict(counts)}, {len(load.failures)} failures")
    for failure in load.failures:
        print("failed", failure)
    for kind in ("answer", "answer, connection kept"):
        for name, seconds in (
            ("before", load.seconds(kind, until=first_upgrade)),
            ("during", load.seconds(kind, since=first_upgrade)),
        ):
            median, p99 = (1000 * seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
            print(
                f"{kind}, {name} the rollouts: {len(seconds)} requests, median {median:.0f} ms, p99 {p99:.0f} ms, "
                f"max {1000 * seconds[-1]:.0f} ms"
            )


def met_by_the_end_of_their_pod(load: Load, pods: dict[str, Any]) -> Counter[str]:
    """How many of each kind began before their pod was told to end, and were done after that."""
    met: Counter[str] = Counter()
    for kind, began, took, pod, _ in load.done:
        if "toldToEnd" in pods[pod]:
            met[kind] += began < pods[pod]["toldToEnd"] < began + took
    return met


def test_a_task_outlives_the_rollout_that_replaces_its_pod(namespace: Namespace) -> None:
    """It has the chart's whole grace, and the new pod serves meanwhile."""
    seconds = 45
    client, release = Client.started(namespace), Release(namespace)
    client.install(release, agent_source(1))
    old = release.pod()["metadata"]["name"]
    with watched_pods(release) as pods:
        began = time.monotonic()
        client.invoke(release, do="research", seconds=seconds, task="long", report=client.report)
        release.upgrade(agent_source(2))
        client.wait_for_version(release, 2)
        assert client.reports() == [], "it was done before the rollout, which proves nothing"
        assert namespace.pod(old)["metadata"]["deletionTimestamp"]
        eventually(client.reports, "the task is done", PATIENCE)
        assert time.monotonic() - began >= seconds
        eventually(lambda: exit_codes(pods[old]), "the old pod has ended")
    assert client.reports() == ["long"]
    assert exit_codes(pods[old]) == [0]


def test_a_task_that_outlasts_the_grace_is_cancelled_and_named_and_the_pod_ends_before_it_is_killed(
    namespace: Namespace,
) -> None:
    client, release = Client.started(namespace), Release(namespace, values={"shutdown": {"graceSeconds": 5}})
    client.install(release, agent_source())
    name = release.pod()["metadata"]["name"]
    client.invoke(release, do="research", seconds=600, task="endless", report=client.report)
    with watched_pods(release) as pods:
        log = namespace.command("logs", "--follow", name)
        namespace.kubectl("delete", "pod", name, "--wait=false")
        lines = follow(log)
        eventually(lambda: exit_codes(pods[name]), "the pod has ended")
    lost = [line for line in lines if "was still running at shutdown" in line["message"]]
    assert len(lost) == 1
    assert lost[0]["message"].startswith("The task research of session")
    assert exit_codes(pods[name]) == [0], "its end came from within, not from a SIGKILL"
    assert client.reports() == []


def follow(command: list[str]) -> list[dict[str, Any]]:
    """What is logged until the container has ended."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
