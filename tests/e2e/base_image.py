"""What stands in for the image ``python:3.13-slim``, which comes from a registry: the same Debian, with its Python 3.13.

It is made once, in a directory for caches outside the tree.
"""

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.executables import executable

NAME = "docker.io/library/python:3.13-slim"

CHANGES = (
    "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV LANG=C.UTF-8",
    'CMD ["python3"]',
)
"""What the published image says on how it is run."""

MAKE_SECONDS = 1800.0

OPTIONS = (
    "--quiet",
    "--variant=minbase",
    "--include=python3,python3-venv,ca-certificates",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")),
    # Python is where the published image has it, and without bytecode, as there.
    '--customize-hook=ln -s ../../bin/python3 "$1/usr/local/bin/python3" && ln -s python3 "$1/usr/local/bin/python"',
    '--customize-hook=find "$1/usr/lib" -name __pycache__ -prune -exec rm -r {} +',
    '--customize-hook=touch "$1/etc/pip.conf"',  # where builds find this machine's
)


def base_archive(architecture: str = "amd64") -> Path:
    """Make the base, unless it has been made already.

    Args:
        architecture: For which machines.

    Returns:
        A tar file of all that is in it.
    """
    command = [
        executable("mmdebstrap", "the Debian package mmdebstrap"),
        *OPTIONS,
        f"--architectures={architecture}",
        "--format=tar",
        "trixie",
    ]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litestar-agentcore"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"base-{architecture}-{hashlib.sha256(repr(command).encode()).hexdigest()[:16]}.tar"
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            partial = archive.with_suffix(".partial")
            done = subprocess.run(
                [*command, str(partial)], capture_output=True, text=True, timeout=MAKE_SECONDS, check=False
            )
            if done.returncode:
                pytest.fail(f"the base image cannot be made\n{done.stdout}{done.stderr}", pytrace=False)
            partial.rename(archive)
    return archive
