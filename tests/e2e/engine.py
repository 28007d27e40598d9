"""A container engine of the tests' own: buildah and podman, with runc, apart from whatever this machine runs.

It lives in namespaces (mounts, processes, network) that end with it, however the tests end: no container, image, mount
or network outlives them, and the ports of its network are all free. Images and containers are kept in memory.
"""

import ast
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

from tests.e2e.executables import executable

PATIENCE = 120.0
"""Seconds after which what should have happened long ago counts as not happening."""

BUILD_SECONDS = 3600.0

COMMANDS = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
"""What is needed, each with the Debian package that has it."""

NETWORK_PLUGIN = Path("/usr/lib/cni/bridge")

DIRECTORY = Path("/run/engine")
"""Where it keeps everything, inside the namespaces."""

CGROUPS = Path("/sys/fs/cgroup")

NAMESPACE = f"""\
set -e
resolver=$(realpath /etc/resolv.conf)
names=$(cat "$resolver")
mkdir -p /var/lib/cni
for directory in /run /dev/shm /var/lib/cni; do mount -t tmpfs tmpfs "$directory"; done
mkdir -p {DIRECTORY}/networks "$(dirname "$resolver")"
[ -e "$resolver" ] || echo "$names" >"$resolver"
ip link set lo up
echo ready
exec cat
"""
"""The first process of the namespaces: hides the engine of this machine, and ends when nobody writes to it any more."""

REQUEST = """\
import http.client, json, sys
port, method, path, body, headers, timeout = json.load(sys.stdin)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
connection.request(method, path, body, headers)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""

NO_INDEX = re.compile(
    r"Retrying \(Retry|Could not fetch URL|Could not find a version that satisfies|Connection ?Error|SSLError"
)

PIP_OPTIONS = {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries"}
"""The settings of pip's that say where packages are to be had."""

TRUST_STORE = Path("/etc/ssl/certs/ca-certificates.crt")


class Failed(Exception):
    """A command of the engine has failed."""


def pip_configuration(**options: str) -> str:
    """A configuration file for pip in a container: where packages are to be had, as pip on this machine has been told.

    Args:
        options: Further settings.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout
    # In the order in which the later one wins: files, then the environment.
    lines = sorted(
        re.findall(r"^(\S+?)\.(\S+?)=('.*'|\".*\")$", listed, re.MULTILINE), key=lambda line: line[0] == ":env:"
    )
    settings = {name: ast.literal_eval(value) for _, name, value in lines if name in PIP_OPTIONS} | options
    text = "".join(f"{name} = {value}\n".replace("\n", "\n    ").rstrip() + "\n" for name, value in settings.items())
    return f"[global]\ncert = {TRUST_STORE}\n{text}"


@dataclass(frozen=True)
class Container:
    """A container that has been started.

    Args:
        engine: Who runs it.
        name: Its name.
        id: What the engine calls it.
        port: The port of the engine's network that has been published for its 8080.
    """

    engine: "Engine"
    name: str
    id: str
    port: int

    def start(self) -> None:
        """Start it."""
        # conmon 2.1.6 leaves a note on memory that ran out where it is started, and podman 4.3 looks for it here.
        directory = DIRECTORY / "storage/overlay-containers" / self.id / "userdata"
        self.engine.run("env", f"--chdir={directory}", "podman", "start", self.name)

    def ask(
        self, path: str, payload: object = None, headers: Mapping[str, str] | None = None, timeout: float = PATIENCE
    ) -> tuple[int, str]:
        """What the published port answers: the status and the body. With a payload it is POST, else GET."""
        body = None if payload is None else json.dumps(payload)
        request = [self.port, "GET" if payload is None else "POST", path, body, dict(headers or {}), timeout]
        status, answer = json.loads(
            self.engine.run(sys.executable, "-c", REQUEST, stdin=json.dumps(request), seconds=timeout + PATIENCE)
        )
        return status, answer

    def invoke(self, payload: object, **options: Any) -> tuple[int, str]:
        """What ``POST /invocations`` answers."""
        return self.ask("/invocations", payload, **options)

    def answers(self) -> bool:
        """Whether ``/ping`` does."""
        with suppress(Failed):
            return self.ask("/ping", timeout=2)[0] == 200
        return False

    def execute(self, *command: str) -> str:
        """What a command beside the first process prints."""
        return self.engine.podman("exec", self.name, *command)

    def succeeds(self, *command: str) -> bool:
        """Whether a command beside the first process does."""
        return self.engine.succeeds("podman", "exec", self.name, *command)

    @property
    def state(self) -> dict[str, Any]:
        """What ``podman inspect`` says of it."""
        (described,) = json.loads(self.engine.podman("inspect", self.name))
        return cast("dict[str, Any]", described["State"])

    @property
    def is_well(self) -> bool:
        """What the image's health check finds; asked for by hand, since without systemd no timer does."""
        return self.engine.succeeds("podman", "healthcheck", "run", self.name)

    def ended(self) -> dict[str, Any]:
        """Its last state, once it has ended."""
        wait_until(lambda: self.state["Status"] == "exited", lambda: f"it goes on\n{self.log()}")
        return self.state

    def stop(self, seconds: int = 10) -> dict[str, Any]:
        """End it as ``podman stop`` does, with SIGTERM first and SIGKILL after some seconds, and say its last state."""
        self.engine.podman("stop", "--time", str(seconds), self.name, seconds=seconds + PATIENCE)
        return self.ended()

    def log(self) -> str:
        """What it has written, to both outputs."""
        return self.engine.podman("logs", self.name)

    def entries(self) -> list[dict[str, Any]]:
        """Its lines of JSON."""
        return [json.loads(line) for line in self.log().splitlines()]


def wait_until(condition: Callable[[], bool], otherwise: Callable[[], str], seconds: float = PATIENCE) -> None:
    """Wait for a condition, and fail with some words where it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(otherwise())
        time.sleep(0.05)


class Engine:
    """Buildah and podman in namespaces of their own.

    Args:
        process: The first process of the namespaces, as this machine counts.
        cgroup: Below which control group the containers' own are.
    """

    def __init__(self, process: int, cgroup: str) -> None:
        self.process = process
        self._cgroup = cgroup
        self._numbers = count(1)
        self._environment = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(DIRECTORY),
            "TMPDIR": str(DIRECTORY),
            "LANG": "C.UTF-8",
            "CONTAINERS_CONF": str(DIRECTORY / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(DIRECTORY / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(DIRECTORY / "registries.conf"),
        }
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
        # Without these limits podman would raise its own, which needs CAP_SYS_RESOURCE.
        self._write(
            "containers.conf",
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
            f'log_driver = "k8s-file"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "cni"\nnetwork_config_dir = "{DIRECTORY / "networks"}"\n',
        )
        self._write(
            "storage.conf",
            '[storage]\ndriver = "overlay"\n'
            f'graphroot = "{DIRECTORY / "storage"}"\nrunroot = "{DIRECTORY / "state"}"\n',
        )
        self._write("registries.conf", "unqualified-search-registries = []\n")

    def _write(self, name: str, text: str) -> Path:
        Path(f"/proc/{self.process}/root{DIRECTORY / name}").write_text(text)
        return DIRECTORY / name

    def run(self, *command: str, stdin: str = "", seconds: float = PATIENCE, network: bool = True) -> str:
        """What a command in the namespaces prints, which must succeed.

        Args:
            command: Its words.
            stdin: What it can read.
            seconds: When it counts as hanging.
            network: Whether it sees the network of the containers, and not this machine's.

        Raises:
            Failed: It has failed; with all that it has printed.
        """
        namespaces = ["--mount", "--pid", *(["--net"] if network else [])]
        done = subprocess.run(
            ["nsenter", f"--target={self.process}", *namespaces, "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=self._environment,
            cwd="/",
        )
        if done.returncode:
            raise Failed(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        # Logs are written to both outputs, and podman says what it thinks on the second one.
        return done.stdout + done.stderr if command[:2] == ("podman", "logs") else done.stdout

    def podman(self, *arguments: str, seconds: float = PATIENCE) -> str:
        """What podman prints."""
        return self.run("podman", *arguments, seconds=seconds)

    def succeeds(self, *command: str) -> bool:
        """Whether a command in the namespaces does."""
        try:
            self.run(*command)
        except Failed:
            return False
        return True

    def load(self, archive: Path, name: str, *changes: str, architecture: str = "amd64") -> None:
        """Make an image of one layer out of an archive of its files.

        Args:
            archive: A tar file.
            name: What the image is called.
            changes: Instructions of a Dockerfile.
            architecture: What its programs run on.
        """
        options = [word for change in changes for word in ("--change", change)]
        self.podman("import", "--quiet", f"--arch={architecture}", *options, str(archive), name, seconds=BUILD_SECONDS)

    def build(self, context: Path, tag: str, *options: str, pip: Mapping[str, str] | None = None) -> str:
        """Carry out a Dockerfile, with a layer for each instruction, as Docker does, and say what was printed.

        The steps see this machine's network, and where it has packages.

        Args:
            context: The directory of the Dockerfile.
            tag: The image's name.
            options: Further options of ``buildah build``.
            pip: Further settings of pip's.
        """
        configuration = self._write("pip.conf", pip_configuration(**(pip or {})))
        try:
            return self.run(
                *["buildah", "build", "--isolation=chroot", "--format=docker", "--layers", "--pull-never"],
                f"--volume={configuration}:/etc/pip.conf:ro",
                f"--volume={TRUST_STORE}:{TRUST_STORE}:ro",
                *options,
                f"--tag={tag}",
                str(context),
                seconds=BUILD_SECONDS,
                network=False,
            )
        except Failed as failure:
            if NO_INDEX.search(str(failure)):
                pytest.fail(f"pip could not reach its package index from inside the build\n{failure}", pytrace=False)
            raise

    def image(self, name: str) -> dict[str, Any]:
        """What ``podman image inspect`` says."""
        (described,) = json.loads(self.podman("image", "inspect", name))
        return cast("dict[str, Any]", described)

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        """An image's file system, where commands in the namespaces find it."""
        mount = self.podman("image", "mount", name).strip()
        try:
            yield Path(f"/proc/{self.process}/root{mount}")
        finally:
            self.podman("image", "unmount", name)

    def create(self, image: str, *options: str, command: tuple[str, ...] = ()) -> Container:
        """Make a container, with its 8080 published, and start nothing."""
        number = next(self._numbers)
        name, port = f"test-{number}", 20_000 + number
        own = (f"--name={name}", f"--publish=127.0.0.1:{port}:8080", f"--cgroup-parent=/{self._cgroup}")
        created = self.podman("create", *own, *options, image, *command)
        return Container(self, name, created.strip(), port)

    @contextmanager
    def running(
        self, image: str, *options: str, command: tuple[str, ...] = (), seconds: float = PATIENCE
    ) -> Iterator[Container]:
        """Run an image until the test is through with it.

        Args:
            image: Its name.
            options: Those of ``podman run``.
            command: What is run, where it is not what the image says.
            seconds: How long it may take to answer.
        """
        container = self.create(image, *options, command=command)
        try:
            container.start()
            wait_until(
                lambda: container.answers() or container.state["Status"] == "exited",
                lambda: f"it does not answer\n{container.log()}",
                seconds,
            )
            if container.state["Status"] == "exited":
                pytest.fail(f"it has ended\n{container.state}\n{container.log()}")
            yield container
        finally:
            self.podman("rm", "--force", "--time=0", container.name)


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine that ends with the block, and with whoever runs it."""
    if os.getuid() != 0:
        pytest.fail("a container engine of one's own needs root: run this as root", pytrace=False)
    for name, package in COMMANDS.items():
        executable(name, f"the Debian package {package}")
    if not NETWORK_PLUGIN.exists():
        pytest.fail(f"`{NETWORK_PLUGIN}` is not there: install containernetworking-plugins", pytrace=False)
    with subprocess.Popen(
        ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "sh", "-c", NAMESPACE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        cgroup = f"litestar-agentcore-{process.pid}"
        try:
            said = process.stdout.readline()
            assert said == "ready\n", said + process.stdout.read()
            (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Engine(int(first), cgroup)
        finally:
            process.stdin.close()  # which ends the first process, and with it all others
            process.wait(PATIENCE)
            for directory in (*CGROUPS.glob(cgroup), *CGROUPS.glob(f"*/{cgroup}")):
                for path, _, _ in os.walk(directory, topdown=False):
                    Path(path).rmdir()
