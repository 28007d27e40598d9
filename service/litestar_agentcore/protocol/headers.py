"""The header names of the contract, and what the raw headers of a request come to.

The rule for what an agent may see is the platform's allow-list: see "Pass custom headers" in the AgentCore
Runtime developer guide.
"""

import os
import sys
from collections.abc import Iterable
from random import Random

import msgspec

from litestar_agentcore.protocol.context import Identifier, Identifiers, RequestValues
from litestar_agentcore.protocol.models import Refusal

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


class RequestHeaders(msgspec.Struct):
    """The headers of one request, read in one pass."""

    values: RequestValues
    """What the handler and the context will know of the request. A malformed id is left out."""
    refusal: Refusal | None
    """Why the request is to be refused, if it is: an id is not 1 to 256 visible ASCII characters."""
    carrier: dict[str, str] | None
    """The headers that carry trace context and baggage, where there is one."""
    host: str | None
    user_agent: str | None
    content_length: int | None
    expects: bool
    """Whether the client waits for a 100 before it sends its body."""


class _Name(msgspec.Struct, frozen=True):
    """What is done with the headers of one name."""

    lower: bytes
    forwarded: str | None
    """The name under which an agent sees the header."""
    carried: str | None
    """The name under which a propagator finds the header."""


_NAMES_REMEMBERED = 1000
"""How many names are classified once only. Clients choose names, so their number has no other bound."""

_LONGEST_REMEMBERED = 128
"""Longer names, in bytes, are classified each time."""

_MANY_DIGITS = 1000
"""Numbers of so many digits are all the same: larger than any body."""

_EXPECT, _HOST, _USER_AGENT, _CONTENT_LENGTH = b"expect", b"host", b"user-agent", b"content-length"


class HeaderReader:
    """Reads the headers of requests.

    Args:
        propagated: The names of the headers that carry trace context and baggage, in lower case.
    """

    def __init__(self, propagated: Iterable[str]) -> None:
        self._propagated = frozenset(propagated)
        self._names: dict[bytes, _Name] = {}
        self._plain: set[bytes] = set()
        """Those of the names, in lower case, that are neither forwarded nor carried."""

    def _name(self, raw_name: bytes) -> _Name:
        if (known := self._names.get(raw_name)) is not None:
            return known
        lower = raw_name.lower()
        text = raw_name.decode("latin-1")
        forwarded = (AUTHORIZATION if lower == _AUTHORIZATION else text) if is_forwardable(lower) else None
        carried = text.lower() if text.lower() in self._propagated else None
        name = _Name(lower, forwarded, carried)
        if len(self._names) < _NAMES_REMEMBERED and len(raw_name) <= _LONGEST_REMEMBERED:
            self._names[raw_name] = name
            if forwarded is None and carried is None and raw_name == lower:
                self._plain.add(raw_name)
        return name

    def read(self, headers: RawHeaders) -> RequestHeaders:
        """Turn the headers of a request into what the service makes of them.

        A header that comes twice is joined with ``", "`` as RFC 9110, section 5.3, has it; of an id the first counts.

        Args:
            headers: Names and values as the ASGI scope has them.

        Returns:
            What they say; the request id is a fresh UUID4 where the request has none that is valid.
        """
        if not isinstance(headers, list):
            headers = list(headers)
        found = dict(headers)
        forwarded = carrier = None
        # Where each name comes once, and is one that only we read, there is nothing to put together.
        if len(found) != len(headers) or not found.keys() <= self._plain:
            found, forwarded, carrier = self._read_each(headers)
        get = found.get
        request_id, session_id = _text(get(_REQUEST_ID)), _text(get(_SESSION_ID))
        token = callback_url = refusal = None
        if forwarded:  # which these are too
            token = _text(get(_WORKLOAD_ACCESS_TOKEN)) or _text(get(_WORKLOAD_ACCESS_TOKEN_LEGACY))
            callback_url = _text(get(_OAUTH2_CALLBACK_URL))
        if not (_is_plainly_valid(request_id) and _is_plainly_valid(session_id)):
            request_id, session_id, refusal = _validated(request_id, session_id)
        return RequestHeaders(
            RequestValues(request_id or _fresh_id(), session_id, token, callback_url, forwarded),
            refusal,
            carrier,
            _text(get(_HOST)),
            _text(get(_USER_AGENT)),
            _number(get(_CONTENT_LENGTH)),
            _EXPECT in found,
        )

    def _read_each(
        self, headers: RawHeaders
    ) -> tuple[dict[bytes, bytes], dict[str, str] | None, dict[str, str] | None]:
        """The first value of each name (that says something), what the agent sees, and what a propagator sees."""
        found: dict[bytes, bytes] = {}
        forwarded: dict[str, str] = {}
        carrier: dict[str, str] = {}
        for raw_name, raw_value in headers:
            name = self._name(raw_name)
            if not found.get(lower := name.lower) and (lower not in found or lower not in _IDS):
                found[lower] = raw_value
            if (key := name.forwarded) is not None:
                value = raw_value.decode("latin-1")
                forwarded[key] = f"{forwarded[key]}, {value}" if key in forwarded else value
            if (key := name.carried) is not None:
                value = raw_value.decode("latin-1")
                carrier[key] = f"{carrier[key]},{value}" if key in carrier else value
        return found, forwarded or None, carrier or None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _number(digits: bytes | None) -> int | None:
    """A length, or ``None`` where it is none. The server has checked it, and this one is only asked beforehand."""
    if digits is None or not digits.isdigit():
        return None
    return int(digits) if len(digits) < _MANY_DIGITS else sys.maxsize


_IDS = frozenset({_REQUEST_ID, _SESSION_ID})


def _validated(request_id: str | None, session_id: str | None) -> tuple[str | None, str | None, Refusal | None]:
    """The ids that are valid, and where one is not, why the request is to be refused."""
    fields = {"request_id": request_id or "", "session_id": session_id}
    if request_id is None:
        fields["request_id"] = "-"
    try:
        msgspec.convert(fields, Identifiers)
    except msgspec.ValidationError as error:
        refusal = Refusal(400, "Invalid request context", str(error))
    else:
        return request_id, session_id, None
    valid = [value if _is_valid(value) else None for value in (request_id, session_id)]
    return valid[0], valid[1], refusal


def _is_plainly_valid(identifier: str | None) -> bool:
    """Tell in a fraction of the time what the model would find, where that finds nothing amiss."""
    if identifier is None:
        return True
    return 0 < len(identifier) <= 256 and identifier.isascii() and identifier.isprintable() and " " not in identifier


def _is_valid(identifier: str | None) -> bool:
    try:
        msgspec.convert(identifier, Identifier)
    except msgspec.ValidationError:
        return False
    return True


_random = Random()  # noqa: S311 - the ids are to be unique, and are no secret
if hasattr(os, "register_at_fork"):  # children must not draw the same ids
    os.register_at_fork(after_in_child=_random.seed)


_UUID_RANDOM = (1 << 128) - 1 & ~(0xF << 76 | 0x3 << 62)
_UUID_FIXED = 0x4 << 76 | 0x2 << 62
"""The bits of a UUID of version 4 that are drawn, and those that are not (RFC 9562, section 5.4)."""


def _fresh_id() -> str:
    """A UUID of version 4, at a fraction of what ``uuid.uuid4`` costs."""
    digits = (_random.getrandbits(128) & _UUID_RANDOM | _UUID_FIXED).to_bytes(16, "big").hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def response_headers(request_id: str, session_id: str | None) -> list[tuple[bytes, bytes]]:
    """The headers with which every answer carries its ids back.

    Args:
        request_id: The request's id.
        session_id: The session's id, where there is one.

    Returns:
        Raw header pairs for an ASGI ``http.response.start``.
    """
    if session_id is None:
        return [(_REQUEST_ID, request_id.encode())]
    return [(_REQUEST_ID, request_id.encode()), (_SESSION_ID, session_id.encode())]
