"""Settings: one frozen struct, read from ``AGENTCORE_*`` once; a value that does not fit names its variable."""

from typing import Any

import msgspec
import pytest
from litestar_agentcore import BedrockAgentCoreApp, Settings, SettingsError

VARIABLES: list[tuple[str, Any, str, Any, list[str]]] = [
    ("AGENTCORE_MAX_BODY_BYTES", 100 * 1024 * 1024, "4096", 4096, ["0", "-1", "1.5", "many", "", "0x10"]),
    ("AGENTCORE_HANDLER_ISOLATION", "isolated", "inline", "inline", ["none", "Inline", ""]),
    ("AGENTCORE_STALL_SECONDS", 0.1, "0.5", 0.5, ["0", "-1", "nan", "soon", ""]),
    ("AGENTCORE_MAX_WORKER_LOOPS", 32, "1", 1, ["0", "-1", "1.5", "many", ""]),
    ("AGENTCORE_SHUTDOWN_GRACE_SECONDS", 30, "3600", 3600, ["-1", "nan", "soon", ""]),
    ("AGENTCORE_SYNC_THREADS", 64, "8", 8, ["0", "-1", "1.5", "many", "", "1,000"]),
    ("AGENTCORE_STREAM_BUFFER_BYTES", 64 * 1024, "1", 1, ["0", "-1", "1.5", "64k", ""]),
    ("AGENTCORE_PING_TIMEOUT_SECONDS", 0.5, "0.25", 0.25, ["0", "-1", "nan", "1e999", "soon", "", "1s"]),
    ("AGENTCORE_LOG_LEVEL", "INFO", "WARNING", "WARNING", ["LOUD", "20", ""]),
    ("AGENTCORE_LOG_FORMAT", "auto", "text", "text", ["xml", "JSON", ""]),
]


def field_of(variable: str) -> str:
    return variable.removeprefix("AGENTCORE_").lower()


def test_each_setting_has_a_row_here() -> None:
    assert {field_of(variable) for variable, *_ in VARIABLES} == set(Settings.__struct_fields__) - {"agent_name"}


def test_the_name_of_the_agent_has_a_variable_of_its_own() -> None:
    assert Settings.from_environment({"AGENT_NAME": "researcher"}).agent_name == "researcher"


@pytest.mark.parametrize(("variable", "default"), [row[:2] for row in VARIABLES])
def test_an_unset_variable_has_its_default(variable: str, default: Any) -> None:
    assert getattr(Settings(), field_of(variable)) == default
    assert getattr(Settings.from_environment({}), field_of(variable)) == default


@pytest.mark.parametrize(("variable", "text", "value"), [(row[0], row[2], row[3]) for row in VARIABLES])
def test_a_variable_sets_its_field_and_no_other(variable: str, text: str, value: Any) -> None:
    assert Settings.from_environment({variable: text}) == Settings(**{field_of(variable): value})


@pytest.mark.parametrize(("variable", "text"), [(row[0], bad) for row in VARIABLES for bad in row[4]])
def test_a_value_that_makes_no_sense_is_an_error_that_names_variable_and_value(variable: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: text})
    assert variable in str(caught.value)
    assert repr(text) in str(caught.value)


def test_a_settings_error_is_a_value_error() -> None:
    assert issubclass(SettingsError, ValueError)


def test_white_space_around_a_value_is_ignored() -> None:
    assert Settings.from_environment({"AGENTCORE_SYNC_THREADS": " 8\n"}).sync_threads == 8


@pytest.mark.parametrize("variable", ["AGENTCORE_UNHEARD_OF", "SYNC_THREADS", "agentcore_sync_threads", "AGENTCORE_"])
def test_unknown_variables_are_ignored(variable: str) -> None:
    assert Settings.from_environment({variable: "nonsense"}) == Settings()


def test_the_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "8")
    assert Settings.from_environment().sync_threads == 8


def test_the_environment_is_read_once_when_an_app_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "8")
    app = BedrockAgentCoreApp()
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "9")
    assert app.agent.settings.sync_threads == 8


def test_an_app_is_not_made_with_a_variable_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "many")
    with pytest.raises(SettingsError, match="AGENTCORE_SYNC_THREADS='many'"):
        BedrockAgentCoreApp()


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_settings_never_change(field: msgspec.structs.FieldInfo) -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        setattr(settings, field.name, getattr(settings, field.name))
