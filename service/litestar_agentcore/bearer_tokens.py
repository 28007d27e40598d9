"""Bearer tokens: JSON Web Tokens of an OpenID Connect issuer, with the rules of AgentCore's custom JWT authorizer.

RFC 7519 (JWT), RFC 8725 (its best current practices), RFC 9068 (access tokens). The cryptography is PyJWT's.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from time import time
from typing import Any

import jwt
import msgspec
from agentcore_telemetry.metrics import AuthFailure
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidIssuerError,
    InvalidSignatureError,
    InvalidTokenError,
    MissingRequiredClaimError,
)
from jwt.utils import base64url_decode

from litestar_agentcore.signing_keys import ASYMMETRIC, IssuerKeys, KeysUnavailableError, SigningKeys

Claims = dict[str, Any]

LEEWAY_SECONDS = 30
"""How far the issuer's clock and ours may be apart."""

MAX_TOKEN_CHARACTERS = 16 * 1024

MAX_CACHED_TOKENS = 1000

_TYPES = frozenset({"jwt", "at+jwt"})
"""Media types of tokens that give access: others (a logout token, say) are signed with the same keys for other ends."""

_CLIENT_CLAIMS = ("client_id", "azp", "appid", "cid")
"""RFC 9068, and what issuers call it that have no ``client_id``: OpenID Connect, Entra ID, Okta."""

_REASONS: tuple[tuple[type[InvalidTokenError], AuthFailure], ...] = (
    (ExpiredSignatureError, "expired"),
    (ImmatureSignatureError, "not_yet_valid"),
    (InvalidIssuerError, "issuer"),
    (MissingRequiredClaimError, "claims"),
    (InvalidSignatureError, "signature"),
)


class TokenRejectedError(Exception):
    """A token does not let its bearer in.

    Args:
        reason: Why.
    """

    def __init__(self, reason: AuthFailure) -> None:
        super().__init__(reason)
        self.reason = reason


class _Verified(msgspec.Struct, frozen=True):
    keys: IssuerKeys
    """The keys at the time: once these have changed, the token is verified anew."""
    expires: float
    payload: bytes


class BearerTokens:
    """Verifies tokens. Those that have passed are remembered until they expire, at most :data:`MAX_CACHED_TOKENS`.

    Args:
        keys: The issuer's keys.
        audience: One of these must be in ``aud``, where there are any.
        clients: Likewise the client that the token was issued to.
        scopes: Likewise one of its scopes.
    """

    def __init__(
        self, keys: SigningKeys, audience: Sequence[str], clients: Sequence[str], scopes: Sequence[str]
    ) -> None:
        self.keys = keys
        self._audience = frozenset(audience)
        self._clients = frozenset(clients)
        self._scopes = frozenset(scopes)
        self._verified: dict[bytes, _Verified] = {}

    async def claims_of(self, token: str) -> Claims:
        """Verify a token.

        Args:
            token: A JSON Web Token in its compact form.

        Returns:
            Its claims, a copy of the caller's own.

        Raises:
            TokenRejectedError: It is not valid, or not for this service, or there is no key to tell.
        """
        digest = sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is not None:
            if known.keys is self.keys.current and time() < known.expires:
                self.keys.refresh_if_old()
                return _json_object(known.payload)
            self._verified.pop(digest, None)
        keys, claims, payload = await self._verify(token)
        self._authorize(claims)
        if len(self._verified) >= MAX_CACHED_TOKENS:
            self._verified.pop(next(iter(self._verified)), None)
        self._verified[digest] = _Verified(keys, float(claims["exp"]), payload)
        return claims

    async def _verify(self, token: str) -> tuple[IssuerKeys, Claims, bytes]:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenRejectedError("malformed")
        algorithm, key_id = _header_of(token)
        try:
            keys, key = await self.keys.find(key_id)
        except KeysUnavailableError:
            raise TokenRejectedError("unavailable") from None
        if key is None:
            raise TokenRejectedError("unknown_key")
        if algorithm not in key.algorithms:
            raise TokenRejectedError("algorithm")
        try:
            jwt.decode(
                token,
                key.key,
                [algorithm],
                issuer=keys.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss"], "verify_aud": False},
            )
        except InvalidTokenError as error:
            raise TokenRejectedError(_reason_of(error)) from None
        except Exception:  # a claim of a type that PyJWT does not reckon with
            raise TokenRejectedError("malformed") from None
        payload = base64url_decode(token.split(".")[1])
        return keys, _json_object(payload), payload

    def _authorize(self, claims: Claims) -> None:
        if self._audience and self._audience.isdisjoint(_strings(claims.get("aud"))):
            raise TokenRejectedError("audience")
        if self._clients:
            client = next((claims[name] for name in _CLIENT_CLAIMS if name in claims), None)
            if not isinstance(client, str) or client not in self._clients:
                raise TokenRejectedError("client")
        if self._scopes:
            scopes = [
                scope for name in ("scope", "scp") for entry in _strings(claims.get(name)) for scope in entry.split()
            ]
            if self._scopes.isdisjoint(scopes):
                raise TokenRejectedError("scope")


def _header_of(token: str) -> tuple[str, str | None]:
    """The algorithm and the key id, where there is one, of a token that may be verified; not verified themselves."""
    try:
        header = jwt.get_unverified_header(token)
    except Exception:  # any error: the token is untrusted input
        raise TokenRejectedError("malformed") from None
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(kind, str) or "crit" in header:
        raise TokenRejectedError("malformed")
    if algorithm not in ASYMMETRIC:
        raise TokenRejectedError("algorithm")
    if kind.lower().removeprefix("application/") not in _TYPES:
        raise TokenRejectedError("malformed")
    if key_id is not None and not isinstance(key_id, str):
        raise TokenRejectedError("malformed")
    return algorithm, key_id


def _reason_of(error: InvalidTokenError) -> AuthFailure:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "malformed")


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if isinstance(entry, str)]


def _json_object(payload: bytes) -> Claims:
    claims: Claims = json.loads(payload)
    return claims
