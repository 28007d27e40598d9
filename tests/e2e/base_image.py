"""What stands in for the image ``python:3.13-slim``, which is in a registry: the same Debian, and its own Python 3.13.

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
    "--variant=extract",  # whose packages run nothing, so that one for another architecture takes no longer
    "--include=?essential",
    "--include=apt,ca-certificates,netbase,python3,python3-venv,tzdata",  # as far as the published image has them
    '--extract-hook=cd "$1" && rm -r usr/share/doc usr/share/info usr/share/locale usr/share/man',
    '--extract-hook=cd "$1" && for name in passwd group; do cp usr/share/base-passwd/$name.master etc/$name; done',
    # Python is where the published image has it.
    '--extract-hook=mkdir -p "$1/usr/local/bin" && ln -s ../../bin/python3 "$1/usr/local/bin/python"',
    # Where builds find what this machine has of these.
    '--extract-hook=cd "$1/etc" && touch pip.conf ssl/certs/ca-certificates.crt',
)


def base_archive(architecture: str = "amd64") -> Path:
    """Make the base, unless it has been made already.

    Args:
        architecture: For which machines.

    Returns:
        A tar file of all that is in it.
    """
    options = [*OPTIONS, f"--architectures={architecture}", "--format=tar", "trixie"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litestar-agentcore"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"base-{architecture}-{hashlib.sha256(repr(options).encode()).hexdigest()[:16]}.tar"
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            partial = archive.with_suffix(".partial")
            done = subprocess.run(
                [executable("mmdebstrap", "the Debian package mmdebstrap"), *options, partial],
                capture_output=True,
                text=True,
                timeout=MAKE_SECONDS,
                check=False,
            )
            if done.returncode:
                pytest.fail(f"the base image cannot be made\n{done.stdout}{done.stderr}", pytrace=False)
            partial.rename(archive)
    return archive
