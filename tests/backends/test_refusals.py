"""A backend that does not take an agent's spans, for want of what it demands: they are counted, and the log says so."""

from collections.abc import Iterator

import pytest

from tests.backends.agents import GRPC, HTTP, agent, bearer, dropped, messages, trusting, with_client_certificate
from tests.backends.collector import Collector, collector
from tests.certificates import Certificates
from tests.e2e.trace_promises import invoke, new_session, spans_of
from tests.integration.server import eventually

TOKEN, WRONG_TOKEN = "the-token-of-the-tests", "another-token"
SOON = {"OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
PATIENCE = 60.0

PROTOCOLS = pytest.mark.parametrize("protocol", [HTTP, GRPC])


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """Demands a token."""
    with collector(tmp_path_factory.mktemp("collector"), token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certs: Certificates) -> Iterator[Collector]:
    """Demands TLS, and a certificate."""
    with collector(tmp_path_factory.mktemp("collector"), certs) as running:
        yield running


def assert_refused(backend: Collector, variables: dict[str, str]) -> None:
    session = new_session()
    with agent(**variables, **SOON) as server:
        invoke(server, session, prompt="hello")
        eventually(lambda: dropped(server) == 1, PATIENCE)
        eventually(lambda: messages(server), PATIENCE)
        (message,) = messages(server)
        assert message.startswith("1 spans were dropped")
        server.terminate()
        assert not [line for line in server.stderr() if TOKEN in line or WRONG_TOKEN in line]
    assert session not in {span.attributes["session.id"] for span in backend.spans()}


@PROTOCOLS
def test_with_the_token_that_it_demands_spans_arrive(demanding: Collector, protocol: str) -> None:
    session = new_session()
    with agent(**demanding.endpoint(protocol), **bearer(TOKEN)) as server:
        invoke(server, session, prompt="hello")
        spans_of(demanding, session, 1)
        assert dropped(server) == 0
        assert messages(server) == []


@PROTOCOLS
@pytest.mark.parametrize("token", [{}, bearer(WRONG_TOKEN)], ids=["none", "wrong"])
def test_without_the_token_they_are_dropped(demanding: Collector, protocol: str, token: dict[str, str]) -> None:
    assert_refused(demanding, demanding.endpoint(protocol) | token)


@PROTOCOLS
def test_with_the_certificates_spans_arrive(secured: Collector, certs: Certificates, protocol: str) -> None:
    session = new_session()
    certificates = trusting(certs.authority) | with_client_certificate(certs.client, certs.client_key)
    with agent(**secured.endpoint(protocol), **certificates) as server:
        invoke(server, session, prompt="hello")
        spans_of(secured, session, 1)
        assert dropped(server) == 0


@PROTOCOLS
def test_where_its_authority_is_not_named_they_are_dropped(
    secured: Collector, certs: Certificates, protocol: str
) -> None:
    own = with_client_certificate(certs.client, certs.client_key)
    assert_refused(secured, secured.endpoint(protocol) | own)


@PROTOCOLS
def test_without_the_certificate_that_it_demands_they_are_dropped(
    secured: Collector, certs: Certificates, protocol: str
) -> None:
    assert_refused(secured, secured.endpoint(protocol) | trusting(certs.authority))


@PROTOCOLS
def test_in_plain_text_they_are_dropped(secured: Collector, protocol: str) -> None:
    plain = {name: value.replace("https:", "http:") for name, value in secured.endpoint(protocol).items()}
    assert_refused(secured, plain)
