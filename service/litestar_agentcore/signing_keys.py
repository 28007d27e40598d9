"""The keys with which an issuer signs its tokens: found by OpenID Connect Discovery, cached, and rotated.

OpenID Connect Discovery 1.0, sections 3 and 4; JSON Web Key, RFC 7517.
"""

import asyncio
import base64
import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
from concurrent.futures import Future
from ipaddress import ip_address
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK

logger = logging.getLogger(__name__)

WELL_KNOWN = "/.well-known/openid-configuration"

REFRESH_SECONDS = 600.0
"""How old keys may be before they are fetched again. Those that are there go on working meanwhile."""

RETRY_SECONDS = 5.0
"""The shortest time between two fetches, for whichever keys."""

FETCH_SECONDS = 10.0
"""How long a fetch, both documents together, may take."""

MAX_DOCUMENT_BYTES = 1024 * 1024

MAX_KEYS = 100

MIN_RSA_BITS = 2048
"""RFC 7518, section 3.3."""

_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS = {
    ("RSA", None): _RSA_ALGORITHMS,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("EC", "secp256k1"): ("ES256K",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
"""The algorithms of each type of key and curve: asymmetric ones alone (RFC 7518, RFC 8037)."""

ASYMMETRIC = tuple(sorted({algorithm for algorithms in _ALGORITHMS.values() for algorithm in algorithms}))
"""Every algorithm that a token may be signed with."""


class KeysUnavailableError(Exception):
    """There is no key to verify tokens with: the issuer has not been reached yet."""


class DiscoveryError(Exception):
    """An issuer's documents cannot be had, or not be used. The message says why."""


class SigningKey(msgspec.Struct, frozen=True):
    """A public key, and what it verifies."""

    key: Any
    algorithms: tuple[str, ...]


class IssuerKeys(msgspec.Struct, frozen=True):
    """What an issuer's documents say."""

    issuer: str
    keys: dict[str, SigningKey]
    """By key id."""
    document: bytes
    """The keys as they came."""

    def key(self, key_id: str | None) -> SigningKey | None:
        """The key of a token; of one without a key id the only key (OpenID Connect Core 1.0, section 10.1)."""
        if key_id is not None:
            return self.keys.get(key_id)
        return next(iter(self.keys.values())) if len(self.keys) == 1 else None


class SigningKeys:
    """The keys of one issuer, fetched in a thread, at most every :data:`RETRY_SECONDS`.

    Args:
        discovery_url: The issuer's OpenID configuration.

    Raises:
        DiscoveryError: The URL makes no sense.
    """

    def __init__(self, discovery_url: str) -> None:
        checked_url(discovery_url)
        if not discovery_url.endswith(WELL_KNOWN):
            raise DiscoveryError(f"it must end with {WELL_KNOWN}")
        self._discovery_url = discovery_url
        self._lock = threading.Lock()
        self._fetch: Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._fetched = float("-inf")
        self._failing = False
        self.current: IssuerKeys | None = None
        """The keys as they were last fetched."""

    def refresh(self) -> Future[None] | None:
        """Fetch the keys in a thread, unless that was done just now.

        Returns:
            What is done once they are fetched, be it by an earlier call; it never fails. ``None`` where it is too
            early.
        """
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()  # a forked child has no such thread
            if running and self._fetch is not None and not self._fetch.done():
                return self._fetch
            if monotonic() - self._fetched < RETRY_SECONDS:
                return None
            fetch: Future[None] = Future()
            self._fetch = fetch
            fetch.set_running_or_notify_cancel()  # so that who no longer waits does not cancel it
            self._thread = threading.Thread(target=self._run, args=(fetch,), name="agentcore-signing-keys", daemon=True)
            self._thread.start()
            return fetch

    async def find(self, key_id: str | None) -> tuple[IssuerKeys, SigningKey | None]:
        """Find a key. An unknown one is looked for at the issuer, unless that was done just now.

        Args:
            key_id: The ``kid`` of a token, or ``None`` where it has none, which causes no new fetch.

        Returns:
            The issuer's keys, and the one that was asked for, where there is one.

        Raises:
            KeysUnavailableError: The issuer has not been reached yet.
        """
        current = self.current
        if current is not None and ((key := current.key(key_id)) is not None or key_id is None):
            self.refresh_if_old()
            return current, key
        if (fetch := self.refresh()) is not None:
            try:
                await asyncio.wait_for(asyncio.wrap_future(fetch), FETCH_SECONDS + 1)
            except TimeoutError:
                logger.warning("The issuer's keys are not there after %g s", FETCH_SECONDS + 1)
        if (current := self.current) is None:
            raise KeysUnavailableError
        return current, current.key(key_id)

    def refresh_if_old(self) -> None:
        """Fetch the keys, without waiting, where they are older than :data:`REFRESH_SECONDS`."""
        if monotonic() - self._fetched >= REFRESH_SECONDS:
            self.refresh()

    def _run(self, fetch: "Future[None]") -> None:
        try:
            self._take(fetch_keys(self._discovery_url))
        except Exception as error:
            if not self._failing:
                stay = "; those that are there go on working" if self.current is not None else ""
                reason = error if isinstance(error, DiscoveryError) else type(error).__name__
                logger.error(  # noqa: TRY400 - the reason is all that there is to say
                    "The keys of %s cannot be fetched: %s%s", self._discovery_url, reason, stay
                )
            self._failing = True
        finally:
            self._fetched = monotonic()
            fetch.set_result(None)

    def _take(self, fetched: IssuerKeys) -> None:
        before = self.current
        if before is None or (before.issuer, before.document) != (fetched.issuer, fetched.document):
            self.current = fetched
        if before is not self.current or self._failing:
            logger.info("The issuer %s has %d keys that verify tokens", fetched.issuer, len(fetched.keys))
        self._failing = False


def checked_url(url: str) -> SplitResult:
    """Take a URL apart that is safe to fetch keys from.

    Args:
        url: The URL.

    Raises:
        DiscoveryError: It is not https (but for loopback addresses), or has a user, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - which is checked by being read
    except ValueError as error:
        raise DiscoveryError(f"{error}") from None
    host = parts.hostname
    if not host or parts.scheme not in {"http", "https"} or not url.isascii() or not url.isprintable() or " " in url:
        raise DiscoveryError("it must be an https:// URL")
    if parts.scheme == "http" and not _is_loopback(host):
        raise DiscoveryError("it must be https, unless the host is a loopback address")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise DiscoveryError("it must have no user, query or fragment")
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def fetch_keys(discovery_url: str) -> IssuerKeys:
    """Fetch what an issuer says of itself, and its keys. Blocks for about :data:`FETCH_SECONDS` at most.

    Args:
        discovery_url: The issuer's OpenID configuration.

    Raises:
        DiscoveryError: The documents cannot be had, or make no sense.
    """
    deadline = monotonic() + FETCH_SECONDS
    configuration = _parsed(get_document(discovery_url, deadline))
    issuer, jwks_uri = configuration.get("issuer"), configuration.get("jwks_uri")
    if not isinstance(issuer, str) or issuer.removesuffix("/") + WELL_KNOWN != discovery_url:
        # Section 4.3: or one document on a host could name any other issuer on it.
        raise DiscoveryError("its issuer is not the URL that the configuration is at")
    if not isinstance(jwks_uri, str):
        raise DiscoveryError("it has no jwks_uri")
    try:
        checked_url(jwks_uri)
    except DiscoveryError as error:
        raise DiscoveryError(f"its jwks_uri makes no sense: {error}") from None
    document = get_document(jwks_uri, deadline)
    listed = _parsed(document).get("keys")
    if not isinstance(listed, list):
        raise DiscoveryError("its keys are no JSON Web Key Set")
    keys: dict[str, SigningKey] = {}
    for entry in listed[:MAX_KEYS]:
        if (usable := _signing_key(entry)) is not None:
            keys.setdefault(entry["kid"], usable)
    if not keys:
        raise DiscoveryError("none of its keys verifies tokens: asymmetric, for signatures, with a kid")
    return IssuerKeys(issuer, keys, document)


def _parsed(document: bytes) -> dict[str, Any]:
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        raise DiscoveryError("what it answers is not JSON") from None
    if not isinstance(value, dict):
        raise DiscoveryError("what it answers is no JSON object")
    return value


def _signing_key(entry: Any) -> SigningKey | None:
    """A key that verifies tokens, or ``None`` for any other."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or entry.get("use", "sig") != "sig":
        return None
    kind: Any = entry.get("kty")
    try:
        if "d" in entry or "verify" not in entry.get("key_ops", ["verify"]):
            return None
        algorithms = _ALGORITHMS.get((kind, None if kind == "RSA" else entry.get("crv")), ())
        if (named := entry.get("alg")) is not None:
            algorithms = (named,) if named in algorithms else ()
        if not algorithms:
            return None
        key = PyJWK(entry, algorithms[0]).key
    except Exception:  # whatever is wrong with it, the others may do
        logger.warning("A key of the issuer cannot be read, and is left out")
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        logger.warning("An RSA key of the issuer has less than %d bits, and is left out", MIN_RSA_BITS)
        return None
    return SigningKey(key, algorithms)


def get_document(url: str, deadline: float) -> bytes:
    """Get a document. Redirects are not followed.

    Args:
        url: Where it is.
        deadline: When to give up, on the monotonic clock.

    Raises:
        DiscoveryError: It cannot be had in time, or is larger than :data:`MAX_DOCUMENT_BYTES`.
    """
    parts = checked_url(url)
    too_late = threading.Event()
    sock: socket.socket | None = None
    connection = _connection(parts, max(deadline - monotonic(), 0.001))

    def give_up() -> None:  # each step has a time limit of its own, which an answer in drops never reaches
        too_late.set()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - monotonic(), 0), give_up)
    timer.start()
    try:
        connection.connect()
        sock = connection.sock  # which the connection lets go of before the response is read
        connection.request("GET", parts.path or "/", headers={"Accept": "application/json", "Connection": "close"})
        with connection.getresponse() as response:
            if response.status != 200:
                raise DiscoveryError(f"{url} is answered with status {response.status}")
            body = response.read(MAX_DOCUMENT_BYTES + 1)
            if response.length and len(body) <= MAX_DOCUMENT_BYTES:
                raise http.client.IncompleteRead(b"")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if too_late.is_set() or isinstance(error, TimeoutError):
            raise DiscoveryError(f"{url} is not answered within {FETCH_SECONDS:g} s") from None
        raise DiscoveryError(
            f"{url} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
        ) from None
    finally:
        timer.cancel()
        timer.join()
        connection.close()
    if too_late.is_set():
        raise DiscoveryError(f"{url} is not answered within {FETCH_SECONDS:g} s")
    if len(body) > MAX_DOCUMENT_BYTES:
        raise DiscoveryError(f"{url} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return body


def _connection(parts: SplitResult, timeout: float) -> http.client.HTTPConnection:
    """A connection to a host, by way of the environment's proxy where there is one."""
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout)
    context = ssl.create_default_context()
    proxy = None if proxy_bypass(host) else getproxies().get("https")
    if not proxy:
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = http.client.HTTPSConnection(by.hostname or "", by.port or 80, timeout=timeout, context=context)
    headers = {}
    if by.username is not None:
        credentials = f"{unquote(by.username)}:{unquote(by.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
    connection.set_tunnel(host, port or 443, headers)
    return connection
