"""A backend that is not there for a while: nothing is lost, and the last spans are sent before the agent ends."""

from pathlib import Path

import pytest

from tests.backends.agents import GRPC, HTTP, agent, dropped, messages, trusting, with_client_certificate
from tests.backends.collector import collector
from tests.backends.jaeger import jaeger
from tests.certificates import Certificates
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import invoke, new_session, spans_of
from tests.integration.server import eventually

PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
"""Seconds in which the exporters try again."""
AT_THE_END = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}

PROTOCOLS = pytest.mark.parametrize("protocol", [HTTP, GRPC])


@PROTOCOLS
def test_a_collector_that_restarts_gets_all_spans(tmp_path: Path, protocol: str) -> None:
    before, meanwhile, after = new_session(), new_session(), new_session()
    with collector(tmp_path) as backend, agent(**backend.endpoint(protocol), **PATIENT) as server:
        invoke(server, before, prompt="hello")
        spans_of(backend, before, 1)

        backend.stop()
        invoke(server, meanwhile, do="async function")
        backend.start()
        spans_of(backend, meanwhile, 2)

        invoke(server, after, do="async function")
        spans_of(backend, after, 2)
        assert dropped(server) == 0
        assert messages(server) == []


@PROTOCOLS
def test_a_collector_that_is_told_no_by_its_own_backend_is_tried_again(tmp_path: Path, protocol: str) -> None:
    session = new_session()
    (port,) = free_ports(1)
    with (
        collector(tmp_path, forward_to=port) as between,
        agent(**between.endpoint(protocol), **PATIENT) as server,
    ):
        invoke(server, session, do="async function")
        eventually(lambda: "connection refused" in between.log.lower(), 60)
        with jaeger(tmp_path, port) as backend:
            spans_of(backend, session, 2)
        assert dropped(server) == 0
        assert messages(server) == []


@PROTOCOLS
def test_the_last_spans_are_sent_before_the_agent_ends(tmp_path: Path, certs: Certificates, protocol: str) -> None:
    session = new_session()
    secured = trusting(certs.authority) | with_client_certificate(certs.client, certs.client_key)
    with collector(tmp_path, certs) as backend:
        with agent(**backend.endpoint(protocol), **secured, **AT_THE_END) as server:
            invoke(server, session, do="async function")
            server.terminate()
            assert messages(server) == []
        spans_of(backend, session, 2)
