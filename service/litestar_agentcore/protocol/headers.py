"""Header names of the contract, reading the headers of requests, and checking those of answers.

Which headers an agent may see is the platform's allow-list: "Pass custom headers" in the AgentCore Runtime developer
guide.
"""

import logging
import re
import sys
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from litestar_agentcore.protocol.context import Identifier, Identifiers, RequestValues
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.protocol.settings import Settings

REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
WORKLOAD_ACCESS_TOKEN = "X-Amz-Bedrock-AgentCore-Identity-WAT"  # noqa: S105 - a header's name  # nosec B105
WORKLOAD_ACCESS_TOKEN_LEGACY = "WorkloadAccessToken"  # noqa: S105 - a header's name  # nosec B105
OAUTH2_CALLBACK_URL = "OAuth2CallbackUrl"
AUTHORIZATION = "Authorization"
CUSTOM_PREFIX = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"

logger = logging.getLogger(__name__)

RawHeader = tuple[bytes, bytes]
RawHeaders = Iterable[RawHeader]

_REQUEST_ID = REQUEST_ID.lower().encode()
_SESSION_ID = SESSION_ID.lower().encode()
_WORKLOAD_ACCESS_TOKEN = WORKLOAD_ACCESS_TOKEN.lower().encode()
_WORKLOAD_ACCESS_TOKEN_LEGACY = WORKLOAD_ACCESS_TOKEN_LEGACY.lower().encode()
_OAUTH2_CALLBACK_URL = OAUTH2_CALLBACK_URL.lower().encode()
_AUTHORIZATION = AUTHORIZATION.lower().encode()
_CUSTOM_PREFIX = CUSTOM_PREFIX.lower().encode()
_BAGGAGE = b"baggage"

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
    """The headers of one request, parsed."""

    values: RequestValues
    """The values for the handler and the context. A malformed id is left out."""
    refusal: Refusal | None
    """Set where the request must be refused: an id is not 1 to 256 visible ASCII characters."""
    carrier: dict[str, str] | None
    """The headers that carry trace context and baggage, where there is one."""
    host: str | None
    user_agent: str | None
    content_length: int | None
    expects: bool
    """Whether the client waits for a 100 before it sends its body."""


class _Name(msgspec.Struct, frozen=True):
    """How the headers of one name are treated."""

    lower: bytes
    forwarded: str | None
    """The name under which an agent sees the header."""
    carried: str | None
    """The name under which a propagator finds the header."""


_CACHED_NAMES = 1000
"""Clients choose header names, so their number has no other bound."""

_LONGEST_CACHED_NAME = 128
"""In bytes."""

_MANY_DIGITS = 1000
"""A content length of so many digits is larger than any body."""

_EXPECT, _HOST, _USER_AGENT, _CONTENT_LENGTH = b"expect", b"host", b"user-agent", b"content-length"


HEADER_OVERHEAD = 4
"""Bytes of a header's line beside name and value: the colon, a space and the end of the line."""


class HeaderLimits(msgspec.Struct, frozen=True):
    """How large the head of a request may be."""

    count: int = sys.maxsize
    """How many headers."""
    bytes: int = sys.maxsize
    """How many bytes all headers have, as HTTP/1.1 sends them."""

    @classmethod
    def of(cls, settings: Settings) -> "HeaderLimits":
        """The limits of the settings."""
        return cls(settings.max_headers, settings.max_header_bytes)

    def refusal(self, count: int, size: int) -> Refusal | None:
        """What to answer (RFC 6585, section 5), where a head is too large.

        Args:
            count: How many headers it has.
            size: How many bytes they have.
        """
        if count > self.count:
            details = f"The request has more than {self.count} headers"
        elif size > self.bytes:
            details = f"The headers exceed the limit of {self.bytes} bytes"
        else:
            return None
        return Refusal(431, "Request header fields too large", details)


class HeaderReader:
    """Parses the headers of requests. Header names are classified once and cached.

    Args:
        propagated: The names of the headers that carry trace context and baggage, in lower case.
        limits: How many headers a request may have, and of how many bytes.
    """

    def __init__(self, propagated: Iterable[str], limits: HeaderLimits | None = None) -> None:
        self._limits = limits
        self._propagated = frozenset(propagated)
        self._names: dict[bytes, _Name] = {}
        self._plain: set[bytes] = set()
        """The cached names, in lower case, that are neither forwarded nor carried."""

    def _name(self, raw_name: bytes) -> _Name:
        if (known := self._names.get(raw_name)) is not None:
            return known
        lower = raw_name.lower()
        text = raw_name.decode("latin-1")
        forwarded = (AUTHORIZATION if lower == _AUTHORIZATION else text) if is_forwardable(lower) else None
        carried = text.lower() if text.lower() in self._propagated else None
        name = _Name(lower, forwarded, carried)
        if len(self._names) < _CACHED_NAMES and len(raw_name) <= _LONGEST_CACHED_NAME:
            self._names[raw_name] = name
            if forwarded is None and carried is None and raw_name == lower:
                self._plain.add(raw_name)
        return name

    def read(self, headers: RawHeaders) -> RequestHeaders:
        """Parse the headers of a request.

        A header that comes twice is joined with ``", "`` (RFC 9110, section 5.3); of an id the first counts.

        Args:
            headers: Names and values of the ASGI scope.

        Returns:
            The parsed headers; the request id is a fresh UUID4 where the request has none that is valid.
        """
        if not isinstance(headers, list):
            headers = list(headers)
        if (limits := self._limits) is not None:
            size = HEADER_OVERHEAD * len(headers)
            for name, value in headers:
                size += len(name) + len(value)
            if (len(headers) > limits.count or size > limits.bytes) and (
                refusal := limits.refusal(len(headers), size)
            ) is not None:
                values = RequestValues(new_request_id(), None, None, None, None, None)
                return RequestHeaders(values, refusal, None, None, None, None, False)
        found = dict(headers)
        forwarded = carrier = None
        # Fast path: each name comes once, and none is forwarded or carried.
        if len(found) != len(headers) or not found.keys() <= self._plain:
            found, forwarded, carrier = self._read_each(headers)
        get = found.get
        request_id, session_id = _text(get(_REQUEST_ID)), _text(get(_SESSION_ID))
        token = callback_url = baggage = refusal = None
        if forwarded:  # as these are
            token = _text(get(_WORKLOAD_ACCESS_TOKEN)) or _text(get(_WORKLOAD_ACCESS_TOKEN_LEGACY))
            callback_url = _text(get(_OAUTH2_CALLBACK_URL))
            if _BAGGAGE in found:
                baggage = carrier.get("baggage") if carrier else None
                if baggage is None:  # OTEL_PROPAGATORS has no baggage, which an agent's configuration may be in
                    baggage = b",".join(value for name, value in headers if name.lower() == _BAGGAGE).decode("latin-1")
        if not (_is_plainly_valid(request_id) and _is_plainly_valid(session_id)):
            request_id, session_id, refusal = _validated(request_id, session_id)
        return RequestHeaders(
            RequestValues(request_id or new_request_id(), session_id, token, callback_url, forwarded, baggage),
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
        """The first non-empty value of each name, the forwarded headers, and those for a propagator."""
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


def new_request_id() -> str:
    """An id for a request that has none."""
    return str(uuid.uuid4())


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _number(digits: bytes | None) -> int | None:
    """A content length, or ``None`` where it is none; the server holds the client to it."""
    if digits is None or not digits.isdigit():
        return None
    return int(digits) if len(digits) < _MANY_DIGITS else sys.maxsize


_IDS = frozenset({_REQUEST_ID, _SESSION_ID})


def _validated(request_id: str | None, session_id: str | None) -> tuple[str | None, str | None, Refusal | None]:
    """The ids that are valid, and the refusal where one is not."""
    fields = {"request_id": request_id or "", "session_id": session_id}
    if request_id is None:
        fields["request_id"] = "-"
    try:
        msgspec.convert(fields, Identifiers)
    except msgspec.ValidationError as error:
        refusal = Refusal(400, "Invalid request context", str(error))
    else:
        return request_id, session_id, None
    valid = [value if is_identifier(value) else None for value in (request_id, session_id)]
    return valid[0], valid[1], refusal


def _is_plainly_valid(identifier: str | None) -> bool:
    """Whether an id is valid; at a fraction of the model's time, which is left for what is not."""
    if identifier is None:
        return True
    return 0 < len(identifier) <= 256 and identifier.isascii() and identifier.isprintable() and " " not in identifier


def is_identifier(identifier: str | None) -> bool:
    """Tell whether a text may be the id of a request or a session.

    Args:
        identifier: The text.
    """
    try:
        msgspec.convert(identifier, Identifier)
    except msgspec.ValidationError:
        return False
    return True


def response_headers(request_id: str, session_id: str | None) -> list[tuple[bytes, bytes]]:
    """The headers that carry the ids back with every answer.

    Args:
        request_id: The request's id.
        session_id: The session's id, where there is one.

    Returns:
        Raw header pairs for an ASGI ``http.response.start``.
    """
    if session_id is None:
        return [(_REQUEST_ID, request_id.encode())]
    return [(_REQUEST_ID, request_id.encode()), (_SESSION_ID, session_id.encode())]


def handshake_headers(headers: RawHeaders, query_string: bytes) -> list[RawHeader]:
    """The headers of a WebSocket handshake, with those that came as query parameters of its URL.

    Browsers and presigned URLs cannot set headers, so the platform takes the ids and the ``...-Runtime-Custom-*``
    headers from the query too. A header wins over a parameter of its name.

    Args:
        headers: Names and values of the ASGI scope.
        query_string: The query of the ASGI scope.

    Returns:
        The headers, those of the query last.
    """
    merged = list(headers)
    if not query_string:
        return merged
    present = {name.lower() for name, _ in merged}
    for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, encoding="latin-1"):
        raw_name, raw_value = name.encode("latin-1"), value.encode("latin-1")
        lower = raw_name.lower()
        if lower in present or not (lower in _IDS or lower.startswith(_CUSTOM_PREFIX)):
            continue
        if _NAME.fullmatch(raw_name) and _VALUE.fullmatch(raw_value):
            merged.append((raw_name, raw_value))
        else:
            logger.warning("The query parameter %r of a WebSocket cannot be a header, and is ignored", name)
    return merged


_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
"""A header's name and value (RFC 9110, sections 5.1 and 5.5)."""


def sendable_headers(headers: Iterable[tuple[Any, Any]]) -> list[RawHeader]:
    """The headers of an answer that HTTP can carry. The others are left out, and named in the log.

    Args:
        headers: Names and values that an author gave: text, bytes, or anything that has a ``str()``.

    Returns:
        Raw headers, in Latin-1.
    """
    sendable = []
    for name, value in headers:
        raw_name, raw_value = _raw(name), _raw(value)
        if raw_name is None or raw_value is None or not (_NAME.fullmatch(raw_name) and _VALUE.fullmatch(raw_value)):
            logger.warning("The header %r of an answer cannot be sent over HTTP, and is left out", name)
        else:
            sendable.append((raw_name, raw_value.strip(b" \t")))
    return sendable


def _raw(text: Any) -> bytes | None:
    if isinstance(text, bytes):
        return text
    try:
        return str(text).encode("latin-1")
    except UnicodeEncodeError:
        return None
