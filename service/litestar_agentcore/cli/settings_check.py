"""Which variables are in force, and which look like a typo."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points

from agentcore_telemetry.environment import TraceSettings

from litestar_agentcore.cli.findings import Finding, Setting, is_secret, without_credentials
from litestar_agentcore.protocol.settings import (
    PREFIX,
    Settings,
    SettingsError,
    retired_variables,
    variable_of,
)

_LIKE = 0.85
"""How alike a variable and a setting must be, of 1; ``RUNTIME_URL`` and ``RUNTIME_ARN`` are two."""


def check_settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the service's own variables.

    Args:
        environment: The variables.
    """
    try:
        Settings.from_environment(environment)
    except SettingsError as error:
        yield Finding("failure", "settings", without_credentials(str(error)))
    variables = {variable_of(field) for field in Settings.__struct_fields__}
    own = sum(bool(environment.get(variable, "").strip()) for variable in variables)
    yield Finding("ok", "settings", f"{own} from the environment, {len(variables) - own} as by default")
    retired = retired_variables(environment)
    for variable in retired:
        yield Finding("warning", "settings", f"{variable} no longer means anything", "Remove it.")
    others = [name for name in sorted(environment) if name.startswith(PREFIX) and name not in variables]
    by_name = {variable.removeprefix(PREFIX): variable for variable in variables}
    left = []
    for name in others:
        if name in retired:
            continue
        if like := get_close_matches(name.removeprefix(PREFIX), by_name, 1, _LIKE):
            yield Finding("warning", "settings", f"{name} is no setting", f"Did you mean {by_name[like[0]]}?")
        else:
            left.append(name)
    if left:
        yield Finding("ok", "settings", f"Not the service's: {', '.join(left)}")


def check_telemetry_variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the ``OTEL_*`` variables.

    Args:
        environment: The variables.
    """
    for warning in TraceSettings.from_environment(environment).warnings:
        yield Finding("warning", "OTEL variables", warning)
    known = _telemetry_variables()
    for name in sorted(environment):
        if name.startswith("OTEL_") and name not in known and (like := get_close_matches(name, known, 1, 0.93)):
            yield Finding("warning", "OTEL variables", f"{name} is no variable", f"Did you mean {like[0]}?")


def settings_in_force(environment: Mapping[str, str]) -> list[Setting]:
    """The service's settings, and the ``OTEL_*`` variables that are set; of secrets only that they are.

    Args:
        environment: The variables.
    """
    found = []
    try:
        settings: Settings | None = Settings.from_environment(environment)
    except SettingsError:
        settings = None
    defaults = Settings()
    for field in Settings.__struct_fields__:
        variable = variable_of(field)
        is_set = bool(environment.get(variable, "").strip())
        text = environment[variable] if settings is None and is_set else _shown(getattr(settings or defaults, field))
        found.append(Setting(variable, without_credentials(text), "environment" if is_set else "default"))
    known = _telemetry_variables()
    for name in sorted(environment):
        if name.startswith("OTEL_") and environment[name].strip():
            value = _telemetry_value(name, environment[name]) if name in known else "(set)"
            found.append(Setting(name, value, "environment"))
    return found


def _shown(value: object) -> str:
    if value is None or value == "" or value == ():
        return "(unset)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _telemetry_value(name: str, value: str) -> str:
    if is_secret(name):
        return "(set, not shown)"
    if name == "OTEL_RESOURCE_ATTRIBUTES":
        pairs = [pair.partition("=") for pair in value.split(",")]
        return ",".join(f"{key}=(not shown)" if is_secret(key) else f"{key}{eq}{text}" for key, eq, text in pairs)
    return without_credentials(value)


def _telemetry_variables() -> set[str]:
    """The names that the installed parts of OpenTelemetry read."""
    modules = [entry.load() for entry in entry_points(group="opentelemetry_environment_variables")]
    return {name for module in modules for name in dir(module) if name.startswith("OTEL_")}
