"""Whether a port is free to listen on, and who has it."""

import errno
import os
import socket
from contextlib import closing, suppress
from pathlib import Path

import httpx

from litestar_agentcore.cli.findings import Finding

_LISTEN = "0A"
"""The state of a listening socket in ``/proc/net/tcp`` (Linux, include/net/tcp_states.h)."""


def check_port(host: str, port: int) -> Finding:
    """Try to listen on a port, as the server would.

    Args:
        host: The address.
        port: The port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except (OSError, OverflowError) as error:
            number = getattr(error, "errno", None)
        else:
            return Finding("ok", "port", f"{port} is free on {host}")
    if number == errno.EADDRINUSE:
        return _taken(host, port)
    if number == errno.EACCES:
        return Finding("failure", "port", f"{port} is for privileged processes", "Choose one from 1024 on with --port.")
    return Finding("failure", "port", f"{host}:{port} cannot be listened on: {os.strerror(number or 0)}")


def _taken(host: str, port: int) -> Finding:
    owner = _owner(port)
    by = f" by {owner}" if owner else ""
    address = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - asks, binds nothing  # nosec B104
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    status = None
    with suppress(httpx.HTTPError, ValueError, AttributeError):
        status = httpx.get(f"{url}/ping", timeout=1, trust_env=False).json().get("status")
    if status in ("Healthy", "HealthyBusy"):
        return Finding("ok", "port", f"an agent is served on {port}{by}; it says {status}")
    return Finding("failure", "port", f"{port} is taken{by}", "End that, or choose another with --port.")


def _owner(port: int) -> str | None:
    """The process that listens on a port, as far as this user may see it; on Linux alone."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(str(file.readlink()) in inodes for file in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return None
