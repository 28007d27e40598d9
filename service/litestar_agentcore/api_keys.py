"""Static API keys of callers, from a mounted file that is read anew when it changes."""

import hmac
import logging
import os
import re
import secrets
import stat
from hashlib import blake2b
from time import monotonic

from litestar_agentcore.protocol.settings import SettingsError

logger = logging.getLogger(__name__)

VARIABLE = "AGENTCORE_API_KEYS_FILE"

LOOK_SECONDS = 1.0
"""How often the file is looked at, at most."""

MAX_FILE_BYTES = 1024 * 1024

_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64}):(.*)")
_KEY = re.compile(r"[\x21-\x7e]{1,1024}")
"""What fits a header's value, without spaces."""

_INDEX_BYTES = 8

FileState = tuple[int, ...]
"""What tells a file from another, and from itself before a change."""


class ApiKeysError(ValueError):
    """A file of API keys cannot be used. The message says why and where, and quotes no key."""


class ApiKeys:
    """The keys in a file, one a line: ``key`` or ``name:key``. Empty lines and ``#`` comments do not count.

    Of a key only a digest is kept, made with a secret of this process: so neither looking a digest up nor comparing it
    tells anything about a key by the time that it takes.

    Args:
        path: The file.

    Raises:
        SettingsError: The file cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._no_digest = secrets.token_bytes(32)
        self._state: FileState | None = None
        self._complained = False
        self._looked = monotonic()
        try:
            self._load()
        except ApiKeysError as error:
            raise SettingsError(f"{VARIABLE}={path!r} cannot be used: {error}") from None

    def name_of(self, key: str) -> tuple[bool, str | None]:
        """Look a caller's key up, in constant time.

        Args:
            key: What the caller sent.

        Returns:
            Whether it is one of the keys, and its name, where that has one.
        """
        if (now := monotonic()) - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        digest = self._digest(key)
        expected, name = self._keys.get(digest[:_INDEX_BYTES], (self._no_digest, None))
        return hmac.compare_digest(expected, digest), name

    def _digest(self, key: str) -> bytes:
        return blake2b(key.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32).digest()

    def _look(self) -> None:
        """Read the file anew where it has changed. What cannot be used leaves the keys as they were."""
        try:
            state = _state_of(os.stat(self._path))  # noqa: PTH116 - once a second, on the way of a request
            if state == self._state:
                self._complained = False
                return
            self._state = state  # what cannot be used now is read again once it has changed
            self._load()
        except (OSError, ApiKeysError) as error:
            if not self._complained:
                reason = error.strerror if isinstance(error, OSError) else error
                logger.error(  # noqa: TRY400 - the reason is all that there is to say
                    "The API keys stay as they were, since %s cannot be used: %s", self._path, reason
                )
            self._complained = True
        else:
            logger.info("The API keys were read anew: %d keys", len(self._keys))
            self._complained = False

    def _load(self) -> None:
        try:
            with open(self._path, "rb", opener=_open_without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ApiKeysError("it is no regular file")
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ApiKeysError(error.strerror or type(error).__name__) from None
        if len(content) > MAX_FILE_BYTES:
            raise ApiKeysError(f"it is larger than {MAX_FILE_BYTES} bytes")
        keys = {}
        for key, name in _parse(content):
            digest = self._digest(key)
            keys[digest[:_INDEX_BYTES]] = (digest, name)
        self._keys = keys
        self._state = _state_of(status)


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file, where that is a named pipe too, without waiting for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _state_of(status: os.stat_result) -> FileState:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _parse(content: bytes) -> list[tuple[str, str | None]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ApiKeysError("it is not UTF-8") from None
    keys: dict[str, str | None] = {}
    for number, raw_line in enumerate(text.splitlines(), start=1):
        line = raw_line.strip()
        if not line or line.startswith("#"):
            continue
        named = _NAMED.fullmatch(line)
        name, key = (named[1], named[2].strip()) if named else (None, line)
        if not _KEY.fullmatch(key):
            raise ApiKeysError(f"line {number} is no key, which has 1 to 1024 visible ASCII characters and no space")
        if key in keys:
            raise ApiKeysError(f"line {number} has a key that an earlier line has")
        keys[key] = name
    if not keys:
        raise ApiKeysError("there is no key in it")
    return list(keys.items())
