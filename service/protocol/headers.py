"""The header names of the contract, and what the raw headers of a request come to.

The rule for what an agent may see is the platform's allow-list: see "Pass custom headers" in the AgentCore
Runtime developer guide.
"""

from collections.abc import Iterable
from uuid import uuid4

import msgspec

from service.protocol.context import Identifiers, RequestValues
from service.protocol.models import Refusal

REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
WORKLOAD_ACCESS_TOKEN = "X-Amz-Bedrock-AgentCore-Identity-WAT"  # noqa: S105 - a header's name
WORKLOAD_ACCESS_TOKEN_LEGACY = "WorkloadAccessToken"  # noqa: S105 - a header's name
OAUTH2_CALLBACK_URL = "OAuth2CallbackUrl"
AUTHORIZATION = "Authorization"
CUSTOM_PREFIX = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"

RawHeaders = Iterable[tuple[bytes, bytes]]

_REQUEST_ID = REQUEST_ID.lower().encode()
_SESSION_ID = SESSION_ID.lower().encode()
_WORKLOAD_ACCESS_TOKEN = WORKLOAD_ACCESS_TOKEN.lower().encode()
_WORKLOAD_ACCESS_TOKEN_LEGACY = WORKLOAD_ACCESS_TOKEN_LEGACY.lower().encode()
_OAUTH2_CALLBACK_URL = OAUTH2_CALLBACK_URL.lower().encode()
_AUTHORIZATION = AUTHORIZATION.lower().encode()
_CUSTOM_PREFIX = CUSTOM_PREFIX.lower().encode()

_RESTRICTED = frozenset(
    name.encode()
    for group in (
        # hop-by-hop and connection
        "connection keep-alive upgrade te trailer transfer-encoding",
        "host user-agent referer from",
        # content and its negotiation, ranges
        "accept accept-charset accept-encoding accept-language accept-ranges range",
        "content-type content-length content-encoding content-language content-location content-range",
        # caching
        "cache-control etag expires last-modified pragma vary age",
        "if-match if-none-match if-modified-since if-unmodified-since if-range",
        # what a server says of itself
        "server date location retry-after link www-authenticate",
        # cookies
        "cookie set-cookie",
        # browser security policies
        "content-security-policy content-security-policy-report-only strict-transport-security",
        "x-content-type-options x-frame-options x-xss-protection referrer-policy permissions-policy",
        "cross-origin-embedder-policy cross-origin-opener-policy cross-origin-resource-policy",
        "clear-site-data feature-policy expect-ct public-key-pins public-key-pins-report-only origin",
        # client hints
        "accept-ch accept-ch-lifetime dpr width viewport-width downlink ect rtt save-data",
        # proxies, and what they say of the client
        "via forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip",
        "x-requested-with x-csrf-token true-client-ip x-client-ip x-cluster-client-ip x-originating-ip",
        "x-source-ip x-original-url x-original-host x-rewrite-url cf-ray cf-connecting-ip x-cache x-served-by",
    )
    for name in group.split()
)
_RESTRICTED_PREFIXES = (b":", b"sec-", b"proxy-", b"access-control-", b"x-amz-", b"x-amzn-")


def is_forwardable(name: bytes) -> bool:
    """Tell whether an agent may see a header.

    Args:
        name: The header's name in lower case.

    Returns:
        True for ``Authorization``, the Identity-WAT, the ``...-Runtime-Custom-*`` headers, and every header that the
        platform's allow-list page does not restrict.
    """
    if name.startswith(_RESTRICTED_PREFIXES):
        return name == _WORKLOAD_ACCESS_TOKEN or name.startswith(_CUSTOM_PREFIX)
    return name not in _RESTRICTED


def read_headers(headers: RawHeaders) -> RequestValues:
    """Turn the headers of a request into what the handler and the context will know of it.

    A header that comes twice is joined with ``", "`` as RFC 9110, section 5.3, has it.

    Args:
        headers: Names and values as the ASGI scope has them.

    Returns:
        The validated values; the request id is a fresh UUID4 where the request has none.

    Raises:
        Refusal: The request id or the session id is not 1 to 256 visible ASCII characters (status 400).
    """
    identifiers: dict[str, str] = {}
    token = legacy_token = callback_url = None
    forwarded: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        value = raw_value.decode("latin-1")
        if name == _REQUEST_ID:
            identifiers.setdefault("request_id", value)
        elif name == _SESSION_ID:
            identifiers.setdefault("session_id", value)
        elif name == _WORKLOAD_ACCESS_TOKEN:
            token = token or value
        elif name == _WORKLOAD_ACCESS_TOKEN_LEGACY:
            legacy_token = legacy_token or value
        elif name == _OAUTH2_CALLBACK_URL:
            callback_url = callback_url or value
        if is_forwardable(name):
            key = AUTHORIZATION if name == _AUTHORIZATION else raw_name.decode("latin-1")
            forwarded[key] = f"{forwarded[key]}, {value}" if key in forwarded else value
    if "request_id" not in identifiers:
        identifiers["request_id"] = str(uuid4())
    try:
        valid = msgspec.convert(identifiers, Identifiers)
    except msgspec.ValidationError as error:
        raise Refusal(400, "Invalid request context", str(error)) from None
    return RequestValues(
        request_id=valid.request_id,
        session_id=valid.session_id,
        workload_access_token=token or legacy_token,
        oauth2_callback_url=callback_url,
        request_headers=forwarded or None,
    )


def readable_headers(headers: RawHeaders) -> RequestValues:
    """What can be made of the headers of a request that may be refused for them.

    Args:
        headers: Names and values as the ASGI scope has them.

    Returns:
        The same as :func:`read_headers`, but for a malformed id, which is left out.
    """
    headers = list(headers)
    for dropped in ((), (_REQUEST_ID,), (_SESSION_ID,)):
        try:
            return read_headers([pair for pair in headers if pair[0].lower() not in dropped])
        except Refusal:
            continue
    return read_headers(())


def response_headers(request_id: str, session_id: str | None) -> list[tuple[bytes, bytes]]:
    """The headers with which every answer carries its ids back.

    Args:
        request_id: The request's id.
        session_id: The session's id, where there is one.

    Returns:
        Raw header pairs for an ASGI ``http.response.start``.
    """
    headers = [(_REQUEST_ID, request_id.encode("ascii"))]
    if session_id is not None:
        headers.append((_SESSION_ID, session_id.encode("ascii")))
    return headers
