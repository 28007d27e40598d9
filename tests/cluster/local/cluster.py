"""A whole cluster, from nothing to nothing."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.local.addresses import pods_of
from tests.cluster.local.build import binaries
from tests.cluster.local.control_plane import ControlPlane
from tests.cluster.local.errors import ClusterError
from tests.cluster.local.images import archive
from tests.cluster.local.namespace import PATIENCE, Namespace, run
from tests.cluster.local.node import CGROUPS, PLUGINS, Node, load

NODES = 2
"""How many nodes: two, so that one can be drained."""

ADDONS = ("coredns", "metrics-server")
"""The programs that run in the cluster from the beginning, by the manifests that are called as they are."""

NEEDED = {
    "containerd": ("containerd", "ctr"),
    "containernetworking-plugins": (f"{PLUGINS}/bridge",),
    "iproute2": ("ip",),
    "ipset": ("ipset",),
    "iptables": ("iptables",),
    "procps": ("sysctl",),
    "runc": ("runc",),
    "util-linux": ("mount", "nsenter", "setpriv", "unshare"),
}
"""Debian's packages, and the programs of theirs that are called."""


class Cluster:
    """A cluster that runs, perhaps in another process.

    Args:
        directory: What it writes to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"

    @property
    def programs(self) -> Path:
        """The directory of its programs, ``kubectl`` among them."""
        return Path(self._state()["programs"])

    def load_image(self, image: Path) -> None:
        """Load an image into every node.

        Args:
            image: An archive, of Docker's format or OCI's.
        """
        content = image.read_bytes()
        for pid in self._state()["nodes"]:
            load(pid, content)

    def stop(self) -> None:
        """Have the process that runs it stop it, and wait until it has."""
        os.kill(self._state()["pid"], signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while self.directory.exists():
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.directory} is still there after {PATIENCE:g} s")
            time.sleep(0.2)

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.directory / "cluster.json").read_text())
        except FileNotFoundError:
            raise ClusterError(f"no cluster runs in {self.directory}") from None
        return state


@contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    """Make a cluster that runs as long as the block does, and take everything of it away afterwards.

    What ends this process, be it ``SIGKILL``, ends the cluster; but only an orderly end, as by ``SIGINT`` or
    ``SIGTERM``, takes away its directory and its control groups too.

    Args:
        directory: What it writes to, which must not be there yet.

    Raises:
        ClusterError: If it cannot be made.
    """
    _check_machine(directory)
    programs = binaries()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stack = ExitStack()
    try:
        for number in handlers:
            signal.signal(number, signal.default_int_handler)
        _start(stack, programs, directory)
        yield Cluster(directory)
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        stack.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(stack: ExitStack, programs: Path, directory: Path) -> None:
    logs, pause = directory / "logs", programs / "pause"
    logs.mkdir(parents=True)
    stack.callback(shutil.rmtree, directory)
    outside = Namespace("control-plane", pause, logs)
    stack.callback(outside.stop)
    network = _Network(outside)
    stack.callback(network.close)
    stack.callback(remove_cgroups, network.name)
    plane = ControlPlane(outside, programs, directory / "control-plane", network.address(2))
    plane.start()
    nodes = []
    for number in range(1, NODES + 1):
        name = f"node-{number}"
        inside = Namespace(name, pause, logs)
        stack.callback(inside.stop)
        network.join(inside, number)
        address = network.address(10 + number)
        node = Node(inside, number, programs, directory / name, address, f"{network.name}/{name}")
        node.start(plane.authority, plane.server)
        nodes.append(node)
    kubeconfig = plane.authority.kubeconfig(directory / "kubeconfig", plane.server, "admin", "system:masters")
    for program in ADDONS:
        image = archive(programs / program, f"localhost/{program}:built")
        for node in nodes:
            load(node.namespace.pid, image)
    kubectl: list[str | Path] = [programs / "kubectl", f"--kubeconfig={kubeconfig}"]
    waiting = [*kubectl, "wait", f"--timeout={PATIENCE - 10:g}s"]
    run(*waiting, "--for=create", *(f"node/{node.namespace.name}" for node in nodes))
    run(*waiting, "--for=condition=Ready", "nodes", "--all")
    for node in nodes:
        node.enforce_policies(plane.authority, plane.server)
    run(*kubectl, "apply", *(f"--filename={Path(__file__).parent / f'{program}.yaml'}" for program in ADDONS))
    for program in ADDONS:
        status = ["rollout", "status", f"daemonset/{program}", "--namespace=kube-system"]
        run(*kubectl, *status, f"--timeout={PATIENCE - 10:g}s")
    run(*waiting, "--for=condition=Available", "apiservices", "--all")
    state = {"pid": os.getpid(), "programs": str(programs), "nodes": [node.namespace.pid for node in nodes]}
    (directory / "cluster.json").write_text(json.dumps(state))


class _Network:
    """A bridge in the control plane's namespaces, with this machine and the nodes on it.

    Args:
        outside: The control plane's namespaces.
    """

    def __init__(self, outside: Namespace) -> None:
        self._outside = outside
        self._number = self._connect()
        self.name = f"kube{self._number}"
        run("ip", "address", "add", f"{self.address(1)}/24", "dev", self.name)
        run("ip", "link", "set", self.name, "up")
        outside.run("ip", "link", "add", "nodes", "type", "bridge")
        outside.run("ip", "address", "add", f"{self.address(2)}/24", "dev", "nodes")
        outside.run("ip", "link", "set", "nodes", "up")
        outside.run("ip", "link", "set", "machine", "master", "nodes", "up")

    def address(self, host: int) -> str:
        """An address on it: 1 is this machine's, 2 the control plane's."""
        return f"10.254.{self._number}.{host}"

    def join(self, inside: Namespace, number: int) -> None:
        """Connect a node, and have everybody know where its pods are."""
        peer = ["peer", "name", inside.name, "netns", str(self._outside.pid)]
        run("ip", "link", "add", "eth0", "netns", str(inside.pid), "type", "veth", *peer)
        self._outside.run("ip", "link", "set", inside.name, "master", "nodes", "up")
        inside.run("ip", "address", "add", f"{self.address(10 + number)}/24", "dev", "eth0")
        inside.run("ip", "link", "set", "eth0", "up")
        inside.run("ip", "route", "add", "default", "via", self.address(1))
        self._outside.run("ip", "route", "add", pods_of(number), "via", self.address(10 + number))
        for other in set(range(1, NODES + 1)) - {number}:
            inside.run("ip", "route", "add", pods_of(other), "via", self.address(10 + other))

    def close(self) -> None:
        """Take this machine off it; the rest goes with the namespaces."""
        run("ip", "link", "delete", self.name)

    def _connect(self) -> int:
        peer = ["peer", "name", "machine", "netns", str(self._outside.pid)]
        for number in range(256):
            if Path(f"/sys/class/net/kube{number}").exists():
                continue
            run("ip", "link", "add", f"kube{number}", "type", "veth", *peer)
            return number
        raise ClusterError("256 clusters run already")


def _check_machine(directory: Path) -> None:
    if os.geteuid():
        raise ClusterError("only root can make a cluster; KUBECONFIG names one that is there")
    if not (CGROUPS / "memory").is_dir():
        raise ClusterError(
            "nodes are made on control groups of version 1 alone; KUBECONFIG names a cluster that is there"
        )
    for package, names in NEEDED.items():
        for name in names:
            if not shutil.which(name):
                raise ClusterError(f"`{name}` is not there: install the Debian package {package}")
    if directory.exists():
        raise ClusterError(f"{directory} is there already")
    if {Path("/var"), Path("/run")} & set(directory.resolve().parents):
        raise ClusterError(f"{directory}: a node has a /var and a /run of its own, so that it would not see it")


def remove_cgroups(name: str) -> None:
    """Remove a cluster's control groups, whose processes have ended or are about to."""
    deadline = time.monotonic() + PATIENCE
    for controller in CGROUPS.iterdir():
        for directory, _, _ in os.walk(controller / name, topdown=False):
            while True:
                try:
                    Path(directory).rmdir()
                    break
                except OSError:  # its last process has not gone quite yet
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
