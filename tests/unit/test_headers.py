"""The contract's table of request headers, and the ids that every response carries back."""

from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.protocol.context import RequestValues
from service.protocol.headers import HeaderReader, RawHeaders, is_forwardable, response_headers
from service.protocol.models import Refusal

REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
IDENTITY_WAT = "X-Amz-Bedrock-AgentCore-Identity-WAT"
CUSTOM = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"

RESTRICTED = {
    "hop-by-hop": "Connection Keep-Alive Proxy-Connection Upgrade TE Trailer Transfer-Encoding Host",
    "of the client": "User-Agent Referer From",
    "content": """
        Accept Accept-Charset Accept-Encoding Accept-Language Content-Type Content-Length Content-Encoding
        Content-Language Content-Location Content-Range Range Accept-Ranges
    """,
    "caching": """
        Cache-Control ETag Expires If-Match If-Modified-Since If-None-Match If-Range If-Unmodified-Since Last-Modified
        Pragma Vary
    """,
    "of the server": "Server Date Location Retry-After Link WWW-Authenticate",
    "cookie": "Cookie Set-Cookie",
    "browser security": """
        Content-Security-Policy Content-Security-Policy-Report-Only Strict-Transport-Security X-Content-Type-Options
        X-Frame-Options X-XSS-Protection Referrer-Policy Permissions-Policy Cross-Origin-Embedder-Policy
        Cross-Origin-Opener-Policy Cross-Origin-Resource-Policy Clear-Site-Data Feature-Policy Expect-CT
        Public-Key-Pins Public-Key-Pins-Report-Only
    """,
    "CORS": """
        Origin Access-Control-Allow-Origin Access-Control-Allow-Methods Access-Control-Allow-Headers
        Access-Control-Allow-Credentials Access-Control-Expose-Headers Access-Control-Max-Age
        Access-Control-Request-Method Access-Control-Request-Headers
    """,
    "client hint": "Accept-CH Accept-CH-Lifetime DPR Width Viewport-Width Downlink ECT RTT Save-Data",
    "proxy": """
        Proxy-Authorization Via Forwarded X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Real-IP X-Requested-With
        X-CSRF-Token True-Client-IP X-Client-IP X-Cluster-Client-IP X-Originating-IP X-Source-IP X-Original-URL
        X-Original-Host X-Rewrite-URL CF-Ray CF-Connecting-IP X-Cache X-Served-By
    """,
    "Sec-*": """
        Sec-WebSocket-Key Sec-WebSocket-Accept Sec-WebSocket-Version Sec-WebSocket-Protocol Sec-WebSocket-Extensions
        Sec-Fetch-Mode Sec-CH-UA
    """,
    "pseudo": ":method :path :scheme :authority :status",
    "x-amz-*": "X-Amz-Security-Token X-Amz-Date X-Amz-Content-Sha256 X-Amz-Cf-Id",
    "x-amzn-*": f"X-Amzn-Trace-Id X-Amzn-RequestId {REQUEST_ID} {SESSION_ID}",
}
FORWARDABLE = [
    "Authorization",
    f"{CUSTOM}Tenant",
    IDENTITY_WAT,
    "WorkloadAccessToken",
    "OAuth2CallbackUrl",
    "traceparent",
    "tracestate",
    "baggage",
    "X-Api-Key",
    "X-Custom-Signature",
    "X-Amazing",
    "Section",
    "Proxied",
]
CASES = [str, str.lower, str.upper, str.title]

visible_ascii = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256)
known_names = st.sampled_from([*FORWARDABLE, REQUEST_ID, SESSION_ID, "Cookie", ":path"]).map(str.encode)
raw_headers = st.lists(
    st.tuples(
        st.binary() | known_names | known_names.map(bytes.lower),
        st.binary() | st.text(max_size=300).map(str.encode) | visible_ascii.map(str.encode),
    )
)


def read_headers(headers: RawHeaders) -> RequestValues:
    request = HeaderReader(()).read(headers)
    if request.refusal is not None:
        raise request.refusal
    return request.values


def read(headers: dict[str, str]) -> RequestValues:
    return read_headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())


@pytest.mark.parametrize("case", CASES)
def test_the_request_id_is_the_callers(case: type[str]) -> None:
    assert read({case(REQUEST_ID): "r-1"}).request_id == "r-1"


def test_without_a_request_id_there_is_a_fresh_uuid4_each_time() -> None:
    first, second = (str(read_headers([]).request_id) for _ in range(2))
    assert UUID(first).version == UUID(second).version == 4
    assert first != second


@pytest.mark.parametrize("case", CASES)
def test_the_session_id_is_the_callers(case: type[str]) -> None:
    assert read({case(SESSION_ID): "s-1"}).session_id == "s-1"


def test_without_a_session_id_there_is_none() -> None:
    assert read_headers([]).session_id is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [IDENTITY_WAT, "WorkloadAccessToken"])
def test_either_token_header_is_the_workload_access_token(case: type[str], name: str) -> None:
    assert read({case(name): "token"}).workload_access_token == "token"


@pytest.mark.parametrize("order", [1, -1])
def test_the_identity_wat_wins_over_the_older_token_header(order: int) -> None:
    headers = [(IDENTITY_WAT.encode(), b"new"), (b"WorkloadAccessToken", b"old")]
    assert read_headers(headers[::order]).workload_access_token == "new"


def test_without_a_token_header_there_is_no_token() -> None:
    assert read_headers([]).workload_access_token is None


@pytest.mark.parametrize("case", CASES)
def test_the_oauth2_callback_url_is_the_callers(case: type[str]) -> None:
    assert read({case("OAuth2CallbackUrl"): "https://app/done"}).oauth2_callback_url == "https://app/done"


def test_without_an_oauth2_callback_url_there_is_none() -> None:
    assert read_headers([]).oauth2_callback_url is None


@pytest.mark.parametrize("case", CASES)
def test_authorization_is_forwarded_under_exactly_that_name(case: type[str]) -> None:
    assert read({case("Authorization"): "Bearer t"}).request_headers == {"Authorization": "Bearer t"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FORWARDABLE[1:])
def test_a_forwardable_header_is_forwarded_under_the_name_as_it_arrived(case: type[str], name: str) -> None:
    assert read({case(name): "value"}).request_headers == {case(name): "value"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=f"{family} {name}") for family, names in RESTRICTED.items() for name in names.split()],
)
def test_a_restricted_header_is_not_forwarded(case: type[str], name: str) -> None:
    assert not is_forwardable(name.lower().encode())
    assert read({case(name): "value", "X-Api-Key": "k"}).request_headers == {"X-Api-Key": "k"}


def test_without_any_forwardable_header_there_are_no_request_headers() -> None:
    assert read_headers([]).request_headers is None
    assert read({REQUEST_ID: "r", SESSION_ID: "s", "Cookie": "c", "Host": "h"}).request_headers is None


def test_headers_of_one_request_are_read_together() -> None:
    values = read(
        {
            REQUEST_ID: "r",
            SESSION_ID: "s",
            IDENTITY_WAT: "t",
            "OAuth2CallbackUrl": "u",
            "Authorization": "a",
            "Host": "h",
        }
    )
    assert values == RequestValues(
        request_id="r",
        session_id="s",
        workload_access_token="t",
        oauth2_callback_url="u",
        request_headers={IDENTITY_WAT: "t", "OAuth2CallbackUrl": "u", "Authorization": "a"},
    )


@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize("value", ["!", "~", "x" * 256, "a/b:c=d;e,f"])
def test_an_id_is_1_to_256_visible_ascii_characters(name: str, value: str) -> None:
    values = read({name: value})
    assert value in (values.request_id, values.session_id)


@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize(
    "value",
    ["", "x" * 257, " ", "a b", "a ", "\t", "a\n", "a\r\nb", "\0", "\x1f", "\x7f", "\x80", "gr\xfc\xdfe", "\xa0"],
    ids=lambda value: repr(value[:8]),
)
def test_any_other_id_is_answered_400_invalid_request_context(name: str, value: str) -> None:
    with pytest.raises(Refusal) as caught:
        read({name: value})
    assert (caught.value.status, caught.value.error) == (400, "Invalid request context")
    assert caught.value.details


def test_the_details_of_a_bad_id_name_the_field_and_the_log_gets_none_of_the_value() -> None:
    with pytest.raises(Refusal) as caught:
        read({SESSION_ID: "hunter2 hunter2"})
    assert "session_id" in str(caught.value.details)
    assert "hunter2" not in caught.value.reason


def test_every_response_carries_the_request_id_and_the_session_id_where_there_is_one() -> None:
    request_id, session_id = REQUEST_ID.lower().encode(), SESSION_ID.lower().encode()
    assert response_headers("r", None) == [(request_id, b"r")]
    assert response_headers("r", "s") == [(request_id, b"r"), (session_id, b"s")]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(visible_ascii, st.none() | visible_ascii)
def test_valid_ids_come_back_as_they_went_out(request_id: str, session_id: str | None) -> None:
    values = read_headers(response_headers(request_id, session_id))
    assert (values.request_id, values.session_id) == (request_id, session_id)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw_headers)
def test_any_headers_are_values_or_a_400(headers: list[tuple[bytes, bytes]]) -> None:
    values = outcome_of(headers)
    if isinstance(values, Refusal):
        assert (values.status, values.error) == (400, "Invalid request context")
        return
    assert values.request_id is not None
    returned = read_headers(response_headers(values.request_id, values.session_id))
    assert (returned.request_id, returned.session_id) == (values.request_id, values.session_id)
    for name in values.request_headers or {}:
        assert is_forwardable(name.encode("latin-1").lower())


def outcome_of(headers: list[tuple[bytes, bytes]]) -> RequestValues | Refusal:
    try:
        return read_headers(headers)
    except Refusal as refusal:
        return refusal
