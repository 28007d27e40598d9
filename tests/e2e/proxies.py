"""Real proxies on the loopback interface, set up as ingress controllers set them up from the chart's Ingresses.

The controllers themselves are not here. ``nginx`` follows ingress-nginx and ``haproxy`` follows HAProxy Ingress: each
annotation becomes the directive that the controller writes for it, and one that is not known here is an error. One
thing differs in kind: ingress-nginx hashes in Lua, onto a ring of its own, for which nginx's ``hash ... consistent``
stands in.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.chart import Manifests
from tests.e2e.runtimes import free_ports

PATIENCE = 10.0
"""Seconds after which what should have happened long ago counts as not happening."""

GENERATION = "X-Generation"
"""The header in which a proxy says which of its configurations an answer went through."""


class Annotations:
    """The annotations of an Ingress, each of which must be read.

    Args:
        ingress: The Ingress.
        prefix: Whose annotations they are.
    """

    def __init__(self, ingress: Mapping[str, Any], prefix: str) -> None:
        self._left = {name.removeprefix(prefix): value for name, value in ingress["metadata"]["annotations"].items()}

    def __getitem__(self, name: str) -> str:
        value: str = self._left.pop(name)
        return value

    def get(self, name: str, default: str) -> str:
        """What an annotation says, or what the controller does without it."""
        value: str = self._left.pop(name, default)
        return value

    def done(self) -> None:
        """Say that no other annotation means anything."""
        assert not self._left, f"annotations that no controller is known to read: {self._left}"


def rule(ingress: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The host and the paths of an Ingress of one rule."""
    (only,) = ingress["spec"]["rules"]
    paths = only["http"]["paths"]
    assert {path["pathType"] for path in paths} == {"Prefix"}
    return only["host"], [path["path"] for path in paths]


def nginx(manifests: Manifests, servers: Mapping[str, int], port: int, generation: str) -> str:
    """What ingress-nginx makes of the chart's two Ingresses: upstreams, and a header that chooses between them."""
    plain, sessions = manifests.all("Ingress")
    assert rule(plain) == rule(sessions), "ingress-nginx looks for a canary's main Ingress by host and path"
    host, paths = rule(plain)
    own = Annotations(plain, "nginx.ingress.kubernetes.io/")
    location = f"""
            proxy_pass http://$chosen;
            proxy_buffering {own["proxy-buffering"]};
            proxy_http_version {own["proxy-http-version"]};
            proxy_read_timeout {own["proxy-read-timeout"]}s;
            proxy_send_timeout {own["proxy-send-timeout"]}s;
            client_max_body_size {own["proxy-body-size"]};
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            add_header {GENERATION} {generation} always;
    """
    own.done()
    canary = Annotations(sessions, "nginx.ingress.kubernetes.io/")
    assert canary["canary"] == "true"
    header = canary["canary-by-header"].lower().replace("-", "_")
    pattern, key = canary["canary-by-header-pattern"], canary["upstream-hash-by"]
    canary.done()
    # Without a key nginx goes round robin, but ingress-nginx does not: it hashes nothing like anything else.
    ring = f'hash "-{key}" consistent;'
    endpoints = "".join(f"server 127.0.0.1:{number};\n" for number in servers.values())
    locations = "".join(f"location = {path} {{{location}}}\nlocation {path}/ {{{location}}}\n" for path in paths)
    return f"""
    user root;
    daemon off;
    pid nginx.pid;
    error_log stderr;
    worker_processes 2;
    events {{ worker_connections 2048; }}
    http {{
        access_log off;
        map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
        map $http_{header} $chosen {{ default plain; "~{pattern}" sessions; }}
        upstream plain {{ {endpoints} keepalive 320; }}
        upstream sessions {{ {ring} {endpoints} keepalive 320; }}
        server {{
            listen 127.0.0.1:{port};
            server_name {host};
            {locations}
            location / {{ return 404; }}
        }}
    }}
    """


def haproxy(manifests: Manifests, servers: Mapping[str, int], port: int, generation: str) -> str:
    """What HAProxy Ingress makes of the chart's Ingress: a backend whose servers have ids made of their pods' UIDs."""
    ingress = manifests.one("Ingress")
    host, paths = rule(ingress)
    own = Annotations(ingress, "haproxy-ingress.github.io/")
    backend = f"""
        balance {own["balance-algorithm"]}
        timeout server {own["timeout-server"]}
        timeout tunnel {own["timeout-tunnel"]}
        {own["config-backend"]}
        http-response set-header {GENERATION} {generation}
    """
    assert own["assign-backend-server-id"] == "true"
    weight = own.get("initial-weight", "1")
    own.done()
    for index, (uid, number) in enumerate(servers.items()):
        identity = zlib.crc32(uid.encode()) & 0x7FFFFFFF
        backend += f"server srv{index + 1:03} 127.0.0.1:{number} weight {weight} id {identity} check inter 2s\n"
    accepted = "".join(f"acl known path {path}\nacl known path_beg {path}/\n" for path in paths)
    return f"""
    global
        maxconn 2000
        nbthread 2
    defaults
        mode http
        option redispatch
        option http-keep-alive
        timeout connect 5s
        timeout client 50s
        timeout http-request 5s
        timeout http-keep-alive 1m
        timeout queue 5s
    frontend http
        bind 127.0.0.1:{port}
        {accepted}
        acl here hdr(host) -i {host}
        http-request return status 404 unless here known
        default_backend agent
    backend agent
        {backend}
    """


KINDS = {
    "ingress-nginx": (nginx, "nginx", ("-e", "stderr", "-p", ".", "-c"), signal.SIGHUP),
    "haproxy": (haproxy, "haproxy", ("-W", "-f"), signal.SIGUSR2),
}
"""By the name that the chart has for a controller: its configuration, its binary, how to start it, how to reload it."""


def executable(name: str) -> str:
    """A proxy's binary."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if found is None:
        pytest.fail(f"`{name}` is not on the PATH: install it, on Debian with `apt-get install {name}`", pytrace=False)
    return found


class Proxy:
    """A running proxy.

    Args:
        controller: The ingress controller that it stands for.
        manifests: The chart's objects.
        directory: For its files.
        port: Where it listens.
    """

    def __init__(self, controller: str, manifests: Manifests, directory: Path, port: int) -> None:
        self.port = port
        self.host = rule(manifests.all("Ingress")[0])[0]
        self._configure, self._binary, self._options, self._reload = KINDS[controller]
        self._manifests = manifests
        self._directory = directory
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes]

    @contextmanager
    def running(self, servers: Mapping[str, int]) -> Iterator["Proxy"]:
        """Lead to servers, each a pod's UID and a port, until the test is through."""
        generation = self._write(servers)
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [executable(self._binary), *self._options, "proxy.conf"],
                cwd=self._directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_for(generation)
            yield self
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def lead_to(self, servers: Mapping[str, int]) -> None:
        """Take other servers, as a controller does when the pods of a Service are others."""
        generation = self._write(servers)
        self._process.send_signal(self._reload)
        self._wait_for(generation)

    def _write(self, servers: Mapping[str, int]) -> str:
        generation = str(time.monotonic_ns())
        configuration = self._configure(self._manifests, servers, self.port, generation)
        (self._directory / "proxy.conf").write_text(configuration.rstrip() + "\n")
        return generation

    def _wait_for(self, generation: str) -> None:
        """Wait until no connection comes to the configuration before."""
        deadline = time.monotonic() + PATIENCE
        seen = 0
        while seen < 20:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            if generation in self._knock():
                seen += 1
            else:
                seen = 0
                time.sleep(0.05)

    def _knock(self) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
                request = f"GET /ping HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n"
                connection.sendall(request.encode())
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        except OSError:
            return ""


@contextmanager
def proxy(controller: str, manifests: Manifests, servers: Mapping[str, int], directory: Path) -> Iterator[Proxy]:
    """Have a proxy in front of servers, each a pod's UID and a port, until the test is through."""
    directory.mkdir(parents=True)
    (port,) = free_ports(1)
    with Proxy(controller, manifests, directory, port).running(servers) as running:
        yield running
