"""Environments of Python that tests need beside their own, made from locked requirements."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        run(sys.executable, "-m", "venv", "--clear", directory)
        run(
            directory / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--no-compile",
            "--require-hashes",
            "--requirement",
            requirements,
        )
        stamp.write_text(requirements.read_text())
    return directory / "bin"


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command to its end; one that fails fails the test."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}", pytrace=False)
