"""Settings: read from the environment once, when an app is made, and never changed afterwards."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

PREFIX = "AGENTCORE_"
_VARIABLES = {"agent_name": "AGENT_NAME"}

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]


class SettingsError(ValueError):
    """An ``AGENTCORE_*`` variable holds a value that makes no sense. The message names the variable."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the service behaves. Each field is the variable ``AGENTCORE_<FIELD>`` of the environment.

    The defaults are right for a laptop.
    """

    max_body_bytes: PositiveInt = 100 * 1024 * 1024
    """The largest request body that is read, in bytes; a larger one is answered 413."""

    handler_isolation: Literal["isolated", "inline"] = "isolated"
    """Where async handlers run: away from the loop that accepts requests, or ``inline`` on it.

    Inline is faster, and only for agents that never block: one that does holds up everybody, ``/ping`` included.
    """

    stall_seconds: PositiveSeconds = 0.1
    """How long a handler may hold the agent's event loop before the log names it, in seconds."""

    sync_threads: PositiveInt = 64
    """How many threads serve plain (not ``async``) handlers. Invocations beyond that wait for one."""

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

    shutdown_grace_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """How long work that is running when the service is told to end may take to finish before it is cancelled."""

    agent_name: str = ""
    """What the agent is called in telemetry; its entrypoint's name by default. The variable is ``AGENT_NAME``."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """How log lines are written: ``json``, or ``text`` for people; by default ``text`` at a terminal."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """From which level on log lines are written, where the service sets up logging."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings.

        Args:
            environment: The variables to read; ``os.environ`` by default.

        Returns:
            The settings, with the default of each variable that is not set.

        Raises:
            SettingsError: A variable does not fit; the message names it, its value and what was expected.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, object] = {}
        for field in msgspec.structs.fields(cls):
            variable = _VARIABLES.get(field.name, PREFIX + field.name.upper())
            if (text := environment.get(variable)) is None:
                continue
            try:
                values[field.name] = msgspec.convert(text.strip(), field.type, strict=False)
            except msgspec.ValidationError as error:
                raise SettingsError(f"{variable}={text!r} makes no sense: {error}") from None
        return cls(**values)  # type: ignore[arg-type]
