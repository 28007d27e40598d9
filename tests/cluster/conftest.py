"""The cluster that the tests run in: the one that ``KUBECONFIG`` names, or one that is made for them.

Into a cluster that is there already an image comes by the command in ``CLUSTER_LOAD_IMAGE``, to which the archive's
path is appended, such as ``kind load image-archive``; or ``CLUSTER_IMAGE`` names one that its nodes have, or can pull.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import kubernetes
from tests.cluster.images import IMAGE, build_archive
from tests.cluster.local.cluster import Cluster, running
from tests.cluster.local.errors import ClusterError


@pytest.fixture(scope="session")
def own_cluster() -> Iterator[Cluster | None]:
    """The cluster that was made for the tests, if ``KUBECONFIG`` names no other one."""
    if os.environ.get("KUBECONFIG"):
        yield None
        return
    directory = Path(tempfile.mkdtemp(prefix="litestar-agentcore-cluster-"))
    try:
        with running(directory / "cluster") as cluster:
            yield cluster
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
    finally:
        directory.rmdir()


@pytest.fixture(scope="session")
def kubeconfig(own_cluster: Cluster | None) -> Path:
    """A kubeconfig that may do everything in the cluster."""
    return own_cluster.kubeconfig if own_cluster else Path(os.environ["KUBECONFIG"])


@pytest.fixture(scope="session")
def kubectl(own_cluster: Cluster | None) -> Path:
    """The program ``kubectl``."""
    if own_cluster:
        return own_cluster.programs / "kubectl"
    found = shutil.which("kubectl")
    if found is None:
        pytest.fail("`kubectl` is not on the PATH", pytrace=False)
    return Path(found)


@pytest.fixture(scope="session")
def load_image(own_cluster: Cluster | None) -> Callable[[Path], None]:
    """What loads an image, out of an archive of Docker's format or OCI's, into every node of the cluster."""
    if own_cluster:
        return own_cluster.load_image

    def load(archive: Path) -> None:
        command = shlex.split(os.environ.get("CLUSTER_LOAD_IMAGE", ""))
        if not command:
            pytest.fail("CLUSTER_LOAD_IMAGE has no command that loads an archive into the cluster", pytrace=False)
        subprocess.run([*command, archive], check=True)

    return load


@pytest.fixture(scope="session")
def image(load_image: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The service's image, which every node has: the one that ``CLUSTER_IMAGE`` names, or one that is built."""
    if there := os.environ.get("CLUSTER_IMAGE"):
        return there
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    build_archive(archive)
    load_image(archive)
    return IMAGE


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path, kubectl: Path, image: str) -> kubernetes.Cluster:
    """The cluster, with the image in it."""
    return kubernetes.Cluster(kubeconfig, str(kubectl), image)
