"""One encoder for everything that leaves, and the decoders for what comes in.

Encoding never fails: what no JSON can say is said in its place, so a handler's odd value costs that value alone.
"""

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Annotated, Any, get_args, get_origin

import msgspec

from litestar_agentcore.protocol.models import Refusal

logger = logging.getLogger(__name__)

Decode = Callable[[bytes | bytearray], Any]

_EXPLAINED_LENGTH = 1024 * 1024
_warned_types: set[str] = set()


def _serialization_failed(value: object) -> dict[str, str]:
    return {"error": "Serialization failed", "original_type": type(value).__name__}


def _stand_in(value: Any) -> Any:
    """What is encoded in the place of a value, or of a key, that msgspec has no word for."""
    kind = type(value)  # and not ``__class__``, which a proxy makes up
    if value is None:  # only as a key: ``json`` writes these two the same way
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    try:
        if hasattr(kind, "model_dump"):  # of the class: a mock has every attribute that it is asked for
            return value.model_dump()
        text = str(value)
    except RecursionError:
        raise
    except Exception as error:
        logger.error(  # noqa: TRY400 - the exception may quote the value
            "A %s could not be serialized: its own conversion raised %s", kind.__name__, type(error).__name__
        )
        return _serialization_failed(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in _warned_types:
        _warned_types.add(name)
        logger.warning("No encoder knows %s: its str() is sent in its place", name)
    return text


_encoder = msgspec.json.Encoder(enc_hook=_stand_in)
_encode = _encoder.encode


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _repaired(value: Any) -> Any:
    """A copy of a value, reduced to what JSON has, in which each string has a UTF-8 form."""
    if not issubclass(type(value), str | dict | list | tuple | set | frozenset):
        try:
            return msgspec.Raw(_encoder.encode(value))
        except UnicodeEncodeError:
            value = _reduced(value)
    if isinstance(value, str):
        return _without_surrogates(value)
    if isinstance(value, dict):
        return {_repaired_key(key): _repaired(item) for key, item in value.items()}
    return [_repaired(item) for item in value]


def _repaired_key(key: Any) -> Any:
    try:
        _encoder.encode({key: None})
    except UnicodeEncodeError:
        return _without_surrogates(key if isinstance(key, str) else str(_stand_in(key)))
    return key


def _reduced(value: Any) -> Any:
    """One level of an object as a dict, a list or a string: what msgspec or its own conversion makes of it."""
    fields = getattr(type(value), "__struct_fields__", None)
    if fields is not None and not type(value).__struct_config__.array_like:
        config = type(value).__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        names = zip(type(value).__struct_encode_fields__, fields, strict=True)
        return tag | {encoded: getattr(value, name) for encoded, name in names}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if (attributes := getattr(type(value), "__attrs_attrs__", None)) is not None:
        return {attribute.name: getattr(value, attribute.name) for attribute in attributes}
    return msgspec.to_builtins(value, enc_hook=_stand_in)


def encode(value: object) -> bytes:
    """Encode a value as JSON.

    msgspec encodes what it knows; an object with ``model_dump()`` is dumped, any other object becomes its ``str()``, at
    the place where it stands. Keys become strings, NaN and infinities ``null``, and an unpaired surrogate U+FFFD.

    Args:
        value: Anything.

    Returns:
        Valid JSON in UTF-8; ``{"error": "Serialization failed", "original_type": ...}`` for a value that contains
        itself or is nested too deep.
    """
    try:
        try:
            return _encoder.encode(value)
        except UnicodeEncodeError:
            return _encoder.encode(_repaired(value))
    except Exception as error:
        logger.error(  # noqa: TRY400 - the exception may quote the value
            "An answer of type %s could not be serialized: %s", type(value).__name__, type(error).__name__
        )
        return _encoder.encode(_serialization_failed(value))


def encode_document(value: object) -> bytes:
    """Encode a value as JSON that can stand in a server-sent event.

    Args:
        value: Anything.

    Returns:
        What :func:`encode` gives, without line breaks.
    """
    try:
        data = _encode(value)
    except Exception:  # whatever it is, the slower way knows what to do with it
        data = encode(value)
    if b"\n" in data or b"\r" in data:  # between the tokens of a ``msgspec.Raw``: strings have theirs escaped
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return data


def encode_events(documents: Sequence[bytes]) -> bytes:
    """Put JSON documents into server-sent events.

    Args:
        documents: What :func:`encode_document` gave; at least one.

    Returns:
        For each ``data: <json>`` and a blank line, as the WHATWG HTML standard, section 9.2, has it.
    """
    return b"data: " + b"\n\ndata: ".join(documents) + b"\n\n"


def _decode_json(body: bytes | bytearray) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError:  # a number that no float holds
        raise
    except msgspec.DecodeError:
        if b"\\u" not in body or len(body) > _EXPLAINED_LENGTH:
            raise
        try:  # half of a surrogate pair, as ``JSON.stringify`` writes a string that was cut inside an emoji
            return json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            pass
        raise


def _refuse(word: str) -> Any:
    raise ValueError(f"JSON has no {word}")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("no float holds this number")
    return number


def decode_body(body: bytes | bytearray, decode: Decode = _decode_json) -> Any:
    """Decode the body of a request.

    Args:
        body: The bytes as they came.
        decode: A decoder from :func:`payload_decoder`; by default the JSON is decoded as it is.

    Returns:
        The payload.

    Raises:
        Refusal: The body is not UTF-8, not JSON, or does not fit the type of the payload (status 400).
    """
    try:
        if decode is not _decode_json and not body.isascii():
            body.decode()  # a typed decoder skips what it does not want, unread
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal_of(body, error, typed=decode is not _decode_json) from None


def _refusal_of(body: bytes | bytearray, error: Exception, typed: bool) -> Refusal:
    """Tell what is wrong with a body, the most basic fault first."""
    try:
        text = body.decode()
    except UnicodeDecodeError as encoding:
        return Refusal(400, "Invalid encoding", str(encoding))
    if typed and isinstance(error, msgspec.ValidationError):
        try:
            _decode_json(body)
        except (ValueError, RecursionError) as malformed:  # a typed decoder stops at the first misfit
            error = malformed
        else:
            return Refusal(400, "Invalid payload", str(error))
    if isinstance(error, RecursionError):
        return Refusal(400, "Invalid JSON", "nested too deep")
    return Refusal(400, "Invalid JSON", _explanation(text) or str(error))


def _explanation(text: str) -> str | None:
    """What the standard library, which knows line and column, says of a text that is not JSON."""
    if len(text) > _EXPLAINED_LENGTH:
        return None
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return str(error)
    except (ValueError, RecursionError):
        return None
    return None


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
        msgspec.json.decode(body)  # pydantic takes NaN and infinities, which are no JSON
        try:
            return adapter.validate_json(body)
        except pydantic.ValidationError as error:
            raise msgspec.ValidationError(_pydantic_details(error, root="$")) from None

    return decode


_ROOT = "\0"
"""Stands for the path of a pydantic model inside a type of msgspec's, which only msgspec knows."""


def _decode_foreign(wanted: type, value: Any) -> Any:
    """Decode a pydantic model inside a type of msgspec's."""
    import pydantic

    try:
        # From JSON, because a strict model takes the strings of JSON for dates, and those of Python not.
        return pydantic.TypeAdapter(wanted).validate_json(_encoder.encode(value))
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
