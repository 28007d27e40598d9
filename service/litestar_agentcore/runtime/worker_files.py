"""Where the worker processes of one server meet: a directory with a file of each, which no other user can reach.

A worker holds a lock (``flock``) on its file for as long as it lives, however it ends, so that the others can tell the
living from the dead without process numbers. This needs no server, no thread and no setting.
"""

import contextlib
import json
import mmap
import os
import secrets
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agentcore_telemetry.instruments import Snapshot, merge, truncated
from agentcore_telemetry.mapped_series import (
    REGION_BYTES,
    MappedSeries,
    dump_snapshot,
    load_snapshot,
    read_series,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAGIC = b"agentco1"
_HEAD = struct.Struct("<8sQQQ")
"""What kind of file it is, whether the worker is busy, how many tasks it has, and how many places were ever used."""
_BUSY, _COUNT, _PLACES = 8, 16, 24
_TASKS_AT = 64
_TASK = struct.Struct("<dH118s")
TASK_NAME_BYTES = 118
"""How much of a task's name the other workers see, in bytes of UTF-8."""
TASK_PLACES = 1024
"""How many tasks of each worker the others can list; they count all."""
_SERIES_AT = _TASKS_AT + _TASK.size * TASK_PLACES
FILE_BYTES = _SERIES_AT + REGION_BYTES
_WORD = struct.Struct("<Q")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the mode and the owner of what is there are checked  # nosec B108
"""Where files are never written to a disk."""

JOIN_SECONDS = 2.0
"""How long to wait for the directory when a worker begins or ends."""
LOOK_SECONDS = 0.0005


class SharingError(Exception):
    """The workers cannot tell each other anything. The message says what is missing."""


class Job(NamedTuple):
    """An active task of some worker."""

    name: str
    began: float
    """On the monotonic clock, in seconds, which is common to the processes of a machine."""


class WorkerState(NamedTuple):
    """What another worker says of itself."""

    busy: bool
    task_count: int
    """How many tasks are active."""
    jobs: list[Job]


class WorkerFile:
    """The file of this process.

    Args:
        path: Where it is to be. It appears there once it is whole and locked.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        new = path.with_name(f"new-{path.name}")
        self.descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # All of it is allocated now: to write to a hole of a full file system would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, 0, FILE_BYTES)
            else:
                os.write(self.descriptor, bytes(FILE_BYTES))
            # Opened anew, for a mapping keeps a duplicate, with which a forked child would keep the lock as well.
            mapped = os.open(new, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._view = memoryview(mmap.mmap(mapped, FILE_BYTES))
            finally:
                os.close(mapped)
            self._view[: len(MAGIC)] = MAGIC
            new.rename(path)
        except OSError:
            os.close(self.descriptor)
            new.unlink(missing_ok=True)
            raise
        self.series = MappedSeries(self._view[_SERIES_AT:])
        self._free = list(range(TASK_PLACES - 1, -1, -1))
        self._places: dict[int, int] = {}
        self._count = 0

    def close(self) -> None:
        """Give up the lock: to the others this worker has ended. The mapping goes with the last who uses it."""
        os.close(self.descriptor)

    @property
    def busy(self) -> bool:
        """Whether this worker is busy."""
        return bool(self._view[_BUSY])

    @busy.setter
    def busy(self, busy: bool) -> None:
        _WORD.pack_into(self._view, _BUSY, busy)

    def add_task(self, task_id: int, name: str, began: float) -> None:
        """List a task. One call at a time.

        Args:
            task_id: Which one.
            name: What it is called.
            began: When it began, on the monotonic clock, in seconds.
        """
        self._count += 1
        _WORD.pack_into(self._view, _COUNT, self._count)
        if not self._free:
            return
        place = self._places[task_id] = self._free.pop()
        encoded = truncated(name, TASK_NAME_BYTES)
        _TASK.pack_into(self._view, _TASKS_AT + place * _TASK.size, began, len(encoded), encoded)
        if place >= _WORD.unpack_from(self._view, _PLACES)[0]:
            _WORD.pack_into(self._view, _PLACES, place + 1)

    def remove_task(self, task_id: int) -> None:
        """Take a task from the list. One call at a time.

        Args:
            task_id: Which one.
        """
        self._count -= 1
        _WORD.pack_into(self._view, _COUNT, self._count)
        if (place := self._places.pop(task_id, None)) is not None:
            self._view[_TASKS_AT + place * _TASK.size : _TASKS_AT + (place + 1) * _TASK.size] = bytes(_TASK.size)
            self._free.append(place)


def _read_state(descriptor: int) -> WorkerState | None:
    head = os.pread(descriptor, _HEAD.size, 0)
    if len(head) < _HEAD.size:
        return None
    magic, busy, count, places = _HEAD.unpack(head)
    if magic != MAGIC:
        return None
    data = os.pread(descriptor, min(places, TASK_PLACES) * _TASK.size, _TASKS_AT) if count else b""
    whole = len(data) // _TASK.size * _TASK.size
    jobs = [
        Job(name[:length].decode(errors="replace"), began)
        for began, length, name in _TASK.iter_unpack(data[:whole])
        if began
    ]
    return WorkerState(bool(busy), count, jobs)


def _read_snapshot(descriptor: int) -> Snapshot:
    head = os.pread(descriptor, len(MAGIC), 0)
    return read_series(os.pread(descriptor, REGION_BYTES, _SERIES_AT)) if head == MAGIC else {}


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open a file of another worker; ``None`` where it is not one of ours (any more)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        status = os.fstat(descriptor)
        yield descriptor if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() else None
    finally:
        os.close(descriptor)


class Retired(NamedTuple):
    """What the workers that have ended had counted."""

    series: Snapshot
    folded: frozenset[str]
    """The names of files that are in it, and may not have been removed yet."""


_NOTHING = Retired({}, frozenset())


class WorkerDirectory:
    """The directory of one server, as one of its workers sees it.

    Args:
        base: The directory of all servers of this user; see :func:`find_base`.
        server: What tells this server from all others, a valid name of a file; the same in each of its workers.
    """

    def __init__(self, base: Path, server: str) -> None:
        self.base = base
        self.path = base / server
        self._name = f"worker-{os.getpid()}-{secrets.token_hex(8)}"
        self._retired_path = self.path / "retired"
        self._retired: tuple[object, Retired] = (None, _NOTHING)

    def join(self) -> WorkerFile:
        """Make the file of this process.

        Raises:
            SharingError: It cannot be made.
        """
        deadline = time.monotonic() + JOIN_SECONDS
        while True:
            try:
                self.base.mkdir(0o700, exist_ok=True)
                self.path.mkdir(0o700, exist_ok=True)
                with self.locked(JOIN_SECONDS) as locked:
                    if locked:
                        return WorkerFile(self.path / self._name)
            except FileNotFoundError:
                pass  # the last of an earlier server has removed it meanwhile
            except OSError as error:
                raise SharingError(f"{self.path}: {error.strerror or error}") from error
            if time.monotonic() > deadline:
                raise SharingError(f"{self.path} has been locked for {JOIN_SECONDS:g} s")

    def leave(self, file: WorkerFile, *, last: bool) -> None:
        """End as a worker: what was counted stays with the others.

        Args:
            file: The file of this process.
            last: Whether the server ends, so that the last worker has to remove everything.
        """
        file.close()
        with contextlib.suppress(OSError), self.locked(JOIN_SECONDS) as locked:
            if not locked:
                return
            if last and not any(self._living()):
                _remove(self.path)
            else:
                self._fold()
        with contextlib.suppress(OSError):
            self.base.rmdir()

    @contextmanager
    def locked(self, seconds: float) -> Iterator[bool]:
        """Hold the directory's lock.

        Args:
            seconds: How long to wait for it at most.

        Yields:
            Whether it is held; not after that time, nor if the directory was removed meanwhile.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        yield False
                        return
                    time.sleep(LOOK_SECONDS)
                else:
                    break
            yield os.fstat(descriptor).st_nlink > 0
        finally:
            os.close(descriptor)

    def siblings(self) -> list[WorkerState]:
        """What the other living workers say of themselves. Blocks on none of them."""
        states = []
        for path in self._living():
            with _opened(path) as descriptor:
                if descriptor is not None and (state := _read_state(descriptor)) is not None:
                    states.append(state)
        return states

    def snapshot(self) -> Snapshot:
        """What all other workers have counted, the ended ones included."""
        while True:
            before = self.retired()
            snapshot: Snapshot = {}
            merge(snapshot, before.series, alive=False)
            for path in self._files():
                if path.name in before.folded:
                    continue
                with _opened(path) as descriptor:
                    if descriptor is not None:
                        alive = _is_locked(descriptor)
                        merge(snapshot, _read_snapshot(descriptor), alive=alive)
            if self.retired() is before:  # or one has been counted twice, or not at all
                return snapshot

    def retired(self) -> Retired:
        """What the workers that have ended had counted, as far as their files were folded into one."""
        with _opened(self._retired_path) as descriptor:
            if descriptor is None:
                identity: object = None
            else:
                status = os.fstat(descriptor)
                identity = status.st_ino, status.st_mtime_ns, status.st_size
            if identity != self._retired[0]:
                retired = _NOTHING
                if descriptor is not None:
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        content = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
                        retired = Retired(load_snapshot(content["series"]), frozenset(content["folded"]))
                self._retired = identity, retired
            return self._retired[1]

    def open_status(self) -> int:
        """Open the file with the status that all workers have in common; made here by the first.

        Raises:
            OSError: It cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path / "status", flags, 0o600)

    def exists(self, file: WorkerFile) -> bool:
        """Whether the others can still see the file of this process: shared memory may have been cleaned up."""
        return file.path.exists()

    def fold(self) -> None:
        """Add what dead workers have counted to one file, unless another worker is about it, and remove theirs."""
        with contextlib.suppress(OSError):
            if any(map(_is_dead, self._files())):
                with self.locked(0) as locked:
                    if locked:
                        self._fold()

    def _fold(self) -> None:
        retired = self.retired()
        series: Snapshot = {}
        merge(series, retired.series, alive=False)
        dead = [path for path in self._files() if _is_dead(path)]
        for path in dead:
            if path.name not in retired.folded:
                with _opened(path) as descriptor:
                    if descriptor is not None:
                        merge(series, _read_snapshot(descriptor), alive=False)
        # Should this process be killed half-way: the new file names what is in it, and appears at once or not at all.
        new = self.path / f"new-retired-{self._name}"
        new.write_text(json.dumps({"series": dump_snapshot(series), "folded": [path.name for path in dead]}))
        new.rename(self._retired_path)
        for path in dead:
            path.unlink(missing_ok=True)
        for path in self.path.glob("new-*"):  # its maker held the lock, and was killed
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The files of the other workers."""
        try:
            names = [path.name for path in self.path.iterdir()]
        except OSError:
            return []
        return [self.path / name for name in sorted(names) if name.startswith("worker-") and name != self._name]

    def _living(self) -> Iterator[Path]:
        for path in self._files():
            with _opened(path) as descriptor:
                alive = descriptor is not None and _is_locked(descriptor)
            if alive:
                yield path


def _is_dead(path: Path) -> bool:
    with _opened(path) as descriptor:
        return descriptor is not None and not _is_locked(descriptor)


def _remove(directory: Path) -> None:
    """Remove the directory of a server and what the workers have put there; foreign things stay."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.name.startswith(("worker-", "new-")) or path.name in ("retired", "status"):
                path.unlink()
        directory.rmdir()


def sweep(base: Path, server: str) -> None:
    """Remove what servers that were killed have left behind.

    Args:
        base: The directory of all servers of this user.
        server: The one to leave alone.
    """
    with contextlib.suppress(OSError):
        for path in base.iterdir():
            if path.name == server or path.is_symlink() or not path.is_dir() or _parent_lives(path.name):
                continue
            other = WorkerDirectory(base, path.name)
            with contextlib.suppress(OSError), other.locked(0) as locked:
                if locked and not any(other._living()):  # noqa: SLF001 - of the same class
                    _remove(path)


def find_base() -> Path:
    """Find the directory of all servers of this user: in shared memory, else among the temporary files.

    Raises:
        SharingError: No place can be used.
    """
    if fcntl is None:
        raise SharingError("this platform has no fcntl.flock")
    problems = []
    for parent in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        base = parent / f"litestar-agentcore-{os.geteuid()}"
        try:
            base.mkdir(0o700, exist_ok=True)
            status = base.lstat()
        except OSError as error:
            problems.append(f"{base}: {error.strerror}")
            continue
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            problems.append(f"{base} is not a directory of this user alone")
        elif not os.access(base, os.W_OK | os.X_OK):
            problems.append(f"{base} cannot be written to")
        else:
            return base
    raise SharingError("; ".join(problems))


def server_name(sockets: list[int], agent: int) -> str:
    """What tells a server from all others, to each of its workers.

    Args:
        sockets: The inodes of the sockets that it listens on.
        agent: Which of the agents in the process.
    """
    parent = os.getppid()
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    inodes = "-".join(map(str, sockets[:4]))
    return f"{parent}.{_start_of(parent)}.{boot}.{inodes}.{agent}"


def _start_of(process: int) -> str:
    """When a process began, in the kernel's own ticks; empty where that cannot be told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _parent_lives(server: str) -> bool:
    process, _, rest = server.partition(".")
    if not process.isdigit():
        return True  # not one of ours, so that it stays
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return _start_of(int(process)) == rest.partition(".")[0]
