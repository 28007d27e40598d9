"""Series in a mapped file: what one process counts there, others read, also once it was killed.

A region holds records that are only ever appended: a head, the series' key as JSON, its numbers (doubles), and its
exemplars with a checksum each. Numbers are written in place, eight aligned bytes at a time.
"""

import json
import struct
import zlib
from functools import lru_cache
from typing import Any

from agentcore_telemetry.instruments import LABEL_BYTES, Exemplar, SeriesKey, SeriesValue, Snapshot, truncated

_USED = struct.Struct("<Q")
_HEAD = struct.Struct("<IIII")
"""The lengths of the key and of its place, and how many numbers and exemplars there are."""
_EXEMPLAR = struct.Struct("<QQdd")
_CHECK = struct.Struct("<Q")
_EXEMPLAR_BYTES = _EXEMPLAR.size + _CHECK.size
_NO_EXEMPLAR = bytes(_EXEMPLAR_BYTES)

REGION_BYTES = 512 * 1024
"""Room for all series of a service, those of a hundred names of tasks included."""


class MappedSeries:
    """Finds room for series in a region of a mapped file, which begins with zeros.

    Args:
        region: The region; writable, and aligned to 8 bytes.
    """

    def __init__(self, region: memoryview) -> None:
        self._region = region
        self._used = _USED.size

    def allocate(self, key: SeriesKey, exemplars: int) -> "tuple[memoryview[float], MappedExemplars] | None":
        """Find room for a series; see :class:`agentcore_telemetry.instruments.SeriesStore`."""
        labels = [truncated(label, LABEL_BYTES).decode() for label in key.labels]
        text = json.dumps([key.metric, labels, key.aggregation]).encode()
        place = -(-len(text) // 8) * 8
        numbers = self._used + _HEAD.size + place
        first_exemplar = numbers + 8 * key.size
        end = first_exemplar + _EXEMPLAR_BYTES * exemplars
        if end > len(self._region):
            return None
        _HEAD.pack_into(self._region, self._used, len(text), place, key.size, exemplars)
        self._region[self._used + _HEAD.size : self._used + _HEAD.size + len(text)] = text
        self._used = end
        _USED.pack_into(self._region, 0, end)
        return self._region[numbers:first_exemplar].cast("d"), MappedExemplars(self._region[first_exemplar:end])


class MappedExemplars:
    """The exemplars of a histogram in a mapped file.

    Args:
        region: Where they are.
    """

    __slots__ = ("_region",)

    def __init__(self, region: memoryview) -> None:
        self._region = region

    def __len__(self) -> int:
        return len(self._region) // _EXEMPLAR_BYTES

    def __getitem__(self, index: int) -> Exemplar | None:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _read_exemplar(bytes(self._region[index * _EXEMPLAR_BYTES : (index + 1) * _EXEMPLAR_BYTES]))

    def __setitem__(self, index: int, exemplar: Exemplar) -> None:
        trace_id, seconds, at = exemplar
        data = _EXEMPLAR.pack(trace_id >> 64, trace_id & (1 << 64) - 1, seconds, at)
        start = index * _EXEMPLAR_BYTES
        # With a checksum, since a reader may see half of it, with a trace id that never was.
        self._region[start : start + _EXEMPLAR_BYTES] = data + _CHECK.pack(zlib.crc32(data))


def _read_exemplar(data: bytes) -> Exemplar | None:
    if data == _NO_EXEMPLAR:
        return None
    body = data[: _EXEMPLAR.size]
    high, low, seconds, at = _EXEMPLAR.unpack(body)
    if not at or _CHECK.unpack_from(data, _EXEMPLAR.size)[0] != zlib.crc32(body):
        return None
    return high << 64 | low, seconds, at


def read_series(region: bytes) -> Snapshot:
    """Read what another process has counted.

    Args:
        region: A copy of its region; whatever else it may be, what makes sense up to there is read.
    """
    snapshot: Snapshot = {}
    end = min(_USED.unpack_from(region)[0], len(region)) if len(region) >= _USED.size else 0
    offset = _USED.size
    while offset + _HEAD.size <= end:
        length, place, size, exemplars = _HEAD.unpack_from(region, offset)
        numbers = offset + _HEAD.size + place
        first_exemplar = numbers + 8 * size
        following = first_exemplar + _EXEMPLAR_BYTES * exemplars
        if length > place or exemplars not in (0, size - 1) or following > end:
            break
        key = _read_key(region[offset + _HEAD.size : offset + _HEAD.size + length], size)
        if key is None:
            break
        value = SeriesValue(
            list(struct.unpack_from(f"<{size}d", region, numbers)),
            [
                _read_exemplar(region[at : at + _EXEMPLAR_BYTES])
                for at in range(first_exemplar, following, _EXEMPLAR_BYTES)
            ],
        )
        snapshot[key] = value
        offset = following
    return snapshot


@lru_cache(maxsize=4096)
def _read_key(text: bytes, size: int) -> SeriesKey | None:
    try:
        metric, labels, aggregation = json.loads(text)
        if aggregation in ("total", "sum", "max", "own"):
            return SeriesKey(str(metric), tuple(map(str, labels)), aggregation, size)
    except (ValueError, TypeError):
        pass
    return None


def dump_snapshot(snapshot: Snapshot) -> list[Any]:
    """A snapshot as plain JSON values."""
    return [[*key, *value] for key, value in snapshot.items()]


def load_snapshot(rows: list[Any]) -> Snapshot:
    """What :func:`dump_snapshot` was given.

    Args:
        rows: What it returned.

    Raises:
        ValueError: It is something else.
        TypeError: Likewise.
    """
    snapshot: Snapshot = {}
    for metric, labels, aggregation, size, numbers, exemplars in rows:
        value = SeriesValue([float(number) for number in numbers], [e and (e[0], e[1], e[2]) for e in exemplars])
        if len(value.numbers) != size or len(value.exemplars) not in (0, size - 1):
            raise ValueError(f"the series {metric} is not whole")
        snapshot[SeriesKey(metric, tuple(labels), aggregation, size)] = value
    return snapshot
