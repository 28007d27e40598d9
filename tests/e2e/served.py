"""An agent in a process of its own, with the variables that a test gives it and none of the caller's."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

import pytest

from tests.integration.server import ServerProcess, free_port, run

OURS = (sys.executable, "-m")
"""Begins a command that runs a module."""

START_SECONDS = 120.0


@contextmanager
def served(
    app: str, runner: Sequence[str] = OURS, stdout: int | IO[str] = subprocess.DEVNULL, /, **environment: str
) -> Iterator[ServerProcess]:
    """Serve ``module:attribute`` with ``litestar run`` until the test is through.

    Args:
        app: The agent.
        runner: The beginning of the command; the module that it is to run and that one's arguments follow.
        stdout: Where the agent's standard output goes.
        environment: The variables.
    """
    port = free_port()
    command = [*runner, "litestar", "--app", app, "run", "--port", str(port)]
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith(("OTEL_", "AGENTCORE_")):
                    patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            server = stack.enter_context(run(command, port, start_seconds=START_SECONDS, stdout=stdout))
        yield server
