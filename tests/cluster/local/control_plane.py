"""What runs the cluster: etcd, the API server, the controllers and the scheduler."""

import ssl
import urllib.request
from pathlib import Path

from tests.cluster.local.addresses import API_PORT, API_SERVICE, DOMAIN, SERVICES
from tests.cluster.local.certificates import Authority, signing_keys
from tests.cluster.local.namespace import Namespace


class ControlPlane:
    """The control plane, in namespaces of its own.

    Args:
        namespace: Where it runs.
        programs: The directory of the programs.
        directory: What it writes to.
        address: Its address, for the nodes and for this machine.
    """

    def __init__(self, namespace: Namespace, programs: Path, directory: Path, address: str) -> None:
        self.server = f"https://{address}:{API_PORT}"
        self.authority = Authority(directory / "pki")
        self._namespace = namespace
        self._programs = programs
        self._directory = directory
        self._address = address

    def start(self) -> None:
        """Start everything, and wait until the API server is ready."""
        private, public = signing_keys(self.authority.directory)
        # Nobody else reaches the loopback interface of its namespace.
        self._start("etcd", **{"data-dir": self._directory / "etcd", "unsafe-no-fsync": "true"})
        self._start_api_server(private, public)
        self._namespace.until(self._is_ready, "the API server")
        self._start(
            "kube-controller-manager",
            **{
                "kubeconfig": self._kubeconfig("system:kube-controller-manager"),
                "leader-elect": "false",
                "root-ca-file": self.authority.certificate,
                "service-account-private-key-file": private,
                "use-service-account-credentials": "true",
            },
        )
        self._start(
            "kube-scheduler", **{"kubeconfig": self._kubeconfig("system:kube-scheduler"), "leader-elect": "false"}
        )

    def _start_api_server(self, private: Path, public: Path) -> None:
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
        certificate, key = self.authority.issue("kube-apiserver", hosts=[*names, self._address, API_SERVICE])
        kubelet_certificate, kubelet_key = self.authority.issue("kube-apiserver-kubelet-client", "system:masters")
        front = Authority(self._directory / "front-proxy")
        front_certificate, front_key = front.issue("front-proxy-client")
        self._start(
            "kube-apiserver",
            **{
                "advertise-address": self._address,
                "secure-port": API_PORT,
                "tls-cert-file": certificate,
                "tls-private-key-file": key,
                "etcd-servers": "http://127.0.0.1:2379",
                "service-cluster-ip-range": SERVICES,
                "authorization-mode": "Node,RBAC",
                "allow-privileged": "true",
                "enable-admission-plugins": "NodeRestriction",
                "client-ca-file": self.authority.certificate,
                "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
                "service-account-key-file": public,
                "service-account-signing-key-file": private,
                "kubelet-certificate-authority": self.authority.certificate,
                "kubelet-client-certificate": kubelet_certificate,
                "kubelet-client-key": kubelet_key,
                "kubelet-preferred-address-types": "InternalIP",
                # For APIs that pods serve, such as that of the metrics.
                "proxy-client-cert-file": front_certificate,
                "proxy-client-key-file": front_key,
                "requestheader-client-ca-file": front.certificate,
                "requestheader-allowed-names": "front-proxy-client",
                "requestheader-username-headers": "X-Remote-User",
                "requestheader-group-headers": "X-Remote-Group",
                "requestheader-extra-headers-prefix": "X-Remote-Extra-",
                "enable-aggregator-routing": "true",  # no proxy of services runs beside it
            },
        )

    def _start(self, program: str, **options: object) -> None:
        self._namespace.start(self._programs / program, *(f"--{name}={value}" for name, value in options.items()))

    def _kubeconfig(self, user: str) -> Path:
        path = self._directory / f"{user.removeprefix('system:')}.kubeconfig"
        return self.authority.kubeconfig(path, self.server, user)

    def _is_ready(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        try:
            with urllib.request.urlopen(f"{self.server}/readyz", timeout=5, context=context):
                return True
        except OSError:
            return False
