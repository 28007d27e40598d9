"""The definitions of the custom resources that the chart writes, as their projects publish them."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml

from tests.cluster.kubernetes import Cluster, Manifest, eventually

_PROMETHEUS = "github.com/prometheus-operator/prometheus-operator@v0.80.1"
_PROMETHEUS_FILES = "example/prometheus-operator-crd"

DEFINITIONS = {
    "servicemonitors.monitoring.coreos.com": (
        _PROMETHEUS,
        f"{_PROMETHEUS_FILES}/monitoring.coreos.com_servicemonitors.yaml",
    ),
    "podmonitors.monitoring.coreos.com": (
        _PROMETHEUS,
        f"{_PROMETHEUS_FILES}/monitoring.coreos.com_podmonitors.yaml",
    ),
    "prometheusrules.monitoring.coreos.com": (
        _PROMETHEUS,
        f"{_PROMETHEUS_FILES}/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "scaledobjects.keda.sh": ("github.com/kedacore/keda/v2@v2.16.1", "config/crd/bases/keda.sh_scaledobjects.yaml"),
    "destinationrules.networking.istio.io": (
        "istio.io/api@v1.24.2",
        "kubernetes/customresourcedefinitions.gen.yaml",
    ),
    "httproutes.gateway.networking.k8s.io": (
        "sigs.k8s.io/gateway-api@v1.2.1",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ),
    "backendtrafficpolicies.gateway.envoyproxy.io": (
        "github.com/envoyproxy/gateway@v1.2.6",
        "charts/gateway-helm/crds/generated/gateway.envoyproxy.io_backendtrafficpolicies.yaml",
    ),
}
"""Of each definition: the Go module that has it, and where. The versions are those of tests/e2e/crds/README.md."""


@contextmanager
def defined(cluster: Cluster) -> Iterator[None]:
    """Have the cluster know every custom resource that the chart writes, and forget what it did not know before."""
    known = {line.partition("/")[2] for line in cluster.kubectl("get", "crds", "--output=name").split()}
    missing = [name for name in DEFINITIONS if name not in known]
    try:
        for name in missing:
            cluster.apply(definition(name))
        for name in missing:
            eventually(partial(is_established, cluster, name), f"{name} is known")
        yield
    finally:
        for name in missing:
            cluster.kubectl("delete", "crd", name, "--ignore-not-found")


def is_established(cluster: Cluster, name: str) -> bool:
    conditions = cluster.get("crd", name).get("status", {}).get("conditions") or []
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def definition(name: str) -> Manifest:
    """A definition, from the module cache of Go, which has it from the module's own project."""
    module, path = DEFINITIONS[name]
    done = subprocess.run(
        ["go", "mod", "download", "-json", module], cwd="/", capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{module} is needed, with Go: {done.stdout}{done.stderr}"
    text = Path(json.loads(done.stdout)["Dir"], path).read_text()
    (found,) = [document for document in yaml.safe_load_all(text) if document and document["metadata"]["name"] == name]
    manifest: Manifest = found
    return manifest
