"""Fuzzing by coverage of what reads headers and bodies, and of what writes JSON.

``python -m tests.fuzz.coverage`` has atheris run each target in a process of its own, and prints its figures.
"""

import argparse
import datetime as dt
import decimal
import enum
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris
import msgspec

with atheris.instrument_imports(include=["litestar_agentcore.protocol"]):
    from litestar_agentcore.protocol import headers as protocol_headers
    from litestar_agentcore.protocol import serialization
    from litestar_agentcore.protocol.headers import HeaderLimits, HeaderReader
    from litestar_agentcore.protocol.models import Refusal

INPUT_BYTES = 4096
INPUT_SECONDS = 30
"""How long one input may take before it counts as a hang, on a machine that does other things besides."""

_ID = re.compile(r"[\x21-\x7e]{1,256}")


def _check_refusal(refusal: Refusal, statuses: set[int]) -> None:
    assert refusal.status in statuses, refusal.status
    answer = json.loads(serialization.encode(refusal.answer).decode())
    assert isinstance(answer["error"], str)
    assert answer["error"]


# -- Headers

_IDS = {
    protocol_headers.REQUEST_ID.lower().encode(): "request_id",
    protocol_headers.SESSION_ID.lower().encode(): "session_id",
}
_PROPAGATED = ("traceparent", "tracestate", "baggage")
_NAMES = [
    *_IDS,
    *(name.encode() for name in _PROPAGATED),
    protocol_headers.WORKLOAD_ACCESS_TOKEN.encode(),
    protocol_headers.WORKLOAD_ACCESS_TOKEN_LEGACY.lower().encode(),
    protocol_headers.OAUTH2_CALLBACK_URL.lower().encode(),
    protocol_headers.CUSTOM_PREFIX.encode() + b"A",
    *(b"authorization", b"host", b"user-agent", b"content-length", b"expect", b"cookie", b"x-amz-date", b"sec-a"),
]
_LIMITS = HeaderLimits(count=8, bytes=1000)
_READERS = {limits: HeaderReader(_PROPAGATED, limits) for limits in (None, _LIMITS)}
"""These have seen other requests' names. What they read must not depend on that."""


def _header(data: atheris.FuzzedDataProvider) -> tuple[bytes, bytes]:
    name = data.PickValueInList(_NAMES) if data.ConsumeBool() else data.ConsumeBytes(data.ConsumeIntInRange(0, 200))
    if data.ConsumeBool():
        name = name.upper()
    return name, data.ConsumeBytes(data.ConsumeIntInRange(0, 300))


def read_headers(data: atheris.FuzzedDataProvider) -> None:
    """Headers of a request, and those of an answer."""
    limits = _LIMITS if data.ConsumeBool() else None
    headers = [_header(data) for _ in range(data.ConsumeIntInRange(0, 12))]
    if data.ConsumeBool():
        headers = protocol_headers.handshake_headers(headers, data.ConsumeBytes(300))
    read = _READERS[limits].read(headers)
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    too_large = limits is not None and (len(headers) > limits.count or size > limits.bytes)
    _check_ids(read, {} if too_large else _first_ids(headers), too_large)
    for forwarded in read.values.request_headers or ():
        assert protocol_headers.is_forwardable(forwarded.lower().encode("latin-1")), forwarded
    assert read.content_length is None or read.content_length >= 0
    serialization.encode(read.values.request_headers)
    _check_like_a_fresh_reader(read, HeaderReader(_PROPAGATED, limits).read(headers))
    for name, value in protocol_headers.sendable_headers(headers):
        assert name
        assert not set(name + value) & set(b"\r\n\0"), (name, value)


def _first_ids(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    first: dict[str, str] = {}
    for name, value in headers:
        if field := _IDS.get(name.lower()):
            first.setdefault(field, value.decode("latin-1"))
    return first


def _check_ids(read: protocol_headers.RequestHeaders, given: dict[str, str], too_large: bool) -> None:
    valid = {field: value for field, value in given.items() if _ID.fullmatch(value)}
    if too_large or len(valid) < len(given):
        assert read.refusal is not None
        _check_refusal(read.refusal, {431} if too_large else {400})
    else:
        assert read.refusal is None, read.refusal
    assert read.values.request_id is not None
    assert _ID.fullmatch(read.values.request_id)
    assert read.values.request_id == valid.get("request_id", read.values.request_id)
    if "request_id" not in valid:
        assert uuid.UUID(read.values.request_id).version == 4
    assert read.values.session_id == valid.get("session_id")


def _check_like_a_fresh_reader(read: protocol_headers.RequestHeaders, fresh: protocol_headers.RequestHeaders) -> None:
    for field in ("session_id", "request_headers", "workload_access_token", "oauth2_callback_url"):
        assert getattr(read.values, field) == getattr(fresh.values, field), field
    for field in ("carrier", "host", "user_agent", "content_length", "expects"):
        assert getattr(read, field) == getattr(fresh, field), field


# -- Bodies


class _Inner(msgspec.Struct):
    text: str = ""
    numbers: list[int | float] = []
    when: dt.datetime | None = None


class _Ask(msgspec.Struct):
    prompt: str
    stream: bool = False
    inner: _Inner | None = None
    by_name: dict[str, _Inner] = {}


_decode_ask = serialization.payload_decoder(_Ask)
_DEEP = 500
"""From so many brackets on, how deep the caller is decides what a decoder takes."""


def decode_bodies(data: atheris.FuzzedDataProvider) -> None:
    """Bodies of requests, for a handler that takes any JSON and for one that takes a type."""
    body = data.ConsumeBytes(INPUT_BYTES)
    taken = True
    try:
        payload = serialization.decode_body(body)
    except Refusal as refusal:
        _check_refusal(refusal, {400})
        taken = False
    if body.count(b"[") + body.count(b"{") < _DEEP:
        try:
            expected = json.loads(body)
        except (ValueError, RecursionError):
            assert not taken, body
        else:
            assert taken, body
            assert repr(payload) == repr(expected), body
    try:
        typed = serialization.decode_body(body, _decode_ask)
    except Refusal as refusal:
        _check_refusal(refusal, {400})
    else:
        assert type(typed) is _Ask
        assert taken, body
        assert msgspec.json.decode(serialization.encode(typed), type=_Ask) is not None


# -- The serializer


class _Color(enum.Enum):
    RED = "red"
    ODD = (1, b"\xff")


@dataclass
class _Pair:
    left: Any
    right: Any


class _Text:
    """An author's object, whose text is the author's too."""

    def __init__(self, text: str, inner: Any) -> None:
        self.text, self.inner = text, inner

    def __str__(self) -> str:
        return self.text


class _Model(_Text):
    def model_dump(self) -> Any:
        return self.inner


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _BrokenModel:
    def model_dump(self) -> Any:
        raise RuntimeError("no model")


class _Number:
    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value

    def __index__(self) -> int:
        return int(self._value)

    def item(self) -> float:
        return self._value


def _text(data: atheris.FuzzedDataProvider) -> str:
    text: str = data.ConsumeUnicode(data.ConsumeIntInRange(0, 20))  # with unpaired surrogates
    return text


def _plain_leaf(data: atheris.FuzzedDataProvider) -> Any:
    return [
        lambda: None,
        lambda: data.ConsumeBool(),
        lambda: data.ConsumeInt(9),
        lambda: data.ConsumeRegularFloat(),
        lambda: data.ConsumeUnicodeNoSurrogates(20),
    ][data.ConsumeIntInRange(0, 4)]()


def _plain(data: atheris.FuzzedDataProvider, depth: int) -> Any:
    """What JSON has a form of its own for."""
    kind = data.ConsumeIntInRange(0, 5) if depth else 0
    if kind == 4:
        return [_plain(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 4))]
    if kind == 5:
        return {
            data.ConsumeUnicodeNoSurrogates(8): _plain(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 4))
        }
    return _plain_leaf(data)


def _moment(data: atheris.FuzzedDataProvider) -> dt.datetime:
    offset = dt.timezone(dt.timedelta(seconds=data.ConsumeIntInRange(-86_399, 86_399)))
    moment = dt.datetime(1, 1, 1) + dt.timedelta(seconds=data.ConsumeIntInRange(0, 315_537_897_599))
    return moment.replace(tzinfo=offset) if data.ConsumeBool() else moment


_LEAVES: list[Callable[[atheris.FuzzedDataProvider], Any]] = [
    _plain_leaf,
    _text,
    lambda data: data.ConsumeFloat(),  # with NaN and infinities
    lambda data: data.ConsumeBytes(20),
    lambda data: bytearray(data.ConsumeBytes(20)),
    lambda data: memoryview(data.ConsumeBytes(20))[:: data.ConsumeIntInRange(1, 2)],
    _moment,
    lambda data: _moment(data).date(),
    lambda data: _moment(data).timetz(),
    lambda data: dt.timedelta(seconds=data.ConsumeIntInRange(-(10**13), 10**13)),
    lambda data: decimal.Decimal(data.ConsumeFloat()),
    lambda data: uuid.UUID(int=data.ConsumeIntInRange(0, 2**63)),
    lambda data: data.PickValueInList(list(_Color)),
    lambda data: 10 ** data.ConsumeIntInRange(0, 6000),
    lambda data: _Number(data.ConsumeFloat()),
    lambda data: _Broken(),
    lambda data: _BrokenModel(),
    lambda data: object(),
    lambda data: _Text,
    lambda data: ValueError(_text(data)),
    lambda data: complex(data.ConsumeFloat(), data.ConsumeFloat()),
    lambda data: range(data.ConsumeIntInRange(0, 9)),
]


def _key(data: atheris.FuzzedDataProvider) -> Any:
    key = data.PickValueInList(_LEAVES)(data) if data.ConsumeBool() else _text(data)
    try:
        hash(key)
    except (TypeError, ValueError):
        return _text(data)
    return key


def _anything(data: atheris.FuzzedDataProvider, depth: int, above: tuple[Any, ...] = ()) -> Any:
    kind = data.ConsumeIntInRange(0, 13) if depth else 0
    if kind in (5, 6):
        items: list[Any] = []
        items += [_anything(data, depth - 1, (*above, items)) for _ in range(data.ConsumeIntInRange(0, 4))]
        return items if kind == 5 else tuple(items)
    if kind in (7, 8):
        pairs: dict[Any, Any] = {}
        for _ in range(data.ConsumeIntInRange(0, 4)):
            pairs[_key(data)] = _anything(data, depth - 1, (*above, pairs))
        return pairs
    if kind == 9:
        return frozenset(_key(data) for _ in range(data.ConsumeIntInRange(0, 4)))
    if kind == 10:
        return _Pair(_anything(data, depth - 1, above), _anything(data, depth - 1, above))
    if kind == 11:
        return _Text(_text(data), _anything(data, depth - 1, above))
    if kind == 12:
        return _Model(_text(data), _anything(data, depth - 1, above))
    if kind == 13 and above:  # a cycle
        return data.PickValueInList(list(above))
    return data.PickValueInList(_LEAVES)(data)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def encode_values(data: atheris.FuzzedDataProvider) -> None:
    """Answers of handlers."""
    if data.ConsumeBool():
        plain = _plain(data, 6)
        assert repr(json.loads(serialization.encode(plain))) == repr(plain), plain
        return
    value = _anything(data, 6)
    for encoded in (serialization.encode(value), serialization.encode_document(value)):
        json.loads(encoded.decode(), parse_constant=_no_constant, parse_int=str)
    assert not set(encoded) & set(b"\r\n"), encoded


# -- The runs

_BODIES = [
    b'{"prompt": "a", "stream": true, "inner": {"text": "b", "numbers": [1, -2.5e3], "when": "2026-01-02T03:04:05Z"}}',
    b'{"prompt": "\\ud83d\\ude00 \\ud83d", "by_name": {"a": {"numbers": [12345678901234567890123]}}}',
    b'[NaN, -Infinity, 1e400, null, "\xc3\xa4", "\xff"]',
    '\ufeff{"prompt": "\u00e4"}'.encode(),
    *('{"prompt": "\u00e4"}'.encode(encoding) for encoding in ("utf-16", "utf-16-be", "utf-32-le")),
]
"""What mutations of the bodies start from: few chance bytes are JSON."""

TARGETS = {"headers": read_headers, "bodies": decode_bodies, "serializer": encode_values}


def _run_target(name: str, arguments: list[str]) -> None:
    """Run one target in this process, and end it."""
    logging.disable()
    target = TARGETS[name]

    def try_input(data: bytes) -> None:
        target(atheris.FuzzedDataProvider(data))

    atheris.Setup([sys.argv[0], *arguments], try_input)
    atheris.Fuzz()


def _run(name: str, target: Callable[..., None], runs: int, seed: int) -> bool:
    """Run one target in a process of its own, and print a row of figures. Returns whether it held."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "tests.fuzz.coverage", "--target", name, f"-runs={runs}", f"-seed={seed}"]
        command += [f"-max_len={INPUT_BYTES}", f"-timeout={INPUT_SECONDS}", "-print_final_stats=1"]
        command += [f"-artifact_prefix={directory}/failed-"]
        if target is decode_bodies:
            corpus = Path(directory, "corpus")
            corpus.mkdir()
            for number, body in enumerate(_BODIES):
                (corpus / str(number)).write_bytes(body)
            command.append(str(corpus))
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    done = re.search(r"stat::number_of_executed_units:\s*(\d+)", ended.stdout)
    features = re.findall(r"\bcov: (\d+)", ended.stdout)
    held = ended.returncode == 0 and done is not None and int(done[1]) >= runs
    if not held:
        print(ended.stdout)
    print(
        f"atheris {name}: {done[1] if done else 'unknown'} inputs in {time.monotonic() - began:.0f} s, "
        f"coverage {features[-1] if features else 0}, {'held' if held else 'FAILED'}",
        flush=True,
    )
    return held


def main() -> int:
    """Run each target, and print its figures.

    Returns:
        0 where each ran as often as asked for, and every promise held.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, help="run this one here; what else is given goes to libFuzzer")
    parser.add_argument("--runs", type=int, default=200_000, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    options, rest = parser.parse_known_args()
    if options.target:
        _run_target(options.target, rest)
    return 0 if all([_run(name, target, options.runs, options.seed) for name, target in TARGETS.items()]) else 1


if __name__ == "__main__":
    sys.exit(main())
