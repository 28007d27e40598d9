"""JSON in and out: one encoder for everything that is answered, and the decoders of request bodies."""

import json
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Annotated, Any, get_args, get_origin

import msgspec

from litestar_agentcore.protocol.fallback_encoder import (
    encode_by_level,
    encode_failure,
    fast_encode,
    find_offset,
    has_rounded_offset,
)
from litestar_agentcore.protocol.models import Refusal

Decode = Callable[[bytes | bytearray], Any]

_decode_json = msgspec.json.Decoder().decode


def encode(value: object) -> bytes:
    """Encode a value as JSON.

    msgspec encodes what it supports. An object with ``model_dump()`` is dumped, one that stands for a number (a numpy
    scalar) is that number, and any other becomes its ``str()`` in its place, or has the innermost object around it that
    defines a ``__str__`` become that one's. Keys become strings, NaN and infinities ``null``, an unpaired surrogate
    U+FFFD, and a date and time whose UTC offset has seconds one in UTC.

    Args:
        value: Anything.

    Returns:
        Valid JSON in UTF-8. ``{"error": "Serialization failed", "original_type": ...}`` replaces a leaf that
        cannot be encoded, and the whole value where it contains itself or is nested too deep.
    """
    try:
        data = fast_encode(value)
    except Exception:
        return _encode_by_level(value)
    # A date and time has a "T" and the sign of its UTC offset: two quick looks save most answers the search.
    if 84 in data and (43 in data or 45 in data) and type(value) is not str and find_offset(data):
        return _encode_by_level(value) if has_rounded_offset(value) else data
    return data


def encode_document(value: object) -> bytes:
    """Encode a value as JSON that fits into a server-sent event.

    Args:
        value: Anything.

    Returns:
        What :func:`encode` gives, without line breaks.
    """
    data = encode(value)
    if 10 in data or 13 in data:  # between the tokens of a ``msgspec.Raw``; those in strings are escaped
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return data


def encode_events(documents: Sequence[bytes]) -> bytes:
    """Put JSON documents into server-sent events.

    Args:
        documents: What :func:`encode_document` gave; at least one.

    Returns:
        For each ``data: <json>`` and a blank line (WHATWG HTML standard, section 9.2).
    """
    return b"data: " + b"\n\ndata: ".join(documents) + b"\n\n"


def _encode_by_level(value: object) -> bytes:
    try:
        return encode_by_level(value)
    except Exception as error:
        return encode_failure(value, error)


def decode_body(body: bytes | bytearray, decode: Decode | None = None) -> Any:
    """Decode the body of a request.

    Args:
        body: The bytes as they came.
        decode: A decoder from :func:`payload_decoder`. Without one, what ``json.loads`` makes of the bytes is returned:
            a byte order mark, UTF-16, UTF-32, ``NaN``, ``Infinity`` and unpaired surrogates are accepted.

    Returns:
        The payload.

    Raises:
        Refusal: The body cannot be decoded, is not JSON, or does not fit the type of the payload (status 400).
    """
    if decode is not None:
        return _decode_typed(body, decode)
    try:
        # Where msgspec accepts a body, its result is that of ``json.loads``, but for a number of more than 9,000 digits
        # with an exponent beyond 99,999.
        return _decode_json(body)
    except Exception:
        return _load(body)


def _load(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body)
    except UnicodeDecodeError as error:
        raise Refusal(400, "Invalid encoding", str(error)) from None
    except RecursionError:
        raise Refusal(400, "Invalid JSON", "nested too deep") from None
    except ValueError as error:  # an integer that is too long is no ``JSONDecodeError``
        raise Refusal(400, "Invalid JSON", str(error)) from None


def _decode_typed(body: bytes | bytearray, decode: Decode) -> Any:
    try:
        if not body.isascii():
            body.decode()  # decoders skip the fields that they do not want, unread
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _load(body)  # refuses what is no JSON at all: a decoder stops at the first misfit
        raise _refusal_of(error) from None


def _refusal_of(error: Exception) -> Refusal:
    """The refusal of a body that is JSON, and that the decoder of its type did not take."""
    if isinstance(error, msgspec.ValidationError):
        return Refusal(400, "Invalid payload", str(error))
    if isinstance(error, UnicodeDecodeError):
        return Refusal(400, "Invalid encoding", str(error))
    return Refusal(400, "Invalid JSON", str(error))


def payload_decoder(annotation: Any) -> Decode | None:
    """Find the decoder for the annotation of a handler's payload.

    Args:
        annotation: The evaluated annotation of the handler's first parameter.

    Returns:
        A decoder that validates straight into the type, for :func:`decode_body`; ``None`` where the handler wants the
        JSON as it is (no annotation, ``Any``, ``object``, ``dict`` with or without ``Any`` inside).

    Raises:
        TypeError: Neither msgspec nor pydantic can decode JSON into that type.
    """
    if _is_untyped(annotation):
        return None
    if _is_pydantic_model(annotation):
        return _pydantic_decoder(annotation)
    try:
        decoder = msgspec.json.Decoder(annotation, dec_hook=_decode_foreign)
        information = msgspec.inspect.type_info(annotation)
    except (TypeError, NotImplementedError):
        if "pydantic" in sys.modules and any(_is_pydantic_model(leaf) for leaf in _leaves(annotation)):
            return _pydantic_decoder(annotation)
        raise
    foreign = [kind for kind in _custom_types(information) if not _is_pydantic_model(kind)]
    if foreign:
        raise TypeError(f"nothing decodes JSON into {', '.join(sorted(kind.__name__ for kind in foreign))}")
    return _with_full_paths(decoder.decode)


def _is_untyped(annotation: Any) -> bool:
    if annotation in (Any, object):
        return True
    origin = get_origin(annotation) or annotation
    return origin in (dict, Mapping, MutableMapping) and all(
        inner in (str, Any, object) for inner in get_args(annotation)
    )


def _leaves(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        inner = inner[:1]
    return [leaf for part in inner for leaf in _leaves(part)] if inner else [annotation]


def _is_pydantic_model(annotation: Any) -> bool:
    pydantic = sys.modules.get("pydantic")  # no annotation is a pydantic model before pydantic is imported
    return pydantic is not None and isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _custom_types(information: Any) -> set[type]:
    """The classes within a type that msgspec leaves to a hook."""
    found: set[type] = set()
    seen: set[int] = set()
    pending = [information]
    while pending:
        node = pending.pop()
        if isinstance(node, tuple):
            pending += node
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, msgspec.inspect.CustomType):
                found.add(node.cls)
            pending += [getattr(node, name) for name in node.__struct_fields__]
    return found


def _pydantic_decoder(annotation: Any) -> Decode:
    import pydantic

    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)

    def decode(body: bytes | bytearray) -> Any:
        try:
            return adapter.validate_json(body)
        except pydantic.ValidationError as error:
            is_json = all(line["type"] != "json_invalid" or line["loc"] for line in error.errors(include_url=False))
            kind = msgspec.ValidationError if is_json else msgspec.DecodeError
            raise kind(_pydantic_details(error, root="$")) from None

    return decode


_ROOT = "\0"
"""Replaced by the path of a pydantic model inside one of msgspec's types, which only msgspec can tell."""


def _decode_foreign(wanted: type, value: Any) -> Any:
    """Decode a pydantic model inside a type of msgspec's."""
    import pydantic

    try:
        # From JSON, where a strict model takes strings for dates; from Python objects it does not.
        return pydantic.TypeAdapter(wanted).validate_json(fast_encode(value))
    except pydantic.ValidationError as error:
        raise ValueError(_pydantic_details(error, root=_ROOT)) from None


def _with_full_paths(decode: Decode) -> Decode:
    def decode_with_full_paths(body: bytes | bytearray) -> Any:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            text = str(error)
            if _ROOT not in text:
                raise
            details, _, path = text.rpartition(" - at `$")
            raise msgspec.ValidationError(
                (details or text).replace(_ROOT, f"${path[:-1]}" if details else "$")
            ) from None

    return decode_with_full_paths


def _pydantic_details(error: Any, root: str) -> str:
    """A pydantic error in the form of msgspec's: what is wrong, and at which JSON path."""
    parts = []
    for line in error.errors(include_url=False, include_context=False, include_input=False):
        path = root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in line["loc"])
        parts.append(f"{line['msg']} - at `{path}`")
    return "; ".join(parts)
