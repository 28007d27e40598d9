"""The chart on a real API server and a real kubelet: it is installed, answers, is tested, rolled back and gone."""

import json
import time
from collections.abc import Iterator
from signal import SIGKILL

import helm_python as helm
import pytest

from tests.cluster.kubernetes import (
    Client,
    Cluster,
    CommandError,
    Namespace,
    Release,
    agent_source,
    eventually,
    is_ready,
    signal_from_the_node,
)

pytestmark = pytest.mark.serial

TOOLS_AGENT = """\
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


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[tuple[Release, Client]]:
    """The chart with its default values and the agent of these tests, and a client beside it."""
    with cluster.namespace() as namespace:
        client, release = Client.started(namespace), Release(namespace)
        client.install(release, agent_source())
        yield release, client


def test_the_namespaces_of_these_tests_really_enforce_the_restricted_standard(namespace: Namespace) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "lax"},
        "spec": {"containers": [{"name": "lax", "image": namespace.cluster.image}]},
    }
    with pytest.raises(CommandError, match='violates PodSecurity "restricted'):
        namespace.apply(pod)


def test_from_nothing_to_the_first_answer_by_the_default_values_alone(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace)
    began = time.monotonic()
    release.install(wait=False)
    installed = time.monotonic()
    answer = client.first_answer(release, prompt="hello")
    answered = time.monotonic()

    assert answer["status"] == 200, answer
    assert "hello" in answer["body"]
    print(f"installed after {installed - began:.2f} s, the first answer after {answered - began:.2f} s")
    pod = eventually(lambda: (pods := release.pods()) and is_ready(pods[0]) and pods[0], "the pod is ready")
    assert pod["spec"]["containers"][0]["image"] == namespace.cluster.image
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_nothing_that_the_chart_makes_is_warned_of_or_refused(installed: tuple[Release, Client]) -> None:
    release, _ = installed
    events = release.namespace.get("events", "--field-selector=type=Warning")
    refused = [event for event in events if event["reason"] in {"FailedCreate", "FailedMount", "Failed", "BackOff"}]
    assert [event["message"] for event in refused] == []


def test_helm_test_invokes_the_agent_from_within_the_cluster(installed: tuple[Release, Client]) -> None:
    release, _ = installed
    assert '200 {"version":0,"pod":"demo-agentcore-' in release.test()


def test_helm_test_fails_where_the_agent_does(namespace: Namespace) -> None:
    release = Release(namespace)
    release.install({"helmTest": {"payload": {"do": "nonsense"}}}, agent_source())
    with pytest.raises(helm.HelmReleaseError):
        release.test()
    assert "400" in namespace.kubectl("logs", f"{release.full_name}-test"), "what a failed test has logged is there"


def test_an_invocation_through_the_service_carries_its_ids_there_and_back(installed: tuple[Release, Client]) -> None:
    release, client = installed
    answer = client.call(release.url, "POST", "/invocations", {"do": "answer"})
    assert answer["status"] == 200
    assert json.loads(answer["body"]) == {"version": 0, "pod": release.pod()["metadata"]["name"]}
    assert answer["headers"]["x-amzn-bedrock-agentcore-runtime-request-id"]


def test_a_stream_through_the_service(installed: tuple[Release, Client]) -> None:
    release, client = installed
    answer = client.call(release.url, "POST", "/invocations", {"do": "stream", "seconds": 1})
    events = [json.loads(event.removeprefix("data: ")) for event in answer["body"].split("\n\n") if event]
    assert [event["number"] for event in events] == list(range(20))
    assert answer["headers"]["content-type"].startswith("text/event-stream")


def test_a_websocket_through_the_service(installed: tuple[Release, Client]) -> None:
    release, client = installed
    assert [answer["echo"] for answer in client.converse(release, "one", "two")] == ["one", "two"]


def test_metrics_and_readiness_are_served_in_the_cluster(installed: tuple[Release, Client]) -> None:
    release, client = installed
    assert json.loads(client.call(release.url, "GET", "/ready")["body"]) == {"ready": True}
    assert "agentcore_invocations_total" in client.call(release.url, "GET", "/metrics")["body"]


def test_the_pod_can_write_in_tmp_alone_and_has_no_token(installed: tuple[Release, Client]) -> None:
    release, _ = installed
    program = """
import os
from pathlib import Path
for path in ("/tmp/a", "/app/a", "/opt/venv/a", "/a"):
    try:
        Path(path).write_text("a")
    except OSError as error:
        print(path, error.strerror)
print(os.getuid(), os.getgid(), Path("/var/run/secrets/kubernetes.io").exists())
"""
    pod = release.pod()["metadata"]["name"]
    said = release.namespace.kubectl("exec", pod, "--", "python", "-c", program).splitlines()
    assert said == [f"{path} Read-only file system" for path in ("/app/a", "/opt/venv/a", "/a")] + ["10001 10001 False"]


def test_an_agent_of_two_files_needs_no_image_of_its_own(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace)
    client.install(release, {"agent": {"source": TOOLS_AGENT, "files": {"tools.py": TOOLS}}})
    assert client.invoke(release, prompt="hello") == "HELLO"


def test_api_keys_come_from_a_secret_and_helm_test_has_one(namespace: Namespace) -> None:
    namespace.secret("callers", keys="tests:sesame\n", test="sesame")
    client, release = Client.started(namespace), Release(namespace)
    secrets = {
        "auth": {"apiKeysSecret": {"name": "callers", "key": "keys"}},
        "helmTest": {"credentialsSecret": {"name": "callers", "key": "test"}},
    }
    client.install(release, secrets, agent_source())
    assert client.call(release.url, "POST", "/invocations", {})["status"] == 401
    assert "200 {" in release.test()


def test_several_workers_answer_as_one(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace)
    client.install(release, {"agent": {"workers": 2}}, agent_source())
    client.wait_for_version(release, 0)
    assert "agentcore_invocations_total" in client.call(release.url, "GET", "/metrics")["body"]
    pod = release.pod()["metadata"]["name"]
    namespace.kubectl("delete", "pod", pod, "--wait=false")
    eventually(lambda: namespace.run("get", "pod", pod).returncode, "a pod with workers ends", 60)


def test_a_rollback_brings_the_agent_of_before_back(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace)
    client.install(release, agent_source(1))
    release.upgrade(agent_source(2))
    client.wait_for_version(release, 2)
    release.rollback()
    client.wait_for_version(release, 1)


def test_an_upgrade_to_an_agent_that_does_not_start_fails_and_those_of_before_serve_on(namespace: Namespace) -> None:
    client, release = Client.started(namespace), Release(namespace)
    client.install(release, agent_source(1))
    release.upgrade({"agent": {"source": "raise SystemExit('a mistake')\n"}}, wait=False)
    eventually(
        lambda: any(
            "mistake" in namespace.run("logs", pod["metadata"]["name"]).stderr
            or "mistake" in namespace.run("logs", pod["metadata"]["name"]).stdout
            for pod in release.pods()
            if not is_ready(pod)
        ),
        "the new pod's log says why it does not start",
    )
    client.wait_for_version(release, 1)
    # And where one of them starts anew meanwhile, it is with its own files.
    (old,) = [pod for pod in release.pods() if is_ready(pod)]
    name = old["metadata"]["name"]
    signal_from_the_node(old, SIGKILL, namespace.cluster)
    eventually(lambda: namespace.pod(name)["status"]["containerStatuses"][0]["restartCount"], "it starts anew")
    eventually(lambda: name in release.ready_pods(), "it is ready again")
    assert client.invoke(release) == {"version": 1, "pod": name}
    release.rollback()
    client.wait_for_version(release, 1)


def test_an_upgrade_that_changes_nothing_rolls_nothing(namespace: Namespace) -> None:
    release = Release(namespace)
    release.install(agent_source())
    pods = release.ready_pods()
    release.upgrade(agent_source())
    assert release.ready_pods() == pods
    assert len(namespace.get("replicasets", f"--selector={release.selector}")) == 1


def test_uninstalling_leaves_nothing(namespace: Namespace) -> None:
    """Also not of ``helm test``, and not of the revisions that were rolled back."""
    everything = {
        "replicaCount": 2,
        "autoscaling": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "ingress": {"enabled": True, "hosts": ["agent.example.com"]},
        "metrics": {"dashboards": {"enabled": True}},
    }
    release = Release(namespace)
    before = namespace.objects()
    release.install(everything, agent_source(1))
    release.test()
    release.upgrade(agent_source(2))
    release.rollback()
    assert release.objects()
    release.uninstall()
    eventually(lambda: namespace.objects() == before, "the last pod is gone")
