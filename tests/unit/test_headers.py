"""The contract's table of request headers, and the ids that every response carries back."""

import os
import random
import threading
from collections.abc import Callable
from uuid import RFC_4122, UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar_agentcore.protocol.context import RequestValues
from litestar_agentcore.protocol.headers import (
    HeaderReader,
    RawHeaders,
    RequestHeaders,
    handshake_headers,
    is_forwardable,
    response_headers,
)
from litestar_agentcore.protocol.models import Refusal

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


# What is read besides, in the same pass


PROPAGATED = ("traceparent", "tracestate", "baggage")


def request_of(*headers: tuple[bytes, bytes]) -> RequestHeaders:
    return HeaderReader(PROPAGATED).read(headers)


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"0", 0),
        (b"12", 12),
        (b"007", 7),
        (b"9" * 100, int("9" * 100)),
        (b"", None),
        (b"-1", None),
        (b"+1", None),
        (b" 1", None),
        (b"1 ", None),
        (b"1_000", None),
        (b"1.0", None),
        (b"0x10", None),
        (b"5, 5", None),
        (b"one", None),
        (b"\xb2", None),
        ("\u0663".encode(), None),
        (b"\xd9\xa3", None),
    ],
)
def test_the_content_length_is_a_number_of_ascii_digits(value: bytes, length: int | None) -> None:
    assert request_of((b"content-length", value)).content_length == length


@pytest.mark.parametrize("digits", [4300, 4301, 100_000])
def test_a_content_length_beyond_all_measure_is_no_reason_to_fail(digits: int) -> None:
    length = request_of((b"content-length", b"9" * digits)).content_length

    assert length is None or length > 10**18


def test_of_two_content_lengths_the_first_counts() -> None:
    assert request_of((b"content-length", b"1"), (b"Content-Length", b"2")).content_length == 1


@pytest.mark.parametrize("case", CASES)
def test_host_user_agent_length_and_expectation_are_read_whatever_the_case(case: type[str]) -> None:
    names = ("Host", "User-Agent", "Content-Length", "Expect")
    request = request_of(
        *zip((case(name).encode() for name in names), (b"h", b"u", b"3", b"100-continue"), strict=True)
    )

    assert (request.host, request.user_agent, request.content_length, request.expects) == ("h", "u", 3, True)


def test_without_them_there_is_nothing() -> None:
    request = request_of()

    assert (request.host, request.user_agent, request.content_length, request.expects) == (None, None, None, False)
    assert (request.carrier, request.refusal) == (None, None)


def test_of_a_host_or_user_agent_that_comes_twice_the_first_that_says_something_counts() -> None:
    request = request_of(
        (b"host", b""), (b"host", b"first"), (b"user-agent", b"a"), (b"host", b"second"), (b"user-agent", b"b")
    )

    assert (request.host, request.user_agent) == ("first", "a")


def test_of_a_token_or_callback_url_that_comes_twice_the_first_that_says_something_counts() -> None:
    wat, url = IDENTITY_WAT.encode(), b"OAuth2CallbackUrl"
    values = request_of((wat, b""), (wat, b"first"), (wat.lower(), b"second"), (url, b"here"), (url, b"there")).values

    assert (values.workload_access_token, values.oauth2_callback_url) == ("first", "here")


@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID])
def test_of_an_id_that_comes_twice_the_first_counts_whatever_the_second_is(name: str) -> None:
    request = request_of((name.encode(), b"first"), (name.lower().encode(), b"second"), (name.encode(), b"not valid"))

    assert request.refusal is None
    assert "first" in (request.values.request_id, request.values.session_id)


@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID])
def test_of_an_id_that_comes_twice_the_first_is_held_to_the_rule(name: str) -> None:
    request = request_of((name.encode(), b""), (name.encode(), b"second"))

    assert request.refusal is not None
    assert "second" not in (request.values.request_id, request.values.session_id)


def test_beside_a_bad_id_the_good_one_is_kept() -> None:
    request = request_of((REQUEST_ID.encode(), b"a b"), (SESSION_ID.encode(), b"s"))
    assert request.refusal is not None
    assert request.values.session_id == "s"
    assert UUID(request.values.request_id).version == 4

    request = request_of((REQUEST_ID.encode(), b"r"), (SESSION_ID.encode(), b"a b"))
    assert request.refusal is not None
    assert (request.values.request_id, request.values.session_id) == ("r", None)


def test_a_forwarded_header_that_comes_twice_is_joined_in_order() -> None:
    values = request_of((b"X-Api", b"1"), (b"authorization", b"a"), (b"X-Api", b"2"), (b"AUTHORIZATION", b"b")).values

    assert values.request_headers == {"X-Api": "1, 2", "Authorization": "a, b"}


def test_the_headers_of_a_trace_are_carried_by_their_names_in_lower_case_and_joined() -> None:
    request = request_of((b"TraceState", b"a=1"), (b"BAGGAGE", b"b=1"), (b"x-api", b"k"), (b"tracestate", b"c=1"))

    assert request.carrier == {"tracestate": "a=1,c=1", "baggage": "b=1"}
    assert request.values.request_headers == {"TraceState": "a=1", "BAGGAGE": "b=1", "x-api": "k", "tracestate": "c=1"}


def test_what_is_carried_is_what_the_reader_was_told() -> None:
    headers = [(b"traceparent", b"t"), (b"b3", b"b"), (b"x-amzn-trace-id", b"x")]

    assert HeaderReader(("b3", "x-amzn-trace-id")).read(headers).carrier == {"b3": "b", "x-amzn-trace-id": "x"}
    assert HeaderReader(()).read(headers).carrier is None
    assert HeaderReader(("x-amzn-trace-id",)).read(headers).values.request_headers == {"traceparent": "t", "b3": "b"}


def told(request: RequestHeaders) -> tuple[object, ...]:
    values = request.values
    return (
        values.session_id,
        values.workload_access_token,
        values.oauth2_callback_url,
        values.request_headers,
        request.refusal and request.refusal.details,
        request.carrier,
        request.host,
        request.user_agent,
        request.content_length,
        request.expects,
    )


seen_names = known_names | st.sampled_from(
    [b"Host", b"content-length", b"User-Agent", b"expect", b"baggage", b"BAGGAGE"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.tuples(seen_names | st.binary(max_size=8), st.binary(max_size=8)), max_size=8)))
def test_a_reader_remembers_names_and_nothing_of_a_request(requests: list[list[tuple[bytes, bytes]]]) -> None:
    reader = HeaderReader(PROPAGATED)

    for headers in [*requests, *requests]:
        assert told(reader.read(headers)) == told(HeaderReader(PROPAGATED).read(headers))


def test_the_names_that_are_remembered_have_a_bound_and_those_beyond_are_read_all_the_same() -> None:
    reader = HeaderReader(PROPAGATED)
    for number in range(5000):
        name = b"x-%d" % number
        request = reader.read([(name, b"v"), (b"cookie", b"c")])
        assert request.values.request_headers == {name.decode(): "v"}

    assert len(reader._names) <= 1000
    request = reader.read([(SESSION_ID.encode(), b"s"), (b"Baggage", b"b=1"), (b"COOKIE", b"c")])
    assert (request.values.session_id, request.carrier) == ("s", {"baggage": "b=1"})
    assert request.values.request_headers == {"Baggage": "b=1"}


@pytest.mark.parametrize("propagated", [PROPAGATED, ()])
def test_the_baggage_is_kept_whatever_is_propagated(propagated: tuple[str, ...]) -> None:
    reader = HeaderReader(propagated)

    assert reader.read([(b"x-api", b"k")]).values.baggage is None
    assert reader.read([(b"BAGGAGE", b"a=1")]).values.baggage == "a=1"
    assert reader.read([(b"Baggage", b"a=1"), (b"baggage", b""), (b"baggage", b"b=2")]).values.baggage == "a=1,,b=2"


# A WebSocket's handshake


def handshake(query: str, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """What a query adds to some headers."""
    read = handshake_headers(headers, query.encode("latin-1"))
    assert read[: len(headers)] == list(headers)
    return read[len(headers) :]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID, f"{CUSTOM}Tenant"])
def test_ids_and_custom_headers_are_read_from_the_query(name: str, case: type[str]) -> None:
    assert handshake(f"qualifier=DEFAULT&{case(name)}=a%2Fb") == [(case(name).encode(), b"a/b")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID, f"{CUSTOM}Tenant"])
def test_a_header_wins_over_the_query(name: str, case: type[str]) -> None:
    assert handshake(f"{name}=query&{CUSTOM}Other=o", (case(name).encode(), b"header")) == [
        (f"{CUSTOM}Other".encode(), b"o")
    ]
    assert handshake(f"{name}=query", (case(name).encode(), b"")) == []


@pytest.mark.parametrize("name", ["Authorization", IDENTITY_WAT, "baggage", "X-Amz-Signature", "Host", CUSTOM[1:]])
def test_any_other_query_parameter_is_no_header(name: str) -> None:
    assert handshake(f"{name}=a") == []


@pytest.mark.parametrize(
    ("query", "value"),
    [("=a+b%20c", b"a b c"), ("=", b""), ("", b""), ("=%C3%BC", b"\xc3\xbc"), ("=\xfc", b"\xfc"), ("=a=b", b"a=b")],
)
def test_a_value_is_read_as_forms_encode_it(query: str, value: bytes) -> None:
    assert handshake(f"{CUSTOM}A{query}") == [(f"{CUSTOM}A".encode(), value)]


@pytest.mark.parametrize("query", [f"{CUSTOM}A=a%0D%0Ab", f"{CUSTOM}A=%00", f"{CUSTOM}A%20B=a", f"{CUSTOM}A%3A=a"])
def test_what_cannot_be_a_header_is_left_out_with_a_warning(query: str, caplog: pytest.LogCaptureFixture) -> None:
    assert handshake(query) == []
    (record,) = caplog.records
    assert record.levelname == "WARNING"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(), raw_headers)
def test_any_query_is_read_and_adds_only_what_the_contract_names(
    query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    read = handshake_headers(headers, query)
    assert read[: len(headers)] == headers
    for name, _ in read[len(headers) :]:
        assert name.lower().decode().startswith((REQUEST_ID.lower(), SESSION_ID.lower(), CUSTOM.lower()))


# Fresh ids


def fresh_ids(count: int) -> list[str]:
    reader = HeaderReader(())
    return [str(reader.read(()).values.request_id) for _ in range(count)]


def test_fresh_ids_are_uuids_of_version_4_in_their_usual_form() -> None:
    ids = fresh_ids(2000)

    for each in ids:
        assert str(UUID(each)) == each
        assert (UUID(each).version, UUID(each).variant) == (4, RFC_4122)
    digits = [{each[place] for each in ids} for place in range(36)]
    assert {len(digits[place]) for place in range(36)} == {1, 4, 16}
    assert [place for place in range(36) if len(digits[place]) == 1] == [8, 13, 14, 18, 23]
    assert digits[19] == set("89ab")


def test_fresh_ids_do_not_follow_from_the_programs_own_random_numbers() -> None:
    drawn = []
    for _ in range(2):
        random.seed(1)
        drawn += fresh_ids(10)

    assert len(set(drawn)) == 20


def test_fresh_ids_of_threads_are_distinct() -> None:
    drawn: list[str] = []
    barrier = threading.Barrier(8)

    def draw() -> None:
        barrier.wait(10)
        drawn.extend(fresh_ids(1000))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(set(drawn)) == len(drawn) == 8000


def in_a_child(work: Callable[[], list[str]]) -> list[str]:
    """What a function gives in a process that is forked off."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, "\n".join(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    return lines


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a child that only draws numbers is safe
def test_fresh_ids_of_forked_processes_are_distinct() -> None:
    fresh_ids(1)

    drawn = [each for _ in range(3) for each in in_a_child(lambda: fresh_ids(100))] + fresh_ids(100)

    assert len(set(drawn)) == len(drawn) == 400
