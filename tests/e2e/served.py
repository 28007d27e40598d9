"""An agent in a process of its own, with the variables that a test gives it and none of the caller's."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.integration.server import ServerProcess, free_port, run


@contextmanager
def served(app: str, **environment: str) -> Iterator[ServerProcess]:
    """Serve ``module:attribute`` with ``litestar run`` until the test is through."""
    port = free_port()
    command = [sys.executable, "-m", "litestar", "--app", app, "run", "--port", str(port)]
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith(("OTEL_", "AGENTCORE_")):
                    patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            server = stack.enter_context(run(command, port))
        yield server
