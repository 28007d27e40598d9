"""The programs of a cluster, built from Go modules into a cache outside the tree."""

import fcntl
import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path

from tests.cluster.local.errors import ClusterError

SOURCES = Path(__file__).parent / "binaries"

KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
"""The names of the one program that is all of them."""

PACKAGES = {
    "pause": "./pause",
    "kubernetes": "./kubernetes",
    "etcd": "go.etcd.io/etcd/server/v3",
    "coredns": "./coredns",
    "kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
    "metrics-server": "sigs.k8s.io/metrics-server/cmd/metrics-server",
}

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
"""The machine's architecture as Go and container images name it."""


def version(module: str) -> str:
    """The version of a module that is built, as ``go.mod`` has it."""
    found = re.search(rf"^\t{re.escape(module)} (v\S+)$", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module} is not in go.mod"
    return found[1]


def binaries() -> Path:
    """Build what is not in the cache yet, which takes a quarter of an hour or more where nothing is.

    Returns:
        The directory of the programs, each statically linked.

    Raises:
        ClusterError: If ``go`` is missing or fails.
    """
    sources = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".go", ".mod", ".sum"})
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litestar-agentcore-cluster"
    target = cache / digest
    target.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, package in PACKAGES.items():
            if not (target / name).exists():
                _build(target / name, package)
        for name in KUBERNETES:
            if not (target / name).exists():
                (target / name).symlink_to("kubernetes")
    return target


def _build(target: Path, package: str) -> None:
    kubernetes = version("k8s.io/kubernetes")
    major, minor, _ = kubernetes.removeprefix("v").split(".")
    # Without these it calls itself v0.0.0, which a chart's `kubeVersion` refuses.
    stamps = {"gitVersion": kubernetes, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = [f"-X {of}.{name}={value}" for of in packages for name, value in stamps.items()]
    unfinished = target.with_suffix(".unfinished")
    command = [
        "nice",
        "go",
        "build",
        "-p",
        "2",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        " ".join(["-s -w", *flags]),
    ]
    print(f"building {target.name}", flush=True)
    try:
        done = subprocess.run(
            [*command, "-o", unfinished, package], cwd=SOURCES, env={**os.environ, "CGO_ENABLED": "0"}, check=False
        )
    except FileNotFoundError:
        raise ClusterError("`go` is not there: install Go 1.24 or newer") from None
    if done.returncode:
        raise ClusterError(f"{target.name} could not be built")
    unfinished.rename(target)
