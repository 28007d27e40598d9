"""The service's image, built as the end-to-end tests build it, in an archive that a cluster can load."""

from pathlib import Path

from litestar_agentcore.version import __version__

from tests.e2e.base_image import CHANGES, NAME, base_archive
from tests.e2e.engine import BUILD_SECONDS, running_engine
from tests.e2e.runtimes import ROOT

IMAGE = f"litestar-agentcore:{__version__}"
"""What the chart asks for where its values name no other image."""


def build_archive(archive: Path) -> None:
    """Carry out the Dockerfile, with this machine's buildah.

    Args:
        archive: Where the image is written to, in Docker's format.
    """
    whole_name = f"docker.io/library/{IMAGE}"
    with running_engine() as own:
        own.load(base_archive(), NAME, *CHANGES)
        own.build(ROOT, whole_name)
        own.run("buildah", "push", whole_name, f"docker-archive:{archive}:{whole_name}", seconds=BUILD_SECONDS)
