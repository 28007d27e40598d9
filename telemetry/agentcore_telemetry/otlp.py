"""The encoding of spans in the OpenTelemetry protocol.

The same bytes as the SDK's encoder writes, in a third of the time, since there are no protobuf objects between. The
numbers of the fields are those of ``opentelemetry/proto/trace/v1/trace.proto``, version 1.
"""

import importlib
import logging
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, wraps
from struct import Struct
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

logger = logging.getLogger(__name__)

_KINDS = {
    SpanKind.INTERNAL: b"\x30\x01",
    SpanKind.SERVER: b"\x30\x02",
    SpanKind.CLIENT: b"\x30\x03",
    SpanKind.PRODUCER: b"\x30\x04",
    SpanKind.CONSUMER: b"\x30\x05",
}
_CODES = {StatusCode.UNSET: b"", StatusCode.OK: b"\x18\x01", StatusCode.ERROR: b"\x18\x02"}
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200

_ids = Struct(">QQ")
_times = Struct("<BQBQ")
_double = Struct("<d").pack
_fixed64 = Struct("<Q").pack
_fixed32 = Struct("<I").pack


def _long_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_VARINTS = tuple(_long_varint(number) for number in range(128))


def _varint(number: int) -> bytes:
    return _VARINTS[number] if number < 128 else _long_varint(number)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _text(tag: bytes, text: str | None) -> bytes:
    return _field(tag, text.encode()) if text else b""


@lru_cache(maxsize=512)
def _key(key: str) -> bytes:
    return _field(b"\x0a", key.encode()) + b"\x12"


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return _field(b"\x0a", value.encode())
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("the number does not fit into 64 bits")
        return b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return b"\x21" + _double(value)
    if isinstance(value, bytes):
        return _field(b"\x3a", value)
    if isinstance(value, Sequence):
        return _field(b"\x2a", b"".join(_field(b"\x0a", _value(item)) for item in value))
    if isinstance(value, Mapping):
        return _field(b"\x32", b"".join(_field(b"\x0a", _pair(str(key), item)) for key, item in value.items()))
    raise TypeError(f"the protocol has no type for a {type(value).__name__}")


def _pair(key: str, value: Any) -> bytes:
    if type(value) is str:
        return _text_pair(key, value) if len(value) <= _LONGEST_REMEMBERED else _encode_text_pair(key, value)
    encoded = _value(value)
    return _key(key) + _varint(len(encoded)) + encoded


def _encode_text_pair(key: str, text: str) -> bytes:
    encoded = text.encode()
    content = _varint(len(encoded)) + encoded
    return _key(key) + _varint(len(content) + 1) + b"\x0a" + content


_LONGEST_REMEMBERED = 255
# Most attributes of a request's span are those of the one before.
_text_pair = lru_cache(maxsize=1024)(_encode_text_pair)


def _attributes(tag: bytes, attributes: Mapping[str, Any] | None) -> list[bytes]:
    fields: list[bytes] = []
    for key, value in (attributes or {}).items():
        try:
            pair = _pair(key, value)
        except Exception as error:  # the rest of the span is still worth having
            logger.debug("The attribute %s cannot be exported: %s", key, error)
            continue
        fields.append(tag + _varint(len(pair)) + pair)
    return fields


def _count(tag: bytes, number: int) -> bytes:
    return tag + _varint(number) if number else b""


def _trace_id(trace_id: int) -> bytes:
    return _ids.pack(trace_id >> 64, trace_id & 0xFFFF_FFFF_FFFF_FFFF)


def _flags(context: SpanContext | None) -> int:
    return _HAS_IS_REMOTE | _IS_REMOTE if context and context.is_remote else _HAS_IS_REMOTE


def _encode(span: ReadableSpan) -> bytes:
    context: SpanContext = span.get_span_context()  # type: ignore[assignment]
    parent = span.parent
    parts = [b"\x0a\x10", _trace_id(context.trace_id), b"\x12\x08", context.span_id.to_bytes(8, "big")]
    if context.trace_state:
        parts.append(_text(b"\x1a", ",".join(f"{key}={value}" for key, value in context.trace_state.items())))
    if parent:
        parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
    parts += (
        _text(b"\x2a", span.name),
        _KINDS[span.kind],
        _times.pack(0x39, span.start_time or 0, 0x41, span.end_time or 0),
    )
    parts += _attributes(b"\x4a", span.attributes)
    parts.append(_count(b"\x50", span.dropped_attributes))
    for event in span.events:
        inner = [
            b"\x09",
            _fixed64(event.timestamp),
            _text(b"\x12", event.name),
            *_attributes(b"\x1a", event.attributes),
        ]
        inner.append(_count(b"\x20", event.dropped_attributes))
        parts.append(_field(b"\x5a", b"".join(inner)))
    parts.append(_count(b"\x60", span.dropped_events))
    for link in span.links:
        to = link.context
        inner = [b"\x0a\x10", _trace_id(to.trace_id), b"\x12\x08", to.span_id.to_bytes(8, "big")]
        inner += _attributes(b"\x22", link.attributes)
        inner += (_count(b"\x28", link.dropped_attributes), b"\x35", _fixed32(_flags(to)))
        parts.append(_field(b"\x6a", b"".join(inner)))
    parts.append(_count(b"\x70", span.dropped_links))
    if (status := span.status) is not None:
        parts.append(_field(b"\x7a", _text(b"\x12", status.description) + _CODES[status.status_code]))
    parts += (b"\x85\x01", _fixed32(_flags(parent)))
    message = b"".join(parts)
    return b"\x12" + _varint(len(message)) + message


def _scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return b"\x0a\x00"
    parts = [_text(b"\x0a", scope.name), _text(b"\x12", scope.version), *_attributes(b"\x1a", scope.attributes)]
    return _field(b"\x0a", b"".join(parts))


def _resource(resource: Resource) -> bytes:
    return _field(b"\x0a", b"".join(_attributes(b"\x0a", resource.attributes)))


class EncodedSpan(NamedTuple):
    """A span that is ready to be sent, and what it is grouped by."""

    resource: Resource
    instrumentation_scope: InstrumentationScope | None
    message: bytes


def encode_span(span: ReadableSpan) -> EncodedSpan:
    """Encode a span on its own, for :func:`encode_spans`.

    Args:
        span: An ended span, of the SDK's or any other kind that reads the same.

    Raises:
        ValueError: Its name or its status cannot be encoded; an attribute that cannot is left out.
    """
    return EncodedSpan(span.resource, span.instrumentation_scope, _encode(span))


def encode_spans(spans: Iterable[ReadableSpan | EncodedSpan]) -> bytes:
    """Encode spans as an ``ExportTraceServiceRequest``, grouped by resource and instrumentation scope.

    Args:
        spans: Ended spans, encoded or not.

    Raises:
        ValueError: As for :func:`encode_span`.
    """
    resources: dict[int, tuple[Resource, dict[InstrumentationScope | None, list[bytes]]]] = {}
    for span in spans:
        # By identity: a resource is hashed by encoding it as JSON, and a provider has but one.
        _, scopes = resources.setdefault(id(span.resource), (span.resource, {}))
        encoded = span.message if isinstance(span, EncodedSpan) else _encode(span)
        scopes.setdefault(span.instrumentation_scope or None, []).append(encoded)
    request = []
    for resource, scopes in resources.values():
        parts = [_resource(resource)]
        for scope, encoded_spans in scopes.items():
            inner = [_scope(scope), *encoded_spans, _text(b"\x1a", scope.schema_url if scope else None)]
            parts.append(_field(b"\x12", b"".join(inner)))
        parts.append(_text(b"\x1a", resource.schema_url))
        request.append(_field(b"\x0a", b"".join(parts)))
    return b"".join(request)


class _EncodedRequest:
    """An encoded request, with the methods of a protobuf message that the exporter over HTTP calls."""

    def __init__(self, spans: Iterable[ReadableSpan | EncodedSpan]) -> None:
        self._request = encode_spans(spans)

    def SerializePartialToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self._request

    SerializeToString = SerializePartialToString


def _protobuf_request(spans: Iterable[ReadableSpan | EncodedSpan]) -> Any:
    # Imported here: over HTTP nothing else needs protobuf.
    service = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    return service.ExportTraceServiceRequest.FromString(encode_spans(spans))


_ENCODING_METHODS: dict[str, Callable[[Iterable[ReadableSpan | EncodedSpan]], Any]] = {
    "export": _EncodedRequest,
    "_translate_data": _protobuf_request,
}
"""The methods in which the SDK's exporters call their module's ``encode_spans``, over HTTP and over gRPC, and what they
get in its place."""


_SDK_ENCODER = "opentelemetry.exporter.otlp.proto.common."


def with_own_encoding(exporter: type[SpanExporter]) -> type[SpanExporter]:
    """Have an OTLP exporter of the SDK's send what :func:`encode_spans` encodes.

    Everything else (endpoint, headers, certificates, compression, time-outs, retries) stays the exporter's, and its
    module is left as it is. Only such an exporter takes :class:`EncodedSpan`; it has :func:`encode_span` as a static
    method.

    Args:
        exporter: The class of the exporter.

    Returns:
        A subclass; the class itself where it is none of the SDK's OTLP exporters.
    """
    for name, encode in _ENCODING_METHODS.items():
        method: Any = getattr(exporter, name, None)
        if not isinstance(method, types.FunctionType) or "encode_spans" not in method.__code__.co_names:
            continue
        if not getattr(method.__globals__.get("encode_spans"), "__module__", "").startswith(_SDK_ENCODER):
            continue
        names = {**method.__globals__, "encode_spans": encode}
        bound = types.FunctionType(method.__code__, names, name, method.__defaults__, method.__closure__)
        members = {name: bound, "encode_span": staticmethod(encode_span), "__module__": exporter.__module__}
        return type(exporter.__name__, (exporter,), members)
    return exporter


def with_session(exporter: type[SpanExporter], session: Callable[[], Any]) -> type[SpanExporter]:
    """Have the SDK's OTLP exporter over HTTP send by another session than its own.

    Args:
        exporter: The class of the exporter; it takes the argument ``session``.
        session: Makes the session of one exporter.

    Returns:
        A subclass.
    """

    @wraps(exporter.__init__)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        exporter.__init__(self, *arguments, **{"session": session(), **options})

    return type(exporter.__name__, (exporter,), {"__init__": init, "__module__": exporter.__module__})
