"""The encoder for what msgspec cannot encode, or not exactly.

It goes one level at a time, so that a value without a JSON form costs its own place alone.
"""

import contextlib
import datetime as dt
import decimal
import enum
import logging
import numbers
import operator
import re
import sys
import types
import uuid
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import msgspec

logger = logging.getLogger(__name__)

MAX_DEPTH = 10_000
"""How many containers deep a value may be nested. msgspec goes no deeper on Python 3.11 to 3.13."""

WHOLE_DEPTH = 2
"""Down to which depth a container is first given to msgspec as a whole.

That is faster for most answers. Limited, because an item that msgspec cannot encode is tried once more at each depth.
"""

MAX_WARNED_TYPES = 1_000
"""How many types the log names at most, since a program may make one for each request."""

_MINUTE = dt.timedelta(minutes=1)
_LEAF_TYPES = (
    *(str, int, float, bool, type(None), bytes, bytearray, memoryview),
    *(dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, msgspec.Raw),
)
_LEAF_IDS = frozenset(map(id, _LEAF_TYPES))  # by identity, since there are classes that cannot be hashed
_DefaultFactory = type(
    msgspec.defstruct("_", [("items", list[Any], msgspec.field(default_factory=list))]).__struct_defaults__[0]
)
_CONTAINERS = (dict, list)
_SETS = (set, frozenset)
_SCALARS = (int, str)
_NO_KEY = object()
_UNKNOWN = object()

_warned_types: set[str] = set()


class UnknownTypeError(TypeError):
    """No encoder has a JSON form for a type."""


def _convert(value: Any) -> Any:
    """Convert a value, or a key, of a type that msgspec does not encode. ``_UNKNOWN`` where it has no JSON form."""
    kind = type(value)  # and not ``__class__``, which proxies override
    if value is None:  # these two come as keys alone
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if hasattr(kind, "model_dump"):  # of the class: a mock has every attribute
        return value.model_dump()
    return _number_of(value, kind)


def _enc_hook(value: Any) -> Any:
    converted = _convert(value)
    if converted is _UNKNOWN:
        raise UnknownTypeError(type(value).__name__)
    return converted


fast_encode = msgspec.json.Encoder(enc_hook=_enc_hook).encode
"""Encodes a value, or raises where the fallback encoder is needed."""

find_offset = re.compile(rb'T\d\d:\d\d:\d\d(?:\.\d{6})?[+-]\d\d:\d\d"').search
"""Finds, in what :data:`fast_encode` gave, the UTC offset of a date and time, which msgspec rounds to minutes.

It writes one within 30 seconds of none or of a day as ``Z``, which is not looked for: no time zone has one.
"""


def has_rounded_offset(value: object) -> bool:
    """Whether a value that :data:`fast_encode` encoded may hold a date and time whose UTC offset has seconds.

    Faster than to encode by level all that has times with an offset, or a text that looks so.

    Args:
        value: The value.

    Returns:
        False where each offset is in whole minutes.
    """
    try:
        pending: list[Any] = [
            msgspec.to_builtins(value, builtin_types=(dt.datetime,), str_keys=True, enc_hook=_enc_hook)
        ]
        for item in pending:  # which grows meanwhile
            kind = type(item)
            if kind is dict:
                pending += item.values()
            elif kind is list or kind is tuple:
                pending += item
            elif kind is dt.datetime and _has_seconds(item.utcoffset()):
                return True
    except Exception:  # a key that is a date and time, say
        return True
    return False


def _has_seconds(offset: dt.timedelta | None) -> bool:
    return bool(offset and offset % _MINUTE)


def encode_by_level(value: object) -> bytes:
    """Encode a value one level at a time, without recursion.

    Where msgspec can encode the value, the JSON has the same meaning, but for an unpaired surrogate (U+FFFD) and a UTC
    offset with seconds (converted to UTC).

    Args:
        value: Anything.

    Returns:
        Valid JSON in UTF-8; the error object in the place of each leaf that cannot be encoded.

    Raises:
        RecursionError: The value contains itself, or is nested deeper than ``MAX_DEPTH``.
    """
    return _LevelEncoder().encode(value)


def encode_failure(value: object, error: Exception) -> bytes:
    """Log that a value could not be encoded, and encode the error object that replaces it.

    Args:
        value: The value.
        error: Why. The log gets its type alone, because the text may quote the value.

    Returns:
        The error object as JSON.
    """
    name = type(value).__name__
    logger.error("A %s could not be serialized: %s", name, type(error).__name__)
    return fast_encode({"error": "Serialization failed", "original_type": name})


class _Level:
    """A container whose items are being encoded.

    Args:
        value: The container.
        brackets: The two bytes around its items; none where one item stands for the value.
        items: Pairs of a key (``_NO_KEY`` in an array) and a value.
    """

    __slots__ = ("brackets", "is_empty", "items", "start", "value")

    def __init__(self, value: object, brackets: bytes, items: Iterable[tuple[Any, Any]]) -> None:
        self.value = value
        self.brackets = brackets
        self.items = iter(items)
        self.is_empty = True
        self.start = 0


class _LevelEncoder:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._levels: list[_Level] = []
        self._open: set[int] = set()

    def encode(self, value: object) -> bytes:
        self._add(value)
        while self._levels:
            self._continue(self._levels[-1])
        return b"".join(self._parts)

    def _continue(self, level: _Level) -> None:
        """Add items of the innermost level, until another one is the innermost."""
        parts = self._parts
        for key, item in level.items:
            if level.brackets:
                parts.append(level.brackets[:1] if level.is_empty else b",")
                level.is_empty = False
            if not (key is _NO_KEY or self._add_key(key)) or not self._add(item):
                return
        parts.append(level.brackets if level.is_empty else level.brackets[1:])
        self._leave(len(self._levels) - 1)

    def _leave(self, index: int) -> None:
        for level in self._levels[index:]:
            self._open.discard(id(level.value))
        del self._levels[index:]

    def _add(self, value: Any) -> bool:
        """Add a value. Returns whether the innermost level is still the same."""
        kind = type(value)
        if id(kind) in _LEAF_IDS:
            self._parts.append(_encode_leaf(value))
            return True
        if 0 < len(self._levels) <= WHOLE_DEPTH and issubclass(kind, _CONTAINERS) and (data := _encode_whole(value)):
            self._parts.append(data)
            return True
        try:
            level = _level_of(value)
        except UnknownTypeError:
            return self._add_unknown(value)
        except Exception as error:
            self._parts.append(encode_failure(value, error))
            return True
        if level is None:
            self._parts.append(_encode_leaf(value))
            return True
        if id(value) in self._open:
            raise RecursionError("the value contains itself")
        if len(self._levels) >= MAX_DEPTH:
            raise RecursionError("the value is nested too deep")
        level.start = len(self._parts)
        self._levels.append(level)
        self._open.add(id(value))
        return False

    def _add_key(self, key: Any) -> bool:
        """Add a key and a colon. Returns whether the innermost level is still the same."""
        try:
            self._parts.append(_encode_key(key) + b":")
        except UnknownTypeError:
            return self._add_unknown(key, is_key=True)
        return True

    def _add_unknown(self, value: object, *, is_key: bool = False) -> bool:
        """Add the text of an object of an unknown type, or of the innermost object around it that defines one.

        Returns whether the innermost level is still the same.
        """
        for index in range(len(self._levels) - 1, -1, -1):
            level = self._levels[index]
            kind = type(level.value)
            if _defines_str(kind) and not hasattr(kind, "model_dump"):
                _warn_of(kind, type(value))
                del self._parts[level.start :]
                self._parts.append(_encode_str_of(level.value))
                self._leave(index)
                return False
        _warn_of(type(value), type(value))
        self._parts.append(_encode_str_of(value, is_key=is_key))
        if is_key:
            self._parts.append(b":")
        return True


def _level_of(value: Any) -> _Level | None:
    """Open a container as msgspec does, whatever its class overrides. ``None`` for what has no items.

    Raises:
        UnknownTypeError: No encoder has a JSON form for the type.
        Exception: The object's own code raised, or it misses a field.
    """
    kind = type(value)
    if issubclass(kind, dict):
        return _Level(value, b"{}", list(dict.items(value)))
    if issubclass(kind, list):
        return _Level(value, b"[]", _without_keys(list.copy(value)))
    if issubclass(kind, tuple):
        return _Level(value, b"[]", _without_keys(tuple.__iter__(value)))
    if issubclass(kind, _SETS):
        return _Level(value, b"[]", _without_keys(list(value)))
    if id(kind) in _LEAF_IDS or issubclass(kind, uuid.UUID):
        return None
    if issubclass(kind, msgspec.Struct):
        return _struct_level(value, kind)
    if issubclass(type(kind), enum.EnumMeta):
        return None if issubclass(kind, _SCALARS) else _Level(value, b"", _without_keys([value._value_]))
    if not issubclass(kind, type):
        if (fields := _dataclass_fields(value, kind)) is not None:
            return _Level(value, b"{}", _dataclass_items(value, kind, fields))
        if "__attrs_attrs__" in vars(kind):
            return _Level(value, b"{}", _attrs_items(value, kind))
    return _Level(value, b"", _without_keys([_enc_hook(value)]))


def _without_keys(items: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(repeat(_NO_KEY), items, strict=False)


def _struct_level(value: Any, kind: Any) -> _Level:
    config = kind.__struct_config__
    items = [object.__getattribute__(value, name) for name in kind.__struct_fields__]
    if config.array_like:
        return _Level(value, b"[]", _without_keys(items if config.tag is None else [config.tag, *items]))
    names = kind.__struct_encode_fields__
    defaults = kind.__struct_defaults__  # of the last fields
    named: list[tuple[str, Any]] = [] if config.tag is None else [(config.tag_field, config.tag)]
    for index, (name, item) in enumerate(zip(names, items, strict=True), start=len(defaults) - len(names)):
        if item is msgspec.UNSET:
            continue
        if config.omit_defaults and index >= 0 and _is_default(item, defaults[index]):
            continue
        named.append((name, item))
    return _Level(value, b"{}", named)


def _is_default(item: object, default: Any) -> bool:
    if item is default:
        return True
    kind = type(item)
    return type(default) is _DefaultFactory and kind is default.factory and kind in (list, dict, set) and not item


def _dataclass_fields(value: object, kind: type) -> dict[str, Any] | None:
    if not hasattr(kind, "__dataclass_fields__"):  # of the class: a proxy has the attributes of what is behind it
        return None
    try:
        fields = getattr(value, "__dataclass_fields__", None)
    except Exception:
        return None
    return fields if type(fields) is dict else None


def _dataclass_items(value: Any, kind: type, fields: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """The fields that have a value. Class variables are among the fields, and have none."""
    is_plain = _has_plain_attributes(kind)
    state = getattr(value, "__dict__", {}) if is_plain else {}
    for name in fields:
        try:
            if name in state:
                item = state[name]
            elif is_plain and not _is_data_descriptor(kind, name):
                continue
            else:
                item = getattr(value, name)
        except Exception:  # noqa: S112 - as msgspec does  # nosec B112
            continue
        if item is not msgspec.UNSET:
            yield name, item


def _attrs_items(value: Any, kind: type) -> Iterable[tuple[str, Any]]:
    """The public attributes of an instance of an attrs class, in its ``__dict__`` and its slots."""
    found = dict(getattr(value, "__dict__", {}))
    for base in kind.__mro__:
        if "__slots__" in vars(base):
            for name, member in vars(base).items():
                if isinstance(member, types.MemberDescriptorType):
                    with contextlib.suppress(AttributeError):
                        found[name] = member.__get__(value)
    return [
        (name, item)
        for name, item in found.items()
        if type(name) is str and not name.startswith("_") and item is not msgspec.UNSET
    ]


def _has_plain_attributes(kind: type) -> bool:
    """Whether a class leaves the reading of attributes to ``object``."""
    return not any(
        "__getattr__" in vars(base) or isinstance(vars(base).get("__getattribute__"), types.FunctionType)
        for base in kind.__mro__
    )


def _is_data_descriptor(kind: type, name: str) -> bool:
    for base in kind.__mro__:
        if name in vars(base):
            descriptor = type(vars(base)[name])
            return hasattr(descriptor, "__get__") and hasattr(descriptor, "__set__")
    return False


def _encode_whole(value: Any) -> bytes | None:
    try:
        data = fast_encode(value)
    except Exception:
        return None
    return None if 84 in data and find_offset(data) and has_rounded_offset(value) else data


def _encode_leaf(value: Any) -> bytes:
    try:
        return fast_encode(_with_exact_offset(value) if type(value) is dt.datetime else value)
    except UnicodeEncodeError:
        return fast_encode(_without_surrogates(value))
    except Exception as error:
        return encode_failure(value, error)


def _encode_key(key: Any) -> bytes:
    """Encode a key as msgspec does, and one that it cannot encode as its text.

    Raises:
        UnknownTypeError: No encoder has a JSON form for the type.
    """
    try:
        if type(key) is dt.datetime:
            key = _with_exact_offset(key)
        return fast_encode({key: None})[1:-6]
    except Exception:
        while issubclass(type(type(key)), enum.EnumMeta):
            key = key._value_
        if issubclass(type(key), str):
            return fast_encode(_without_surrogates(key))
        try:
            _level_of(key)
        except Exception as error:  # only the type is asked for
            if isinstance(error, UnknownTypeError):
                raise
        return _encode_str_of(key, is_key=True)


def _encode_str_of(value: object, *, is_key: bool = False) -> bytes:
    try:
        text = _without_surrogates(str(value))
    except Exception as error:
        failure = encode_failure(value, error)
        if not is_key:
            return failure
        text = failure.decode()
    return fast_encode(text)


def _without_surrogates(text: str) -> str:
    if str.isascii(text):
        return str.__str__(text)
    return str.encode(text, "utf-16", "surrogatepass").decode("utf-16", "replace")


def _with_exact_offset(value: dt.datetime) -> dt.datetime | str:
    """Convert a date and time to UTC where its UTC offset has seconds, which RFC 3339 has no form for."""
    if not _has_seconds(value.utcoffset()):
        return value
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        return value.isoformat()


def _number_of(value: Any, kind: type) -> Any:
    """The number that an object stands for; ``_UNKNOWN`` where it is none.

    A class that converts to numbers is one where it says so (``item()`` as in numpy, ``numbers.Real``) or has no other
    text: strings, amounts of money and addresses convert too. An array is none, though it may have a single item.
    """
    is_integer = hasattr(kind, "__index__")
    if not (is_integer or hasattr(kind, "__float__")) or hasattr(kind, "__len__"):
        return _UNKNOWN
    has_item = hasattr(kind, "item")
    if not has_item and not issubclass(kind, numbers.Real) and _defines_str(kind):
        return _UNKNOWN
    try:
        if is_integer:
            return operator.index(value)
        number = value.item() if has_item else float(value)
        if type(number) is kind:  # a long double is its own item
            number = float(value)
    except Exception:
        return _UNKNOWN
    # An ``int`` without ``__index__`` counts something: the nanoseconds of a numpy date, say.
    return number if type(number) in (bool, float) else _UNKNOWN


def _defines_str(kind: Any) -> bool:
    """Whether a class, or a base that is not Python's own, defines ``__str__``."""
    return kind.__str__ is not object.__str__ and any(
        "__str__" in vars(base) and str(base.__module__).partition(".")[0] not in sys.stdlib_module_names
        for base in kind.__mro__
    )


def _warn_of(kind: type, unknown: type) -> None:
    name = _name_of(kind)
    if name not in _warned_types and len(_warned_types) < MAX_WARNED_TYPES:
        _warned_types.add(name)
        logger.warning("%s becomes its str(): no encoder has a JSON form for %s", name, _name_of(unknown))


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
