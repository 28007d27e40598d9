"""One encoder for everything that leaves, and the decoders for what comes in.

Encoding never fails: what no JSON can say is said in its place, so a handler's odd value costs that value alone.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Annotated, Any, get_args, get_origin
from weakref import WeakSet

import msgspec

from service.protocol.models import Refusal

logger = logging.getLogger(__name__)

Decode = Callable[[bytes | bytearray], Any]

_EXPLAINED_BYTES = 1024 * 1024
_warned_types: WeakSet[type] = WeakSet()


def _serialization_failed(value: object) -> dict[str, str]:
    return {"error": "Serialization failed", "original_type": type(value).__name__}


def _stand_in(value: Any) -> Any:
    """What is encoded in the place of a value, or of a key, that msgspec has no word for."""
    if value is None:  # only as a key: ``json`` writes these two the same way
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    try:
        if not isinstance(value, type) and hasattr(value, "model_dump"):
            return value.model_dump()
        text = str(value)
    except RecursionError:
        raise
    except Exception as error:
        logger.error(  # noqa: TRY400 - the exception may quote the value
            "A %s could not be serialized: its own conversion raised %s",
            type(value).__name__,
            type(error).__name__,
        )
        return _serialization_failed(value)
    if type(value) not in _warned_types:
        _warned_types.add(type(value))
        logger.warning("No encoder knows %s: its str() is sent in its place", type(value).__name__)
    return text


_encoder = msgspec.json.Encoder(enc_hook=_stand_in)


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _repaired(builtins: Any) -> Any:
    """A copy of plain dicts, lists and leaves in which each string has a UTF-8 form."""
    if isinstance(builtins, str):
        return _without_surrogates(builtins)
    if isinstance(builtins, dict):
        return {_repaired(key): _repaired(item) for key, item in builtins.items()}
    if isinstance(builtins, list | tuple):
        return [_repaired(item) for item in builtins]
    return builtins


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
            return _encoder.encode(_repaired(msgspec.to_builtins(value, str_keys=True, enc_hook=_stand_in)))
    except Exception as error:
        logger.error(  # noqa: TRY400 - the exception may quote the value
            "An answer of type %s could not be serialized: %s", type(value).__name__, type(error).__name__
        )
        return _encoder.encode(_serialization_failed(value))


def encode_event(value: object) -> bytes:
    """Encode a value as one server-sent event.

    Args:
        value: Anything.

    Returns:
        ``data: <json>`` and a blank line, as the WHATWG HTML standard, section 9.2, has it.
    """
    return b"data: " + encode(value) + b"\n\n"


def _decode_json(body: bytes | bytearray) -> Any:
    return msgspec.json.decode(body)


def _explanation(body: bytes | bytearray, error: Exception) -> str:
    """Say what is wrong with a body that is not JSON, with line and column where the standard library can."""
    if len(body) <= _EXPLAINED_BYTES:
        try:
            json.loads(body)
        except json.JSONDecodeError as explained:
            return str(explained)
        except RecursionError:
            pass
    return str(error)


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
    except msgspec.ValidationError as error:
        if decode is _decode_json:  # a number that no float can hold
            raise Refusal(400, "Invalid JSON", str(error)) from None
        raise Refusal(400, "Invalid payload", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        try:
            body.decode()
        except UnicodeDecodeError as encoding:
            raise Refusal(400, "Invalid encoding", str(encoding)) from None
        raise Refusal(400, "Invalid JSON", _explanation(body, error)) from None
    except RecursionError:
        raise Refusal(400, "Invalid JSON", "nested too deep") from None


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
        if "pydantic" in sys.modules and any(_is_pydantic_model(inner) for inner in _leaves(annotation)):
            return _pydantic_decoder(annotation)
        raise
    if isinstance(information, msgspec.inspect.CustomType) and not _is_pydantic_model(information.cls):
        raise TypeError(f"nothing decodes JSON into {information.cls!r}")
    return decoder.decode


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


def _pydantic_decoder(annotation: Any) -> Decode:
    import pydantic

    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)

    def decode(body: bytes | bytearray) -> Any:
        try:
            return adapter.validate_python(msgspec.json.decode(body))
        except pydantic.ValidationError as error:
            raise msgspec.ValidationError(_pydantic_details(error, root="$")) from None

    return decode


def _decode_foreign(wanted: type, value: Any) -> Any:
    """Decode a pydantic model inside a type of msgspec's."""
    if not _is_pydantic_model(wanted):
        raise TypeError(f"nothing decodes JSON into {wanted.__name__}")
    import pydantic

    try:
        return pydantic.TypeAdapter(wanted).validate_python(value)
    except pydantic.ValidationError as error:
        raise ValueError(_pydantic_details(error, root="")) from None


def _pydantic_details(error: Any, root: str) -> str:
    """A pydantic error in the form of msgspec's: what is wrong, and at which JSON path."""
    parts = []
    for line in error.errors(include_url=False, include_context=False, include_input=False):
        path = root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in line["loc"])
        parts.append(f"{line['msg']} - at `{path}`" if path else line["msg"])
    return "; ".join(parts)
