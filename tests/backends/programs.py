"""Backends that are built from their published Go modules, once, into a cache outside the tree.

``python -m tests.backends.programs`` builds them all; from nothing that takes minutes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GO = Path(__file__).parent / "go"

PACKAGES = {"jaeger": "github.com/jaegertracing/jaeger/cmd/all-in-one", "collector": ".", "tempo": "."}
"""The main package of each program; a module of that name below ``go`` locks the versions of all it is made of."""

LINKING = {"tempo": "-s -w -checklinkname=0"}  # its golang.org/x/net, of 2022, reaches into the standard library

BUILD_SECONDS = 3600.0


def program(name: str) -> Path:
    """The executable, built unless this module was built by this Go before.

    Args:
        name: One of :data:`PACKAGES`.

    Raises:
        RuntimeError: There is no Go, or it cannot build the program.
    """
    go = shutil.which("go")
    if go is None:
        raise RuntimeError("the backends are built by Go (1.26 or newer), and there is no `go` on the PATH")
    directory = _cache()
    directory.mkdir(parents=True, exist_ok=True)
    executable = directory / f"{name}-{_digest(go, GO / name)}"
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not executable.exists():
            _build(go, name, executable)
    return executable


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "litestar-agentcore", "backends")


def _digest(go: str, module: Path) -> str:
    digest = hashlib.sha256(subprocess.check_output([go, "env", "GOVERSION", "GOOS", "GOARCH"], cwd=module))
    for file in sorted(file for file in module.iterdir() if file.suffix in {".go", ".mod", ".sum"}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _build(go: str, name: str, executable: Path) -> None:
    with tempfile.TemporaryDirectory(dir=executable.parent) as directory:
        built = Path(directory, name)
        done = subprocess.run(
            [
                *(go, "build", "-mod=readonly", "-trimpath"),
                *(f"-ldflags={LINKING.get(name, '-s -w')}", "-o", built, PACKAGES[name]),
            ],
            cwd=GO / name,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name} cannot be built:\n{done.stdout}{done.stderr}")
        for old in executable.parent.glob(f"{name}-*"):
            old.unlink()
        built.rename(executable)


if __name__ == "__main__":
    for each in PACKAGES:
        began = time.monotonic()
        print(f"{each}: {program(each)}, {time.monotonic() - began:.0f} s", file=sys.stderr)
