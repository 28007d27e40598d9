"""The cluster that is made on this machine: nothing is left of it. Nobody else may begin one meanwhile."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.local.cluster import Cluster, remove_cgroups
from tests.cluster.local.namespace import PATIENCE
from tests.cluster.local.node import CGROUPS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(bool(os.environ.get("KUBECONFIG")), reason="KUBECONFIG names a cluster")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a cluster can be made: not the place of pytest's own, which may be below /var."""
    with tempfile.TemporaryDirectory(prefix="cluster-", dir="/tmp") as directory:
        yield Path(directory) / "cluster"


def up(directory: Path, **variables: str) -> "subprocess.Popen[str]":
    """Make a cluster, as a person does."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.local", "up", f"--dir={directory}"],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes(directory: Path) -> list[str]:
    """The command lines that name a directory, of others than `up` itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if f"{directory}/" in command:
            found.append(command)
    return found


def traces(directory: Path) -> set[str]:
    """What clusters make of this machine's: interfaces and control groups, and mounts of what is in a directory."""
    links = {str(path) for path in Path("/sys/class/net").glob("kube*")}
    groups = {str(path) for path in CGROUPS.glob("*/kube*")}
    mounts = {line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{directory}/" in line}
    return links | groups | mounts


def test_it_runs_until_it_is_told_to_stop_and_leaves_nothing(directory: Path) -> None:
    before = traces(directory)
    with up(directory) as process:
        try:
            assert process.stdout
            printed = list(iter(process.stdout.readline, f"{directory}/kubeconfig\n"))
            assert "" not in printed, process.stderr and process.stderr.read()
            cluster = Cluster(directory)
            command = [str(cluster.programs / "kubectl"), f"--kubeconfig={cluster.kubeconfig}", "get", "nodes"]
            nodes = subprocess.check_output([*command, "--output=name"], text=True)
            assert nodes.split() == ["node/node-1", "node/node-2"]
            assert processes(directory)
            assert traces(directory) - before
            cluster.stop()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert traces(directory) <= before
    assert not directory.exists()
    assert not processes(directory)


@pytest.mark.parametrize("part", ["etcd", "kubelet"])
def test_it_leaves_nothing_where_it_is_interrupted_while_it_is_made(directory: Path, part: str) -> None:
    before = traces(directory)
    with up(directory) as process:
        try:
            eventually(lambda: any(part in command for command in processes(directory)))
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert traces(directory) <= before
    assert not directory.exists()
    assert not processes(directory)


def test_no_process_of_it_outlives_the_one_that_made_it(directory: Path) -> None:
    with up(directory) as process:
        try:
            eventually(lambda: any("/kubelet" in command for command in processes(directory)))
            group = json.loads((directory / "node-1/kubelet.yaml").read_text())["cgroupRoot"]
        finally:
            process.kill()
    eventually(lambda: not processes(directory))
    # The kernel takes the interface, as soon as the last connection is given up.
    remove_cgroups(Path(group).parts[1])


def test_what_ended_while_it_is_made_is_shown_with_its_log(directory: Path) -> None:
    with up(directory) as process:
        try:
            eventually(lambda: any("etcd" in command for command in processes(directory)))
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                arguments = path.read_bytes().split(b"\0")
                if arguments[0].endswith(b"/etcd") and any(
                    os.fsencode(directory) in argument for argument in arguments
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "control-plane: etcd ended with" in errors
    assert "control-plane-etcd.log" in errors
    assert not directory.exists()


def test_a_machine_that_lacks_a_program_is_told_the_package(directory: Path) -> None:
    with up(directory, PATH="/nowhere") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (1, "`containerd` is not there: install the Debian package containerd\n")
