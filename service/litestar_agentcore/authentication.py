"""Who may come in: bearer tokens (JWT) of an issuer, and static API keys. Off unless a setting says otherwise.

RFC 6750 (bearer tokens), and AgentCore's way of putting one into a WebSocket's subprotocols.
"""

import base64
import binascii
import importlib
import re
from typing import TYPE_CHECKING, Any

import msgspec
from agentcore_telemetry.metrics import AgentMetrics, AuthFailure
from litestar.types import Empty
from litestar.utils.scope.state import ScopeState

from litestar_agentcore.api_keys import ApiKeys
from litestar_agentcore.protocol.context import current_request
from litestar_agentcore.protocol.headers import AUTHORIZATION, RequestHeaders
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.protocol.settings import Settings, SettingsError

if TYPE_CHECKING:
    from litestar_agentcore.bearer_tokens import BearerTokens

Claims = dict[str, Any]
AnyScope = Any
"""An ASGI scope, of a request or of a WebSocket."""

BEARER_SUBPROTOCOL = "base64UrlBearerAuthorization"
"""The subprotocol that a browser asks for, beside the same with ``.<token>``, since it cannot set a header.

"Get started with bidirectional streaming using WebSocket" in the AgentCore Runtime developer guide.
"""

API_KEY_CLAIM = "api_key"
"""The only claim of a caller with an API key: the key's name, or ``None``."""

RETRY_AFTER_SECONDS = 5

_REALM = "agent"
_API_KEY, _AUTHORIZATION, _SUBPROTOCOLS = b"x-api-key", AUTHORIZATION.lower().encode(), b"sec-websocket-protocol"
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749, appendix A.4."""

_NOT_VALID = "The token is not valid"
_DETAILS: dict[AuthFailure, str] = {
    "missing": "A bearer token or an API key is needed",
    "malformed": "The credentials cannot be read",
    "api_key": "The API key is not valid",
    "expired": "The token has expired",
    "not_yet_valid": "The token is not valid yet",
    "audience": "The token is for another audience",
    "client": "The token was issued to another client",
    "scope": "The token has none of the scopes that are needed",
    "unavailable": "The issuer of the tokens cannot be reached",
}
"""What a caller is told; of a token that is not valid no more than that. The log has the reason."""

_FORBIDDEN = frozenset({"audience", "client", "scope"})


class Authentication:
    """Lets callers in who have a token, or a key, that is valid.

    Args:
        tokens: Verifies tokens, where these are accepted.
        api_keys: Verifies keys, where these are accepted.
        scopes: The scopes of which a token needs one, for the callers that have none.
        metrics: Where those who are not let in are counted.
    """

    def __init__(
        self, tokens: "BearerTokens | None", api_keys: ApiKeys | None, scopes: tuple[str, ...], metrics: AgentMetrics
    ) -> None:
        self._tokens = tokens
        self._api_keys = api_keys
        self._scopes = scopes
        self._failures = metrics.auth_failures

    @property
    def takes_api_keys(self) -> bool:
        """Whether an API key will do."""
        return self._api_keys is not None

    def start(self) -> None:
        """Fetch the issuer's keys, without waiting for them."""
        if self._tokens is not None:
            self._tokens.keys.refresh()

    async def authenticate(self, scope: AnyScope) -> Claims:
        """Find out who a caller is.

        Args:
            scope: The ASGI scope of the request or the handshake.

        Returns:
            The claims of the token, or ``{"api_key": name}``.

        Raises:
            Refusal: With status 401 where the caller is not authenticated, 403 where the token is for other audiences,
                clients or scopes, 503 where there is no key yet to tell. It is counted.
        """
        try:
            return await self._claims_of(scope)
        except _NotLetInError as error:
            self._failures[error.reason].add()
            raise self._refusal(error.reason) from None

    async def admit(self, scope: AnyScope, request: RequestHeaders) -> str | None:
        """Authenticate the caller of an agent, and give the agent its claims. The agent does not see an ``X-Api-Key``.

        Args:
            scope: The ASGI scope. The header that is withheld is taken out of it; a token that came as a subprotocol
                becomes the ``Authorization`` header that it stands for.
            request: The headers of the scope, whose values get the claims; so do those of the current request.

        Returns:
            The subprotocol to accept a WebSocket with, where the token came as one.

        Raises:
            Refusal: As :meth:`authenticate` has it.
        """
        claims = await self.authenticate(scope)
        forwarded = dict(request.values.request_headers or {})
        subprotocol = None
        if self._api_keys is not None:
            _withhold(scope, _API_KEY)
            forwarded = {name: value for name, value in forwarded.items() if name.lower() != _API_KEY.decode()}
        if (token := _token_in_subprotocols(scope)) is not None and AUTHORIZATION not in forwarded:
            subprotocol = BEARER_SUBPROTOCOL
            forwarded[AUTHORIZATION] = f"Bearer {token}"
            _withhold_subprotocol(scope)
            scope["headers"].append((_AUTHORIZATION, forwarded[AUTHORIZATION].encode("latin-1")))
        changes: dict[str, Any] = {"claims": claims, "request_headers": forwarded or None}
        request.values = msgspec.structs.replace(request.values, **changes)
        if (current := current_request.get()).request_id is not None:
            current_request.set(msgspec.structs.replace(current, **changes))
        return subprotocol

    async def _claims_of(self, scope: AnyScope) -> Claims:
        key, token = _credentials(scope)
        if self._api_keys is not None and (key or token) is not None:
            valid, name = self._api_keys.name_of(key or token or "")
            if valid:
                return {API_KEY_CLAIM: name}
            if key is not None or self._tokens is None:
                raise _NotLetInError("api_key")
        if token is None or self._tokens is None:
            raise _NotLetInError("missing")
        from litestar_agentcore.bearer_tokens import TokenRejectedError

        try:
            return await self._tokens.claims_of(token)
        except TokenRejectedError as error:
            raise _NotLetInError(error.reason) from None

    def _refusal(self, reason: AuthFailure) -> Refusal:
        details = _DETAILS.get(reason, _NOT_VALID)
        log = f"the caller is not authenticated ({reason})"
        if reason == "unavailable":
            retry = [(b"retry-after", b"%d" % RETRY_AFTER_SECONDS)]
            return Refusal(503, "Authentication unavailable", details, log, retry)
        challenge = f'Bearer realm="{_REALM}"'
        if reason in _FORBIDDEN:
            challenge += f', error="insufficient_scope", error_description="{details}"'
            if reason == "scope":
                challenge += f', scope="{" ".join(self._scopes)}"'
            log = f"the caller is not authorized ({reason})"
            return Refusal(403, "Forbidden", details, log, [(b"www-authenticate", challenge.encode())])
        if reason != "missing":  # section 3.1: who was not aware that credentials are needed is told of no error
            error = "invalid_request" if reason == "malformed" else "invalid_token"
            challenge += f', error="{error}", error_description="{details}"'
        return Refusal(401, "Unauthorized", details, log, [(b"www-authenticate", challenge.encode())])


class _NotLetInError(Exception):
    def __init__(self, reason: AuthFailure) -> None:
        super().__init__(reason)
        self.reason = reason


def _credentials(scope: AnyScope) -> tuple[str | None, str | None]:
    """The API key and the bearer token that came with a request, each where there is one."""
    keys: list[str] = []
    authorizations: list[str] = []
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.lower()
        if name == _API_KEY:
            keys.append(raw_value.decode("latin-1").strip(" \t"))
        elif name == _AUTHORIZATION:
            authorizations.append(raw_value.decode("latin-1").strip(" \t"))
    if len(keys) > 1 or len(authorizations) > 1:
        raise _NotLetInError("malformed")
    token = None
    if authorizations:
        scheme, _, token = authorizations[0].partition(" ")
        token = token.strip(" ") if scheme.lower() == "bearer" else None
    elif (offered := _token_in_subprotocols(scope)) is not None:
        token = offered
    if token is not None and not _TOKEN.fullmatch(token):
        raise _NotLetInError("malformed")
    return (keys[0] if keys else None), token


def _token_in_subprotocols(scope: AnyScope) -> str | None:
    """The token that a browser put into the subprotocols that it offers; empty where it cannot be read."""
    prefix = f"{BEARER_SUBPROTOCOL}."
    offered = next((offer for offer in scope.get("subprotocols") or () if offer.startswith(prefix)), None)
    if offered is None:
        return None
    encoded = offered.removeprefix(prefix)
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


def _withhold(scope: AnyScope, name: bytes) -> None:
    scope["headers"] = [header for header in scope["headers"] if header[0].lower() != name]
    ScopeState.from_scope(scope).headers = Empty  # which may have been read already


def _withhold_subprotocol(scope: AnyScope) -> None:
    """Leave the token, and what stands for it, out of the subprotocols that the handler chooses from."""
    rest = [offer for offer in scope["subprotocols"] if offer.partition(".")[0] != BEARER_SUBPROTOCOL]
    scope["subprotocols"] = rest
    _withhold(scope, _SUBPROTOCOLS)
    if rest:
        scope["headers"].append((_SUBPROTOCOLS, ", ".join(rest).encode("latin-1")))


def authentication_of(settings: Settings, metrics: AgentMetrics) -> Authentication | None:
    """Make what the settings ask for.

    Args:
        settings: The settings.
        metrics: Where those who are not let in are counted.

    Returns:
        The authentication, or ``None`` where everybody may come in.

    Raises:
        SettingsError: The settings contradict one another, or something that they need is not there.
    """
    lists = {
        "AGENTCORE_JWT_ALLOWED_AUDIENCE": settings.jwt_allowed_audience,
        "AGENTCORE_JWT_ALLOWED_CLIENTS": settings.jwt_allowed_clients,
        "AGENTCORE_JWT_ALLOWED_SCOPES": settings.jwt_allowed_scopes,
    }
    if not settings.jwt_discovery_url:
        for variable, values in lists.items():
            if values:
                raise SettingsError(f"{variable} is set, and AGENTCORE_JWT_DISCOVERY_URL is not")
    elif not any(lists.values()):
        raise SettingsError(
            f"AGENTCORE_JWT_DISCOVERY_URL is set, and none of {', '.join(lists)} is: every token of the issuer would do"
        )
    for scope in settings.jwt_allowed_scopes:
        if not _SCOPE.fullmatch(scope):
            raise SettingsError(f"AGENTCORE_JWT_ALLOWED_SCOPES has {scope!r}, which cannot be a scope")
    tokens = _bearer_tokens(settings) if settings.jwt_discovery_url else None
    api_keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
    if tokens is None and api_keys is None:
        for variable, wanted in (
            ("AGENTCORE_AUTH_METRICS", settings.auth_metrics),
            ("AGENTCORE_AUTH_SCHEMA", settings.auth_schema),
        ):
            if wanted:
                raise SettingsError(
                    f"{variable} is true, and neither AGENTCORE_JWT_DISCOVERY_URL nor AGENTCORE_API_KEYS_FILE is set"
                )
        return None
    return Authentication(tokens, api_keys, settings.jwt_allowed_scopes, metrics)


def _bearer_tokens(settings: Settings) -> "BearerTokens":
    url = settings.jwt_discovery_url
    for module in ("cryptography.hazmat.primitives.asymmetric", "jwt"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise SettingsError(
                f"AGENTCORE_JWT_DISCOVERY_URL needs the extra 'auth': pip install 'litestar-agentcore[auth]' ({error})"
            ) from None
    from litestar_agentcore.bearer_tokens import BearerTokens
    from litestar_agentcore.signing_keys import DiscoveryError, SigningKeys

    try:
        keys = SigningKeys(url)
    except DiscoveryError as error:
        raise SettingsError(f"AGENTCORE_JWT_DISCOVERY_URL={url!r} makes no sense: {error}") from None
    return BearerTokens(keys, settings.jwt_allowed_audience, settings.jwt_allowed_clients, settings.jwt_allowed_scopes)
