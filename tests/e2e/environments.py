"""Environments of Python that tests need beside their own, made from locked requirements."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.e2e.runtimes import HERE, ROOT

INSTALL_SECONDS = 900.0


def environment(name: str) -> Path:
    """Make ``.venv-<name>`` out of ``requirements-<name>.txt``, unless it has been made of just that already.

    Args:
        name: What the environment is for.

    Returns:
        Its directory of commands.
    """
    directory, requirements = ROOT / f".venv-{name}", HERE / f"requirements-{name}.txt"
    stamp = directory / requirements.name
    with _alone(requirements):
        if not stamp.exists() or stamp.read_text() != requirements.read_text():
            run(sys.executable, "-m", "venv", "--clear", "--without-pip", directory)
            _install(directory / "bin" / "python", requirements)
            stamp.write_text(requirements.read_text())
    return directory / "bin"


def node_modules(name: str, sources: Path) -> Path:
    """Make ``.npm-<name>`` out of a package's files and its lock, unless it has been made of just that already.

    Args:
        name: What the environment is for.
        sources: Where ``package.json``, ``package-lock.json`` and the modules that are run there are.

    Returns:
        The directory, with the modules in it.
    """
    directory, lock = ROOT / f".npm-{name}", sources / "package-lock.json"
    stamp = directory / ".installed"
    with _alone(lock):
        directory.mkdir(exist_ok=True)
        (directory / ".gitignore").write_text("*\n")
        for file in (lock, sources / "package.json", *sources.glob("*.mjs")):
            shutil.copy(file, directory)
        if not stamp.exists() or stamp.read_text() != lock.read_text():
            run(tool("npm"), "ci", "--no-audit", "--no-fund", cwd=directory)
            stamp.write_text(lock.read_text())
    return directory


def tool(name: str) -> str:
    """Where a command of the machine's is; a test fails without it."""
    path = shutil.which(name)
    assert path is not None, f"{name} is needed, and is not on the PATH"
    return path


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command to its end; one that fails fails the test."""
    done = _done(*command, cwd=cwd)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}", pytrace=False)


def _install(python: Path, requirements: Path) -> None:
    options: list[str | Path] = ["--requirement", requirements]
    if "--hash=" in requirements.read_text():
        options.append("--require-hashes")
    if _done(find_uv_bin(), "pip", "install", "--python", python, *options).returncode:
        # It reads no configuration of pip's, which may be what says where packages are to be had.
        run(sys.executable, "-m", "pip", "--python", python, "install", "--no-compile", *options)


def _done(*command: str | Path, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS)


@contextmanager
def _alone(requirements: Path) -> Iterator[None]:
    """Keep other workers of pytest-xdist from making the same environment meanwhile."""
    with requirements.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
