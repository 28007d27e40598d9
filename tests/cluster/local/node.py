"""A machine of the cluster: containerd, the kubelet and what does its networking, in namespaces of their own."""

import json
import os
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.cluster.local.addresses import DNS_SERVICE, DOMAIN, PODS, SERVICES, pods_of
from tests.cluster.local.certificates import Authority
from tests.cluster.local.errors import ClusterError
from tests.cluster.local.images import archive
from tests.cluster.local.namespace import Namespace, enter, run

CGROUPS = Path("/sys/fs/cgroup")
PLUGINS = "/usr/lib/cni"
PAUSE_IMAGE = "localhost/pause:1"
SOCKET = "/run/containerd/containerd.sock"

SHARES_OF_A_CPU = 1024

KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What the kubelet wants of the kernel, which belongs to the whole machine."""


class Node:
    """A node.

    Args:
        namespace: Where it runs; its name is the node's.
        number: Which of the nodes it is, from 1.
        programs: The directory of the programs.
        directory: What it writes to.
        address: Its address.
        cgroup: The control group of its pods.
    """

    def __init__(
        self, namespace: Namespace, number: int, programs: Path, directory: Path, address: str, cgroup: str
    ) -> None:
        self.namespace = namespace
        self.number = number
        self.address = address
        self._programs = programs
        self._directory = directory
        self._cgroup = cgroup

    def start(self, authority: Authority, server: str) -> None:
        """Start everything; the node registers itself.

        Args:
            authority: Who issues its certificates.
            server: The URL of the API server.
        """
        self._separate()
        containerd = self._write("containerd.toml", self._containerd())
        self._write("cni/bridge.conflist", json.dumps(self._network()))
        self.namespace.start("containerd", "--config", containerd)
        self.namespace.until(self._has_containerd, "containerd")
        load(self.namespace.pid, archive(self._programs / "pause", PAUSE_IMAGE))
        name = self.namespace.name
        node_user, proxy_user = f"system:node:{name}", "system:kube-proxy"
        kubeconfig = authority.kubeconfig(self._directory / "kubelet.kubeconfig", server, node_user, "system:nodes")
        config = self._write("kubelet.yaml", json.dumps(self._kubelet(authority)))
        node = [f"--hostname-override={name}", f"--node-ip={self.address}"]
        self.namespace.start(self._programs / "kubelet", f"--config={config}", f"--kubeconfig={kubeconfig}", *node)
        kubeconfig = authority.kubeconfig(self._directory / "kube-proxy.kubeconfig", server, proxy_user)
        config = self._write("kube-proxy.yaml", json.dumps(self._proxy(kubeconfig)))
        self.namespace.start(self._programs / "kube-proxy", f"--config={config}")

    def enforce_policies(self, authority: Authority, server: str) -> None:
        """Have its pods' traffic follow the NetworkPolicies, once it has registered itself."""
        config = authority.kubeconfig(
            self._directory / "kube-router.kubeconfig", server, "kube-router", "system:masters"
        )
        firewall_alone = ["--run-firewall=true", "--run-router=false", "--run-service-proxy=false"]
        about_itself = [f"--kubeconfig={config}", f"--hostname-override={self.namespace.name}", "--metrics-port=0"]
        networks = ["--enable-ipv6=false", f"--service-cluster-ip-range={SERVICES}"]
        self.namespace.start(self._programs / "kube-router", *firewall_alone, *about_itself, *networks)

    def _has_containerd(self) -> bool:
        try:
            self.namespace.run("ctr", "version")
        except ClusterError:
            return False
        return True

    def _separate(self) -> None:
        """Give the node directories, kernel settings and control groups of its own."""
        run_in = self.namespace.run
        run_in("mount", "--make-rshared", "/")
        for name in ("lib/kubelet", "lib/containerd", "lib/cni", "log", "tmp"):
            (self._directory / "var" / name).mkdir(parents=True)
        (self._directory / "var/run").symlink_to("/run")
        run_in("mount", "--bind", self._directory / "var", "/var")
        run_in("mount", "-t", "tmpfs", "run", "/run")
        for name, value in KERNEL_SETTINGS.items():
            # It sets them where they differ; so it reads and writes files in their place.
            stand_in = self._write(f"sysctl/{name}", f"{value}\n")
            run_in("mount", "--bind", stand_in, f"/proc/sys/{name}")
        for controller in CGROUPS.iterdir():
            (controller / self._cgroup).mkdir(parents=True, exist_ok=True)  # one that was killed left it
        # What the kubelet gives to all its pods, and would else be cut to the share of a single process.
        shares = str(SHARES_OF_A_CPU * (os.cpu_count() or 1))
        group = CGROUPS / "cpu" / self._cgroup
        for level in (group, group.parent):
            (level / "cpu.shares").write_text(shares)
        # Traffic between pods that a service's address was put into has to come back through kube-proxy's rules.
        run_in("sysctl", "--quiet", "--write", "net.bridge.bridge-nf-call-iptables=1", "net.ipv4.ip_forward=1")
        masquerade = ["--source", pods_of(self.number), "!", "--destination", PODS, "--jump", "MASQUERADE"]
        run_in("iptables", "--table", "nat", "--append", "POSTROUTING", *masquerade)

    def _containerd(self) -> str:
        # A root without CAP_SYS_RESOURCE may not make the kernel spare a process where memory runs out.
        return dedent(f"""\
            version = 2
            root = "/var/lib/containerd"
            state = "/run/containerd"
            [grpc]
            address = "{SOCKET}"
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "{PAUSE_IMAGE}"
            restrict_oom_score_adj = true
            tolerate_missing_hugetlb_controller = true
            [plugins."io.containerd.grpc.v1.cri".cni]
            bin_dir = "{PLUGINS}"
            conf_dir = "{self._directory}/cni"
            """)

    def _network(self) -> dict[str, Any]:
        ranges = [[{"subnet": pods_of(self.number)}]]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}

    def _kubelet(self, authority: Authority) -> dict[str, Any]:
        certificate, key = authority.issue(f"kubelet-{self.namespace.name}", hosts=[self.namespace.name, self.address])
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": DOMAIN,
            "resolvConf": "",
            "oomScoreAdj": 0,
            # Images come from archives alone, so none that is unused may go; a disk that is rather full is no fault.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }

    def _proxy(self, kubeconfig: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": self.namespace.name,
            "mode": "iptables",
            "clusterCIDR": PODS,
            "oomScoreAdj": 0,
            # The table of connections is the whole machine's.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }

    def _write(self, name: str, content: str) -> Path:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path


def load(pid: int, image: bytes) -> None:
    """Load an image into a node.

    Args:
        pid: The first process of the node.
        image: An archive, of Docker's format or OCI's.
    """
    run(*enter(pid), "ctr", "--namespace", "k8s.io", "images", "import", "-", stdin=image)
