"""A Kubernetes cluster by kubectl, a release of the chart by Helm's own engine, and pods of ours beside it."""

import json
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import helm_python as helm

from tests.e2e.chart import CHART, merged

PATIENCE = 180.0
"""Seconds after which what should have happened long ago counts as not happening. The machine may be small and busy."""

LOOK_SECONDS = 0.2
"""How often it is asked whether something has happened."""

CLIENT = Path(__file__).with_name("client.py")
AGENT = Path(__file__).with_name("agent.py")

PYTHON = "/opt/venv/bin/python"
"""The image's."""

Manifest = dict[str, Any]


class CommandError(AssertionError):
    """A command of kubectl's failed."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        super().__init__(f"{' '.join(map(str, done.args))}: {done.returncode}\n{done.stdout}{done.stderr}")
        self.stderr = done.stderr


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until a condition gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(LOOK_SECONDS)
    return found


@dataclass(frozen=True)
class Cluster:
    """A cluster.

    Args:
        kubeconfig: Who we are to it: somebody who may do everything.
        program: kubectl.
        image: The service's image, which its nodes have.
    """

    kubeconfig: Path
    program: str
    image: str

    def command(self, *arguments: str) -> list[str]:
        return [self.program, f"--kubeconfig={self.kubeconfig}", *arguments]

    def run(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE) -> "subprocess.CompletedProcess[str]":
        """Run a command, whether it succeeds or not."""
        return subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )

    def kubectl(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE) -> str:
        """What a command prints, which must succeed."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        if done.returncode:
            raise CommandError(done)
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """An object, or a list's items."""
        found = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found["items"] if found["kind"] == "List" else found

    def has(self, api: str) -> bool:
        """Whether there is an API, such as ``metrics.k8s.io/v1beta1``."""
        return api in self.kubectl("api-versions").split()

    @contextmanager
    def namespace(self, level: str = "restricted") -> Iterator["Namespace"]:
        """A new namespace that enforces a Pod Security Standard, and goes with all that is in it at the end."""
        name = f"agentcore-{uuid.uuid4().hex[:8]}"
        labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn")}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            namespace = Namespace(self, name)
            eventually(
                lambda: namespace.run("get", "serviceaccount", "default").returncode == 0, f"{name} has an account"
            )
            yield namespace
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def apply(self, *manifests: Manifest, options: tuple[str, ...] = ()) -> str:
        """Have the API server take objects over, field by field, none of which it may not have."""
        documents = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
        return self.kubectl(
            "apply", "--server-side", "--validate=strict", *options, "--filename=-", stdin=documents, timeout=PATIENCE
        )


@dataclass(frozen=True)
class Namespace:
    """A namespace.

    Args:
        cluster: Whose it is.
        name: How it is called.
    """

    cluster: Cluster
    name: str

    def command(self, *arguments: str) -> list[str]:
        return self.cluster.command(f"--namespace={self.name}", *arguments)

    def run(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE) -> "subprocess.CompletedProcess[str]":
        return self.cluster.run(f"--namespace={self.name}", *arguments, stdin=stdin, timeout=timeout)

    def kubectl(self, *arguments: str, stdin: str = "", timeout: float = PATIENCE) -> str:
        return self.cluster.kubectl(f"--namespace={self.name}", *arguments, stdin=stdin, timeout=timeout)

    def get(self, *arguments: str) -> Any:
        return self.cluster.get(f"--namespace={self.name}", *arguments)

    def apply(self, *manifests: Manifest, options: tuple[str, ...] = ()) -> str:
        return self.cluster.apply(*manifests, options=(f"--namespace={self.name}", *options))

    def secret(self, name: str, **data: str) -> None:
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})

    def events(self, of: str, reason: str) -> list[str]:
        """What has been said of an object for a reason."""
        selector = f"involvedObject.name={of},reason={reason}"
        return [event["message"] for event in self.get("events", f"--field-selector={selector}")]

    def objects(self, selector: str = "") -> set[str]:
        """All that is there, events aside, as ``kind/name``.

        Args:
            selector: Which labels it has.
        """
        kinds = self.cluster.kubectl("api-resources", "--namespaced", "--verbs=list,create", "--output=name")
        known = sorted(set(kinds.split()) - {"events", "events.events.k8s.io"})
        options = (f"--selector={selector}", "--output=name", "--ignore-not-found")
        return set(self.kubectl("get", ",".join(known), *options).split())

    def pod(self, name: str) -> Manifest:
        found: Manifest = self.get("pod", name)
        return found

    def evict(self, pod: str) -> "subprocess.CompletedProcess[str]":
        """Ask for what ``kubectl drain`` asks for."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.name}}
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}/eviction"
        return self.run("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))


# -- Releases ----------------------------------------------------------------------------------------------------------


@dataclass
class Release:
    """The chart in a namespace.

    Args:
        namespace: Where.
        name: How it is called.
        values: What every revision of it has.
    """

    namespace: Namespace
    name: str = "demo"
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """What its objects are called."""
        return f"{self.name}-agentcore"

    @property
    def url(self) -> str:
        """The Service's, in the cluster."""
        return f"http://{self.full_name}.{self.namespace.name}.svc:8080"

    @property
    def address(self) -> str:
        """The same without its name, for those who do not try the cluster's DNS."""
        address = self.namespace.get("service", self.full_name)["spec"]["clusterIP"]
        return f"http://[{address}]:8080" if ":" in address else f"http://{address}:8080"

    @property
    def selector(self) -> str:
        return f"app.kubernetes.io/instance={self.name}"

    @property
    def pods_selector(self) -> str:
        return f"{self.selector},app.kubernetes.io/component=server"

    @cached_property
    def helm(self) -> helm.Config:
        return helm.Config(kubeconfig_path=self.namespace.cluster.kubeconfig, namespace=self.namespace.name)

    def install(self, *values: Mapping[str, Any], wait: bool = True) -> None:
        """``helm install``, with ``--wait`` unless told otherwise."""
        self.helm.install(CHART, self.name, self._merged(*values), timeout=int(PATIENCE), wait=self._wait(wait))

    def upgrade(self, *values: Mapping[str, Any], wait: bool = True) -> None:
        """``helm upgrade``, likewise."""
        self.helm.upgrade(CHART, self.name, self._merged(*values), timeout=int(PATIENCE), wait=self._wait(wait))

    def rollback(self) -> None:
        """``helm rollback --wait``."""
        self.helm.rollback(self.name, timeout=int(PATIENCE), wait="watcher")

    def test(self) -> str:
        """``helm test --logs``: what the test's pod has logged."""
        result = self.helm.test(self.name, timeout=int(PATIENCE), logs=True)
        logs: str = result["logs"]
        return logs

    def uninstall(self) -> None:
        """``helm uninstall --wait``."""
        self.helm.uninstall(self.name, timeout=int(PATIENCE), wait="watcher")

    def _merged(self, *values: Mapping[str, Any]) -> dict[str, Any]:
        repository, _, tag = self.namespace.cluster.image.rpartition(":")
        return merged({"image": {"repository": repository, "tag": tag}}, self.values, *values)

    @staticmethod
    def _wait(wait: bool) -> str:
        return "watcher" if wait else "hookOnly"

    def pods(self) -> list[Manifest]:
        """The agent's pods that are not being ended."""
        pods = self.namespace.get("pods", f"--selector={self.pods_selector}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def pod(self) -> Manifest:
        """The only one of them."""
        (pod,) = self.pods()
        return pod

    def ready_pods(self) -> list[str]:
        """The names of those that are ready."""
        return [pod["metadata"]["name"] for pod in self.pods() if is_ready(pod)]

    def objects(self) -> set[str]:
        """All that is there of it, as ``kind/name``: what it consists of, what its hooks made, and Helm's own notes."""
        return self.namespace.objects(self.selector) | self.namespace.objects(f"owner=helm,name={self.name}")


def is_ready(pod: Manifest) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def agent_source(version: int = 0) -> dict[str, Any]:
    """The values of ``--set-file agent.source=agent.py``, in one of its versions."""
    source = AGENT.read_text()
    changed = source.replace("VERSION = 0\n", f"VERSION = {version}\n")
    assert version == 0 or changed != source
    return {"agent": {"source": changed}}


# -- Pods of ours ------------------------------------------------------------------------------------------------------


def _pod(cluster: Cluster, name: str, command: list[str], **spec: Any) -> Manifest:
    """A pod of the service's image that runs something else, and fits the restricted standard."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": cluster.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "client", "mountPath": "/client", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "client", "configMap": {"name": "client"}}],
        }
        | spec,
    }


@dataclass(frozen=True)
class Client:
    """A pod that calls agents, and keeps what their tasks report.

    Args:
        namespace: Where it is.
    """

    namespace: Namespace

    @classmethod
    def started(cls, namespace: Namespace) -> "Client":
        """One that is ready."""
        program = {"client.py": CLIENT.read_text()}
        namespace.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "client"}, "data": program},
            _pod(namespace.cluster, "client", [PYTHON, "/client/client.py", "keep-reports"]),
        )
        namespace.kubectl(
            "wait", "--for=condition=Ready", "pod/client", f"--timeout={PATIENCE:g}s", timeout=2 * PATIENCE
        )
        return cls(namespace)

    @property
    def report(self) -> str:
        """Where tasks report that they are done."""
        return f"http://{self.namespace.pod('client')['status']['podIP']}:8080"

    def reports(self) -> list[str]:
        """What has been reported."""
        return str(self.call(self.report, "GET", "/")["body"]).split()

    def run(self, *arguments: str) -> str:
        """What a command of ``client.py`` prints."""
        return self.namespace.kubectl(*self.program(*arguments))

    def program(self, *arguments: str) -> list[str]:
        """A command of ``client.py``, for kubectl."""
        return ["exec", "--stdin", "client", "--", PYTHON, "/client/client.py", *arguments]

    def call(self, url: str, method: str, path: str, body: object = None) -> dict[str, Any]:
        """An answer: its status, its body and its headers."""
        rest = [] if body is None else ["--body", json.dumps(body)]
        answer: dict[str, Any] = json.loads(self.run("call", url, method, path, *rest))
        return answer

    def invoke(self, release: Release, **ask: object) -> Any:
        """What the agent answers to an invocation through the Service, which must succeed."""
        answer = self.call(release.url, "POST", "/invocations", ask)
        assert answer["status"] == 200, answer
        return json.loads(answer["body"])

    def install(self, release: Release, *values: Mapping[str, Any]) -> None:
        """Install a release, and wait until the Service leads to it: kube-proxy hears of a pod after it is ready."""
        release.install(*values)
        self.first_answer(release)

    def wait_for_version(self, release: Release, version: int) -> None:
        """Ask until the Service leads to a version: it may lead to a pod that is told to end for a moment more."""
        eventually(lambda: self.invoke(release)["version"] == version, f"version {version} answers", 30)

    def converse(self, release: Release, *messages: str) -> list[Any]:
        """What the agent says to messages on a WebSocket."""
        return [json.loads(line) for line in self.run("converse", release.url, *messages).splitlines()]

    def first_answer(self, release: Release, **ask: object) -> dict[str, Any]:
        """The first answer of an agent, as its status and body, and how often it could not be reached before."""
        answer: dict[str, Any] = json.loads(self.run("call-until-answered", release.url, json.dumps(ask)))
        return answer

    @contextmanager
    def load(self, release: Release) -> Iterator["Load"]:
        """Call a release as long as the block lasts."""
        load = Load()
        with subprocess.Popen(
            self.namespace.command(*self.program("load", release.address, self.report)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout
                if not process.stdout.readline():
                    raise AssertionError(process.communicate()[1])
                yield load
                output, errors = process.communicate("stop\n", timeout=PATIENCE)
                assert process.returncode == 0, errors
                load.fill(json.loads(output))
            finally:
                process.kill()


@dataclass
class Load:
    """What a load has met; empty as long as it goes on."""

    done: list[tuple[str, float, float, str, int]] = field(default_factory=list)
    failures: list[tuple[str, float, float, str]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    def fill(self, found: Mapping[str, Any]) -> None:
        self.done = [tuple(one) for one in found["done"]]
        self.failures = [tuple(one) for one in found["failures"]]
        self.tasks = found["tasks"]

    def seconds(self, kind: str, since: float = 0, until: float = float("inf")) -> list[float]:
        """How long the requests of a kind took that began within a time, in order."""
        return sorted(took for name, began, took, *_ in self.done if name == kind and since <= began < until)


@contextmanager
def watched_pods(release: Release) -> Iterator[dict[str, Manifest]]:
    """The last that was seen of each of a release's pods, by name, also of those that are gone.

    Those that were told to end have a field ``toldToEnd``, with the time in seconds since the epoch.
    """
    seen: dict[str, Manifest] = {}
    with subprocess.Popen(
        release.namespace.command(
            "get", "pods", f"--selector={release.pods_selector}", "--watch", "--output=json", "--output-watch-events"
        ),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def read() -> None:
            assert process.stdout
            for line in process.stdout:
                pod = json.loads(line)["object"]
                name, metadata = pod["metadata"]["name"], pod["metadata"]
                if "deletionTimestamp" in metadata:
                    # When it will be killed; in the last event, when it was gone.
                    killed = datetime.fromisoformat(metadata["deletionTimestamp"]).timestamp()
                    told = killed - metadata["deletionGracePeriodSeconds"]
                    pod["toldToEnd"] = seen.get(name, {}).get("toldToEnd", told)
                seen[name] = pod

        reader = threading.Thread(target=read, name="watched-pods")
        reader.start()
        try:
            yield seen
        finally:
            process.kill()
            reader.join()


def exit_codes(pod: Manifest) -> list[int]:
    """Of a pod's containers that have ended."""
    states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
    return [state["terminated"]["exitCode"] for state in states if "terminated" in state]


def signal_from_the_node(pod: Manifest, number: int, cluster: Cluster) -> None:
    """Send a signal to the first process of a pod's agent, as nobody within the pod can.

    Args:
        pod: The pod.
        number: The signal's.
        cluster: Where it is.
    """
    uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
    program = f"""
import os
from pathlib import Path
found = []
for directory in Path("/proc").glob("[0-9]*"):
    try:
        ours = b"K8S_POD_UID={uid}" in (directory / "environ").read_bytes().split(bytes(1))
        if ours and "\\t1\\n" in (directory / "status").read_text().partition("NSpid:")[2]:
            found.append(int(directory.name))
    except OSError:
        pass  # it has ended meanwhile
(first,) = found
os.kill(first, {number})
"""
    with cluster.namespace("privileged") as namespace:
        privileges = {"runAsUser": 0, "privileged": True}
        spec: Manifest = _pod(cluster, "node", [PYTHON, "-c", program], hostPID=True, nodeName=node, volumes=[])
        spec["spec"]["securityContext"] = {}
        spec["spec"]["containers"][0] |= {"securityContext": privileges, "volumeMounts": []}
        namespace.apply(spec)
        phase = eventually(
            lambda: namespace.pod("node")["status"]["phase"] in {"Succeeded", "Failed"} and namespace.pod("node"),
            "the signal was sent",
        )["status"]["phase"]
        assert phase == "Succeeded", namespace.kubectl("logs", "node")
