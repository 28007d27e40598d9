"""Free ports for the servers that tests start."""

import os
import random
import socket
from itertools import count, islice

RANGE = range(10_000, 32_000)
"""Below what Linux gives to connections by itself, so that none of them takes a port before its server does."""

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_steps = count(random.SystemRandom().randrange(len(RANGE)))


def free_port() -> int:
    """A port of the loopback interface that nobody has, and that no other worker of pytest-xdist is given."""
    (port,) = free_ports(1)
    return port


def free_ports(number: int) -> list[int]:
    """As many such ports, no two of them the same."""
    share = RANGE[_WORKER::_WORKERS]
    candidates = (share[step % len(share)] for step in _steps)
    return list(islice(filter(_is_free, candidates), number))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
