"""Real proxies on the loopback interface, set up as controllers set them up from what the chart renders.

The controllers themselves are not here. ``nginx`` follows ingress-nginx and ``haproxy`` follows HAProxy Ingress: each
annotation becomes the directive that the controller writes for it, and one that is not known here is an error. One
thing differs in kind: ingress-nginx hashes in Lua, onto a ring of its own, for which nginx's ``hash ... consistent``
stands in. ``envoy_gateway`` and ``istio`` follow the translation of Envoy Gateway (internal/xds/translator) and of
istiod (pilot/pkg/networking/core): what they decide about routing, balancing, limits and timeouts is written as they
write it, a field of the chart's objects that is not known here is an error, and endpoints and routes arrive while
Envoy runs, from files in the place of the controller's stream.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.e2e.chart import Manifest, Manifests
from tests.e2e.environments import environment
from tests.e2e.runtimes import START_SECONDS, free_ports

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


def known(fields: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A part of a manifest, after a look that the controller reads all of its fields.

    Args:
        fields: The part.
        names: The fields that the controller is known here to read.
    """
    assert fields.keys() <= set(names), f"fields that no controller is known to read: {fields.keys() - set(names)}"
    return fields


def duration(text: str) -> float:
    """The seconds of a duration of the Gateway API (GEP-2257)."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([0-9]{1,5})(h|ms|m|s)", text)
    assert "".join(number + unit for number, unit in parts) == text, text
    return sum(int(number) * units[unit] for number, unit in parts)


class Routing(NamedTuple):
    """What a controller decides, in Envoy's own terms.

    Attributes:
        manager: Fields of the HTTP connection manager.
        domains: The host names of the virtual host.
        routes: Its routes.
        cluster: Fields of the cluster.
    """

    manager: dict[str, Any]
    domains: list[str]
    routes: list[dict[str, Any]]
    cluster: dict[str, Any]


CLUSTER = "agent"
"""The cluster of the chart's Service."""

NO_LIMIT = 0xFFFFFFFF
"""The largest limit of a circuit breaker, which stands for none."""

LIMITS = {
    "maxConnections": "max_connections",
    "maxPendingRequests": "max_pending_requests",
    "maxParallelRequests": "max_requests",
}
"""By the names of Envoy Gateway, those of Envoy's thresholds; each is 1,024 where nothing is said."""

WEBSOCKET = [{"upgrade_type": "websocket"}]

STREAM_IDLE_TIMEOUT, ROUTE_TIMEOUT = 300.0, 15.0
"""Seconds of Envoy's ``stream_idle_timeout`` and ``timeout`` where a configuration names none (its FAQ on timeouts)."""


def type_url(name: str) -> dict[str, str]:
    return {"@type": f"type.googleapis.com/envoy.{name}"}


def only_rule(route: Manifest) -> Mapping[str, Any]:
    """The one rule of an HTTPRoute, which leads to the chart's Service."""
    spec = known(route["spec"], "parentRefs", "hostnames", "rules")
    (rule,) = spec["rules"]
    return known(rule, "matches", "timeouts", "backendRefs")


def prefixes(rule: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a rule of an HTTPRoute matches: neither controller takes /ping for a prefix of /pingpong."""
    paths = [known(known(match, "path")["path"], "type", "value") for match in rule["matches"]]
    assert {path["type"] for path in paths} == {"PathPrefix"}
    return [{"path_separated_prefix": path["value"]} for path in paths]


def request_timeout(rule: Mapping[str, Any]) -> float | None:
    """How long a request may take, in seconds, where the rule says so; 0 is without end."""
    timeouts = known(rule.get("timeouts", {}), "request")
    return duration(timeouts["request"]) if timeouts else None


def connections_idle_for(seconds: float) -> dict[str, Any]:
    """The fields of a cluster whose connections to pods are closed once no request has used them for so long."""
    options = {
        **type_url("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "common_http_protocol_options": {"idle_timeout": f"{seconds}s"},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def envoy_gateway(manifests: Manifests, client_stream_idle_timeout: float | None = None) -> Routing:
    """What Envoy Gateway makes of the chart's HTTPRoute and BackendTrafficPolicy.

    Args:
        manifests: The chart's objects.
        client_stream_idle_timeout: ``timeout.http.streamIdleTimeout`` of a ClientTrafficPolicy for the Gateway, in
            seconds, where there is one. It belongs to whoever runs the Gateway, not to the chart.
    """
    route = manifests.one("HTTPRoute")
    fields = ("targetRefs", "loadBalancer", "circuitBreaker", "timeout")
    policy = known(manifests.one("BackendTrafficPolicy")["spec"], *fields)
    (target,) = policy["targetRefs"]
    assert (target["kind"], target["name"]) == ("HTTPRoute", route["metadata"]["name"])
    balancing = known(policy["loadBalancer"], "type", "consistentHash")
    hashing = known(balancing["consistentHash"], "type", "header")
    assert (balancing["type"], hashing["type"]) == ("ConsistentHash", "Header")
    header = known(hashing["header"], "name")["name"]
    limits = known(policy.get("circuitBreaker", {}), *LIMITS)
    action: dict[str, Any] = {
        "cluster": CLUSTER,
        "hash_policy": [{"header": {"header_name": header}}],
        "upgrade_configs": WEBSOCKET,
    }
    rule = only_rule(route)
    timeout = request_timeout(rule)
    if timeout is not None:
        action["timeout"] = f"{timeout}s"
        if client_stream_idle_timeout is None:  # Where there is one, it decides.
            action["idle_timeout"] = f"{max(3600.0, timeout) if timeout else 0}s"
    manager: dict[str, Any] = {
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1048576,
        },
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
    }
    if client_stream_idle_timeout is not None:
        manager["stream_idle_timeout"] = f"{client_stream_idle_timeout}s"
    maglev = type_url("extensions.load_balancing_policies.maglev.v3.Maglev")
    thresholds = {"max_retries": 1024, **{LIMITS[name]: limit for name, limit in limits.items()}}
    cluster: dict[str, Any] = {
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": 32768,
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {"thresholds": [thresholds]},
        "lb_policy": "MAGLEV",
        "load_balancing_policy": {
            "policies": [
                {"typed_extension_config": {"name": "envoy.load_balancing_policies.maglev", "typed_config": maglev}}
            ]
        },
    }
    if "timeout" in policy:
        connection = known(known(policy["timeout"], "http")["http"], "connectionIdleTimeout")
        cluster |= connections_idle_for(duration(connection["connectionIdleTimeout"]))
    routes = [{"match": match, "route": action} for match in prefixes(rule)]
    return Routing(manager, route["spec"]["hostnames"], routes, cluster)


def istio(manifests: Manifests, *, sidecar: bool = False) -> Routing:
    """What Istio 1.24 or newer makes of the chart's DestinationRule and HTTPRoute.

    Args:
        manifests: The chart's objects.
        sidecar: Whether the proxy is the sidecar of a client in the mesh, which the HTTPRoute does not concern, instead
            of the Gateway's.
    """
    spec = known(manifests.one("DestinationRule")["spec"], "host", "trafficPolicy")
    policy = known(spec["trafficPolicy"], "loadBalancer", "connectionPool")
    balancing = known(policy["loadBalancer"], "consistentHash")
    hashing = known(balancing["consistentHash"], "httpHeaderName", "maglev")
    header = hashing["httpHeaderName"]
    action: dict[str, Any] = {
        "cluster": CLUSTER,
        "timeout": "0s",
        "max_grpc_timeout": "0s",
        "hash_policy": [{"header": {"header_name": header}}],
        # A retry goes to the pod of the hash again.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "num_retries": 2,
            "host_selection_retry_max_attempts": 5,
        },
    }
    if sidecar:
        domains, matches = [spec["host"]], [{"prefix": "/"}]
    else:
        route = manifests.one("HTTPRoute")
        rule = only_rule(route)
        domains, matches = route["spec"]["hostnames"], prefixes(rule)
        matches.sort(key=lambda match: -len(match["path_separated_prefix"]))
        timeout = request_timeout(rule) or 0.0
        action |= {"timeout": f"{timeout}s", "max_grpc_timeout": f"{timeout}s"}
    manager = {
        "stream_idle_timeout": "0s",
        "upgrade_configs": WEBSOCKET,
        "use_remote_address": not sidecar,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
    }
    thresholds = dict.fromkeys(["max_retries", *LIMITS.values()], NO_LIMIT)
    cluster: dict[str, Any] = {
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [{**thresholds, "track_remaining": True}]},
    }
    if "maglev" in hashing:
        known(hashing["maglev"])
        cluster["lb_policy"] = "MAGLEV"
    else:
        cluster |= {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 1024}}
    if "connectionPool" in policy:
        pool = known(known(policy["connectionPool"], "http")["http"], "idleTimeout")
        cluster |= connections_idle_for(duration(pool["idleTimeout"]))
    return Routing(manager, domains, [{"match": match, "route": action} for match in matches], cluster)


def hastened(routing: Routing, factor: float) -> Routing:
    """The same with each timeout of a request or stream that many times shorter, Envoy's own ones included."""

    def faster(fields: dict[str, Any], name: str, default: float | None) -> dict[str, Any]:
        if name not in fields and default is None:
            return {}
        return {name: f"{float(fields.get(name, f'{default}s').removesuffix('s')) / factor}s"}

    manager = {**routing.manager, **faster(routing.manager, "stream_idle_timeout", STREAM_IDLE_TIMEOUT)}
    routes = [
        {
            **route,
            "route": {
                **route["route"],
                **faster(route["route"], "timeout", ROUTE_TIMEOUT),
                **faster(route["route"], "idle_timeout", None),
            },
        }
        for route in routing.routes
    ]
    return routing._replace(manager=manager, routes=routes)


def executable(name: str) -> str:
    """A proxy's binary."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if found is None:
        pytest.fail(f"`{name}` is not on the PATH: install it, on Debian with `apt-get install {name}`", pytrace=False)
    return found


class Proxy(ABC):
    """A running proxy.

    Args:
        host: The host name that it answers for.
        directory: For its files.
    """

    def __init__(self, host: str, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.port, *self._more_ports = free_ports(2)
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes]

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it, in its directory."""

    @abstractmethod
    def configure(self, servers: Mapping[str, int], generation: str) -> None:
        """Write its files before it starts."""

    @abstractmethod
    def reconfigure(self, servers: Mapping[str, int], generation: str) -> None:
        """Have it take other servers."""

    @contextmanager
    def running(self, servers: Mapping[str, int]) -> Iterator["Proxy"]:
        """Lead to servers, each a pod's UID and a port, until the test is through."""
        self.directory.mkdir(parents=True)
        generation = str(time.monotonic_ns())
        self.configure(servers, generation)
        command = self.command()
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_for(generation, START_SECONDS)
            yield self
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def lead_to(self, servers: Mapping[str, int]) -> None:
        """Take other servers, as a controller does when the pods of a Service are others."""
        generation = str(time.monotonic_ns())
        self.reconfigure(servers, generation)
        self._wait_for(generation, PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        """Send its main process a signal."""
        self._process.send_signal(number)

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until something is so while the proxy runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def _wait_for(self, generation: str, seconds: float) -> None:
        """Wait until no connection comes to the configuration before."""
        seen = 0

        def often() -> bool:
            nonlocal seen
            while generation in self._knock():
                seen += 1
                if seen >= 20:
                    return True
            seen = 0
            return False

        self.wait(often, seconds)

    def _knock(self) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
                request = f"GET /ping HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n"
                connection.sendall(request.encode())
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        except OSError:
            return ""


class Ingress(Proxy):
    """A proxy of an ingress controller: one file, which it reads again on a signal.

    Args:
        manifests: The chart's objects.
        directory: For its files.
        write: What makes the file out of the manifests, the servers, the port and the generation.
        start: The name of the binary and its options; the file's name comes last.
        reload: The signal.
    """

    def __init__(
        self,
        manifests: Manifests,
        directory: Path,
        write: Callable[[Manifests, Mapping[str, int], int, str], str],
        start: Collection[str],
        reload: signal.Signals,
    ) -> None:
        super().__init__(rule(manifests.all("Ingress")[0])[0], directory)
        self._manifests, self._write, self._start, self._reload = manifests, write, start, reload

    def command(self) -> list[str]:
        name, *options = self._start
        return [executable(name), *options, "proxy.conf"]

    def configure(self, servers: Mapping[str, int], generation: str) -> None:
        configuration = self._write(self._manifests, servers, self.port, generation)
        (self.directory / "proxy.conf").write_text(configuration.rstrip() + "\n")

    def reconfigure(self, servers: Mapping[str, int], generation: str) -> None:
        self.configure(servers, generation)
        self.signal(self._reload)


class Envoy(Proxy):
    """Envoy, whose endpoints and routes come while it runs.

    Args:
        routing: What a controller decided.
        directory: For its files.
    """

    def __init__(self, routing: Routing, directory: Path) -> None:
        super().__init__(routing.domains[0], directory)
        self._routing = routing
        (self._admin,) = self._more_ports

    def command(self) -> list[str]:
        options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        return [str(environment("envoy") / "envoy"), *options, "-c", "bootstrap.json"]

    def configure(self, servers: Mapping[str, int], generation: str) -> None:
        manager = {
            **type_url("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "http",
            "rds": {"config_source": self._source("routes"), "route_config_name": "routes"},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": type_url("extensions.filters.http.router.v3.Router"),
                }
            ],
            **self._routing.manager,
        }
        network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        listener = {"name": "http", "address": self._address(self.port), "filter_chains": [{"filters": [network]}]}
        cluster = {
            "name": CLUSTER,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": self._source("endpoints")},
            **self._routing.cluster,
        }
        bootstrap = {
            "node": {"id": "proxy", "cluster": "proxy"},
            "admin": {"address": self._address(self._admin)},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }
        (self.directory / "bootstrap.json").write_text(json.dumps(bootstrap))
        self._write_endpoints(servers, generation)
        self._write_routes(generation)

    def reconfigure(self, servers: Mapping[str, int], generation: str) -> None:
        """Replace the endpoints, and then the routes, which mark each answer: workers learn of both in this order."""
        self._write_endpoints(servers, generation)
        self.wait(lambda: generation in self.admin(f"/stats?filter=^cluster.{CLUSTER}.version_text$"))
        self._write_routes(generation)

    def admin(self, path: str) -> str:
        """What Envoy tells about itself."""
        response = httpx.get(f"http://127.0.0.1:{self._admin}{path}", trust_env=False, timeout=PATIENCE)
        return response.raise_for_status().text

    def counted(self, name: str) -> int:
        """The value of one of Envoy's statistics; 0 where nothing has been counted yet."""
        _, _, value = self.admin(f"/stats?filter=^{re.escape(name)}$").partition(": ")
        return int(value or 0)

    def _write_endpoints(self, servers: Mapping[str, int], generation: str) -> None:
        endpoints = [
            {"endpoint": {"address": self._address(port)}, "load_balancing_weight": 1} for port in servers.values()
        ]
        assignment = {
            **type_url("config.endpoint.v3.ClusterLoadAssignment"),
            "cluster_name": CLUSTER,
            "endpoints": [{"locality": {}, "lb_endpoints": endpoints, "load_balancing_weight": 1}],
        }
        self._write("endpoints", generation, assignment)

    def _write_routes(self, generation: str) -> None:
        host = {"name": "agent", "domains": self._routing.domains, "routes": self._routing.routes}
        routes = {
            **type_url("config.route.v3.RouteConfiguration"),
            "name": "routes",
            "virtual_hosts": [host],
            "ignore_port_in_host_matching": True,
            "response_headers_to_add": [{"header": {"key": GENERATION, "value": generation}}],
        }
        self._write("routes", generation, routes)

    def _write(self, name: str, generation: str, resource: Mapping[str, Any]) -> None:
        file = self.directory / f"{name}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"version_info": generation, "resources": [resource]}))
        new.replace(file)  # Envoy watches for files that are moved here.

    def _source(self, name: str) -> dict[str, Any]:
        return {"path_config_source": {"path": str(self.directory / f"{name}.json")}, "resource_api_version": "V3"}

    @staticmethod
    def _address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


KINDS: dict[str, tuple[str, Callable[[Manifests, Path], Proxy]]] = {
    "ingress-nginx": (
        "affinity-ingress-nginx",
        lambda manifests, directory: Ingress(
            manifests, directory, nginx, ("nginx", "-e", "stderr", "-p", ".", "-c"), signal.SIGHUP
        ),
    ),
    "haproxy": (
        "affinity-haproxy",
        lambda manifests, directory: Ingress(manifests, directory, haproxy, ("haproxy", "-W", "-f"), signal.SIGUSR2),
    ),
    "envoy-gateway": (
        "affinity-envoy-gateway",
        lambda manifests, directory: Envoy(envoy_gateway(manifests), directory),
    ),
    "istio": ("affinity-istio", lambda manifests, directory: Envoy(istio(manifests), directory)),
}
"""Each controller: the example of the chart that is for it, and the proxy that it makes of the chart's objects."""


@contextmanager
def proxy(controller: str, manifests: Manifests, servers: Mapping[str, int], directory: Path) -> Iterator[Proxy]:
    """Have a proxy in front of servers, each a pod's UID and a port, until the test is through."""
    _, make = KINDS[controller]
    with make(manifests, directory).running(servers) as running:
        yield running
