"""Settings: read from the environment once, when an app is made, and never changed afterwards."""

import os
import re
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

PREFIX = "AGENTCORE_"
_VARIABLES = {"agent_name": "AGENT_NAME"}
_RETIRED = ("AGENTCORE_MAX_WORKER_LOOPS",)
_LEVEL_ALIASES = {"warn": "WARNING", "fatal": "CRITICAL"}
"""Python's other names for levels."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]
SecondsOrOff = Annotated[float, msgspec.Meta(ge=0)]
"""0 switches a limit off."""

_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


RUNTIME_ARN = (
    r"^(?P<runtime>arn:aws[a-z-]*:bedrock-agentcore:[a-z0-9-]+:(?P<account>[0-9]{12}):runtime/(?P<id>[a-zA-Z0-9_-]+))"
    r"(?:/runtime-endpoint/[a-zA-Z0-9_-]+)?\Z"
)
"""The ARN of an agent runtime, or of an endpoint of it."""


class SettingsError(ValueError):
    """An ``AGENTCORE_*`` variable holds a value that makes no sense. The message names the variable."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the service behaves. Each field is the variable ``AGENTCORE_<FIELD>`` of the environment.

    The defaults are right for a laptop.
    """

    max_body_bytes: PositiveInt = 100 * 1024 * 1024
    """The largest request body that is read, in bytes; a larger one is answered 413."""

    max_headers: PositiveInt = 200
    """The most headers that a request may have; one with more is answered 431."""

    max_header_bytes: PositiveInt = 65536
    """The most bytes that the headers of a request may have together; one with more is answered 431."""

    max_websocket_message_bytes: PositiveInt = 16 * 1024 * 1024
    """The largest WebSocket message that is taken, in bytes; a larger one closes the connection with 1009."""

    handler_isolation: Literal["isolated", "inline"] = "isolated"
    """Where async handlers run: away from the loop that accepts requests, or ``inline`` on it.

    Inline is faster, and only for agents that never block: one that does holds up everybody, ``/ping`` included.
    """

    stall_seconds: PositiveSeconds = 0.1
    """How long a handler may hold the agent's event loop before that is counted and the log names it, in seconds."""

    sync_threads: PositiveInt = 64
    """How many threads serve plain handlers, and ``async`` ones without an ``await``. Further invocations wait."""

    parked_threads: PositiveInt = 1000
    """How many threads of plain generators may be parked, because their clients read slowly, beside ``sync_threads``.

    Beyond that such generators keep their running place while they wait.
    """

    stream_buffer_bytes: PositiveInt = 64 * 1024
    """How many bytes of a stream may wait for a client that reads slowly before its generator is paused."""

    ping_timeout_seconds: PositiveSeconds = 0.5
    """How long ``/ping`` waits for a custom health function before it answers with the automatic status.

    Below the one second after which a kubelet gives a probe up, unless told otherwise.
    """

    shutdown_delay_seconds: SecondsOrOff = 0.0
    """How long new work is still taken when the service is told to end, until proxies have heard of it; 0 for not.

    ``/ready`` says 503 meanwhile, and each answer closes its connection, lest a client goes on with one that it keeps;
    those that are idle are closed at its end. The grace comes after it.
    """

    shutdown_grace_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """How long work that is running when the service is told to end may take to finish before it is cancelled."""

    session_idle_seconds: SecondsOrOff = 0.0
    """After how long without work a session is ended, and the session end hook called; 0 for never."""

    max_concurrent_invocations: PositiveInt | None = None
    """How many invocations may run at the same time, streams included; unset for any number.

    The others wait for a place. It is held until the handler's code has ended, also where its client has left.
    """

    max_concurrent_per_session: PositiveInt | None = None
    """How many invocations of one session may run at the same time; unset for any number.

    Those beyond it wait, and let others pass; one session's may be half of the queue. Invocations without a session id
    are not limited.
    """

    queue_size: Annotated[int, msgspec.Meta(ge=0)] = 100
    """How many invocations may wait for a place; with 0 none does. One more is answered 429, with ``Retry-After``."""

    queue_timeout_seconds: SecondsOrOff = 10.0
    """How long an invocation may wait for a place before it is answered 429; 0 for as long as it takes."""

    max_websockets: PositiveInt | None = None
    """How many WebSockets may be open at the same time; unset for any number. One more is refused with 503 or 1013."""

    invocation_timeout_seconds: SecondsOrOff = 0.0
    """How long an invocation may take until its answer begins, from its arrival; 0 for any time.

    Then it is answered 504, and its handler cancelled. A plain one cannot be cancelled: it runs on, holds its
    place, and is waited for by a shutdown.
    """

    stream_timeout_seconds: SecondsOrOff = 0.0
    """How long a stream may take, from the arrival of its request; 0 for any time. It ends with an error event."""

    stream_idle_seconds: SecondsOrOff = 0.0
    """How long a stream may go without an event, because none is yielded or none is read; 0 for any time.

    It ends with an error event.
    """

    sse_keepalive_seconds: SecondsOrOff = 15.0
    """After how long a silence a stream has a comment sent, which is no event, lest a proxy cuts it; 0 for never."""

    body_idle_seconds: SecondsOrOff = 20.0
    """How long the body of a request may make no progress before it is answered 408 and cut off; 0 for any time."""

    keep_alive_seconds: PositiveSeconds = 75.0
    """How long a connection may be idle between two requests before it is closed.

    Longer than proxies keep theirs (nginx and AWS's load balancers 60 s): one that closes first cannot send a request
    into a connection that is just being closed.
    """

    cancel_on_disconnect: bool = False
    """Whether the handler of an invocation that is no stream is cancelled when its client leaves."""

    agent_name: str = ""
    """What the agent is called in telemetry; its entrypoint's name by default. The variable is ``AGENT_NAME``."""

    protocol: Literal["http", "ag-ui", "a2a", "mcp"] | None = None
    """Which of the protocols that an application has is served, on its own port; unset for all of them."""

    runtime_arn: Annotated[str, msgspec.Meta(pattern=RUNTIME_ARN)] = ""
    """The ARN that ``/runtimes/{arn}/...`` is served for; unset for any."""

    log_format: Literal["auto", "json", "text", "none"] = "auto"
    """The form of log lines: ``json``, or ``text`` for people.

    ``auto`` is ``text`` at a terminal and ``json`` elsewhere; ``none`` sets up no logging.
    """

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """The level from which on log lines are written, where the service sets up logging."""

    jwt_discovery_url: str = ""
    """Who issues the bearer tokens (JWT) that callers need: ``https://.../.well-known/openid-configuration``.

    This and the three lists are the fields of AgentCore's ``customJWTAuthorizer``. With the URL, at least one of the
    lists is needed, and a token must satisfy each list that is set.
    """

    jwt_allowed_audience: tuple[str, ...] = ()
    """Audiences, separated by commas or spaces; one must be in the token's ``aud``."""

    jwt_allowed_clients: tuple[str, ...] = ()
    """Client ids; the token's ``client_id`` (or ``azp``, ``appid``, ``cid``) must be one of them."""

    jwt_allowed_scopes: tuple[str, ...] = ()
    """Scopes; one must be in the token's ``scope`` (or ``scp``)."""

    api_keys_file: str = ""
    """A file of keys, one of which a caller needs, in ``X-Api-Key`` or as a bearer token; read anew when it changes.

    One key a line, ``key`` or ``name:key``; empty lines and those that begin with ``#`` are passed over.
    """

    auth_metrics: bool = False
    """Whether ``/metrics`` is for authenticated callers alone."""

    auth_schema: bool = False
    """Whether ``/schema`` is for authenticated callers alone."""

    playground: bool = False
    """Whether ``/playground`` is there: a page to try the agent on. It is in debug mode too."""

    expose_errors: bool = True
    """Whether a 500, and the last event of a stream that failed, tells what was raised, or the request's id alone."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings.

        An empty variable counts as unset, and words count in any case.

        Args:
            environment: The variables to read; ``os.environ`` by default.

        Returns:
            The settings, with the default of each variable that is not set.

        Raises:
            SettingsError: A variable does not fit; the message names it, its value and what is accepted.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, object] = {}
        for field in msgspec.structs.fields(cls):
            variable = variable_of(field.name)
            if text := environment.get(variable, "").strip():
                try:
                    values[field.name] = _parse(text, field.type)
                except (msgspec.ValidationError, ValueError) as error:
                    raise SettingsError(f"{variable}={environment[variable]!r} makes no sense: {error}") from None
        return cls(**values)  # type: ignore[arg-type]


def variable_of(field: str) -> str:
    """The variable that a setting is read from.

    Args:
        field: The name of its field in :class:`Settings`.
    """
    return _VARIABLES.get(field, PREFIX + field.upper())


def _parse(text: str, kind: Any) -> object:
    if get_origin(kind) is tuple:
        return tuple(filter(None, re.split(r"[,\s]+", text)))
    if kind is bool:
        if (value := _BOOLEANS.get(text.casefold())) is None:
            raise ValueError(f"expected one of {', '.join(_BOOLEANS)}, in any case")
        return value
    if NoneType in get_args(kind):  # as the default of a variable that is unset, and not as a word
        kind = next(member for member in get_args(kind) if member is not NoneType)
    if get_origin(kind) is not Literal:
        return msgspec.convert(text, kind, strict=False)
    choices = {choice.casefold(): choice for choice in get_args(kind)}
    aliases = _LEVEL_ALIASES if "WARNING" in choices.values() else {}
    try:
        return (choices | aliases)[text.casefold()]
    except KeyError:
        raise ValueError(f"expected one of {', '.join(choices.values())}, in any case") from None


def retired_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Find the variables of settings that no longer exist.

    Args:
        environment: The variables to look at; ``os.environ`` by default.

    Returns:
        The names of those that are set, and not to the empty string.
    """
    environment = os.environ if environment is None else environment
    return [variable for variable in _RETIRED if environment.get(variable, "").strip()]
