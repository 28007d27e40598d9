"""What the values can ask for is what a real API server takes, with the real definitions of custom resources."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.custom_resources import DEFINITIONS, defined
from tests.cluster.kubernetes import Cluster, CommandError, Namespace, Release, agent_source, eventually
from tests.e2e.chart import EXAMPLES, Manifest, example, merged, render
from tests.e2e.test_chart import CASES

pytestmark = pytest.mark.serial

LITTLE = {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}}}

CANNOT_RUN = {"sandbox": "no gVisor, and user namespaces need a newer runtime"}
"""Examples whose pods are made, and then need of their node what it may not have."""


CLASSES: tuple[Manifest, ...] = (
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "gvisor"}, "handler": "runsc"},
    {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000},
)
"""What values refer to, and a pod is refused without."""


@pytest.fixture(scope="module", autouse=True)
def taken_for_granted(cluster: Cluster) -> Iterator[None]:
    """The definitions of custom resources, and the classes."""
    missing = [it for it in CLASSES if cluster.run("get", it["kind"], it["metadata"]["name"]).returncode]
    with defined(cluster):
        try:
            for manifest in missing:
                cluster.apply(manifest)
            yield
        finally:
            for manifest in missing:
                cluster.kubectl("delete", manifest["kind"], manifest["metadata"]["name"], "--ignore-not-found")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def dry(cluster: Cluster) -> Iterator[Namespace]:
    with cluster.namespace() as namespace:
        yield namespace


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_takes_every_object_and_every_field(dry: Namespace, case: str) -> None:
    """The same values with which the chart is rendered and checked without a cluster, by twos of all switches."""
    manifests = [manifest for manifest in render(CASES[case], namespace=dry.name) if not elsewhere(manifest, dry)]
    dry.apply(*manifests, options=("--dry-run=server",))


def elsewhere(manifest: Manifest, namespace: Namespace) -> bool:
    return bool(manifest["metadata"].get("namespace", namespace.name) != namespace.name)


def test_the_dry_run_sees_a_wrong_field_of_every_kind(dry: Namespace) -> None:
    kinds = {}
    for case in CASES:
        for manifest in render(CASES[case], namespace=dry.name):
            kinds[manifest["kind"]] = manifest
    custom = {name.partition(".")[0] for name in DEFINITIONS}
    assert custom <= {f"{kind.lower()}s".replace("policys", "policies") for kind in kinds}
    for manifest in kinds.values():
        if "spec" in manifest:
            with pytest.raises(CommandError, match="nonsense"):
                dry.apply(merged(manifest, {"spec": {"nonsense": 1}}), options=("--dry-run=server",))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_can_be_installed_and_its_pods_fit_the_restricted_standard(
    namespace: Namespace, name: str
) -> None:
    prepare(namespace)
    release = Release(namespace, values=merged(example(name), own(namespace), LITTLE))
    release.install(wait=False)
    least = render(example(name)).one("Deployment")["spec"].get("replicas", 1)
    eventually(lambda: len(release.pods()) >= least, "its pods are made")
    if name not in CANNOT_RUN:
        eventually(lambda: len(release.ready_pods()) >= least, "its pods are ready")
        release.test()
    assert [event["message"] for event in namespace.get("events") if event["reason"] == "FailedCreate"] == []
    release.uninstall()
    eventually(lambda: not release.objects(), "nothing is left")


def own(namespace: Namespace) -> dict[str, Any]:
    """The image that is there, in the place of the examples'."""
    repository, _, tag = namespace.cluster.image.rpartition(":")
    return {"image": {"repository": repository, "tag": tag, "digest": ""}}


def prepare(namespace: Namespace) -> None:
    """What the examples take for granted."""
    namespace.secret("model-provider", **{"api-key": "secret"})
    namespace.secret("otlp", headers="authorization=secret")


def test_a_network_policy_is_taken_and_kept_as_it_was_written(namespace: Namespace) -> None:
    values = {"networkPolicy": {"enabled": True, "egress": {"restricted": True}}}
    release = Release(namespace)
    release.install(values, agent_source())
    (written,) = render(values, namespace=namespace.name).all("NetworkPolicy")
    assert namespace.get("networkpolicy", release.full_name)["spec"] == written["spec"]
    assert "200 {" in release.test(), "helm test is let in, where policies are enforced as well"
