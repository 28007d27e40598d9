"""Settings: one frozen struct, read from ``AGENTCORE_*`` once; a value that does not fit names its variable."""

import re
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from litestar_agentcore import BedrockAgentCoreApp, Settings, SettingsError
from litestar_agentcore.protocol.settings import retired_variables

VARIABLES: list[tuple[str, Any, str, Any, list[str]]] = [
    ("AGENTCORE_MAX_BODY_BYTES", 100 * 1024 * 1024, "4096", 4096, ["0", "-1", "1.5", "many", "0x10"]),
    ("AGENTCORE_MAX_HEADERS", 200, "20", 20, ["0", "-1", "1.5", "many"]),
    ("AGENTCORE_MAX_HEADER_BYTES", 65536, "4096", 4096, ["0", "-1", "1.5", "64k"]),
    ("AGENTCORE_MAX_WEBSOCKET_MESSAGE_BYTES", 16 * 1024 * 1024, "1", 1, ["0", "-1", "1.5", "16M"]),
    ("AGENTCORE_HANDLER_ISOLATION", "isolated", "inline", "inline", ["none", "in line"]),
    ("AGENTCORE_STALL_SECONDS", 0.1, "0.5", 0.5, ["0", "-1", "nan", "soon"]),
    ("AGENTCORE_SHUTDOWN_DELAY_SECONDS", 0, "5", 5, ["-1", "nan", "1e999", "soon"]),
    ("AGENTCORE_SHUTDOWN_GRACE_SECONDS", 30, "3600", 3600, ["-1", "nan", "soon"]),
    ("AGENTCORE_SESSION_IDLE_SECONDS", 0, "900", 900, ["-1", "nan", "1e999", "15m"]),
    ("AGENTCORE_MAX_CONCURRENT_INVOCATIONS", None, "1", 1, ["0", "-1", "1.5", "none", "null", "many"]),
    ("AGENTCORE_MAX_CONCURRENT_PER_SESSION", None, "2", 2, ["0", "-1", "1.5", "none", "null", "many"]),
    ("AGENTCORE_QUEUE_SIZE", 100, "0", 0, ["-1", "1.5", "none"]),
    ("AGENTCORE_QUEUE_TIMEOUT_SECONDS", 10, "0", 0, ["-1", "nan", "1e999", "soon"]),
    ("AGENTCORE_MAX_WEBSOCKETS", None, "1", 1, ["0", "-1", "1.5", "none", "null"]),
    ("AGENTCORE_INVOCATION_TIMEOUT_SECONDS", 0, "900", 900, ["-1", "nan", "1e999", "15m"]),
    ("AGENTCORE_STREAM_TIMEOUT_SECONDS", 0, "3600", 3600, ["-1", "nan", "1e999", "1h"]),
    ("AGENTCORE_STREAM_IDLE_SECONDS", 0, "0.5", 0.5, ["-1", "nan", "1e999", "soon"]),
    ("AGENTCORE_SSE_KEEPALIVE_SECONDS", 15, "0", 0, ["-1", "nan", "1e999", "off"]),
    ("AGENTCORE_BODY_IDLE_SECONDS", 20, "0", 0, ["-1", "nan", "1e999", "off"]),
    ("AGENTCORE_KEEP_ALIVE_SECONDS", 75, "5", 5, ["0", "-1", "nan", "1e999", "off"]),
    ("AGENTCORE_CANCEL_ON_DISCONNECT", False, "true", True, ["2", "maybe", "nope", "null", "01"]),
    ("AGENTCORE_SYNC_THREADS", 64, "8", 8, ["0", "-1", "1.5", "many", "1,000"]),
    ("AGENTCORE_PARKED_THREADS", 1000, "8", 8, ["0", "-1", "1.5", "many"]),
    ("AGENTCORE_STREAM_BUFFER_BYTES", 64 * 1024, "1", 1, ["0", "-1", "1.5", "64k"]),
    ("AGENTCORE_PING_TIMEOUT_SECONDS", 0.5, "0.25", 0.25, ["0", "-1", "nan", "1e999", "soon", "1s"]),
    ("AGENTCORE_PROTOCOL", None, "AG-UI", "ag-ui", ["agui", "grpc", "null"]),
    (
        "AGENTCORE_RUNTIME_ARN",
        "",
        "arn:aws:bedrock-agentcore:local:000000000000:runtime/local",
        "arn:aws:bedrock-agentcore:local:000000000000:runtime/local",
        ["local", "arn:aws:s3:::bucket", "arn:aws:bedrock-agentcore:local:1:runtime/local"],
    ),
    ("AGENTCORE_LOG_LEVEL", "INFO", "WARNING", "WARNING", ["LOUD", "20", "TRACE", "NOTSET"]),
    ("AGENTCORE_LOG_FORMAT", "auto", "text", "text", ["xml", "off"]),
    (
        "AGENTCORE_JWT_DISCOVERY_URL",
        "",
        "https://id.example/.well-known/openid-configuration",
        "https://id.example/.well-known/openid-configuration",
        [],
    ),
    ("AGENTCORE_JWT_ALLOWED_AUDIENCE", (), "agent, other\n third", ("agent", "other", "third"), []),
    ("AGENTCORE_JWT_ALLOWED_CLIENTS", (), "one", ("one",), []),
    ("AGENTCORE_JWT_ALLOWED_SCOPES", (), "agent/invoke,agent/admin", ("agent/invoke", "agent/admin"), []),
    ("AGENTCORE_API_KEYS_FILE", "", "/run/keys", "/run/keys", []),
    ("AGENTCORE_AUTH_METRICS", False, "true", True, ["maybe", "2"]),
    ("AGENTCORE_AUTH_SCHEMA", False, "1", True, ["maybe"]),
    ("AGENTCORE_EXPOSE_ERRORS", True, "False", False, ["never", "-1"]),
    ("AGENTCORE_PLAYGROUND", False, "true", True, ["maybe", "2"]),
]
WORDS = [
    (variable, word)
    for field in msgspec.structs.fields(Settings)
    if get_origin(field.type) is Literal
    for variable in [f"AGENTCORE_{field.name.upper()}"]
    for word in get_args(field.type)
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


@pytest.mark.parametrize("text", ["", " ", "\n"], ids=repr)
@pytest.mark.parametrize("variable", ["AGENT_NAME", *(row[0] for row in VARIABLES)])
def test_an_empty_variable_is_unset(variable: str, text: str) -> None:
    assert Settings.from_environment({variable: text}) == Settings()


@pytest.mark.parametrize(("variable", "word"), WORDS)
def test_a_word_counts_in_any_case(variable: str, word: str) -> None:
    for text in (word.lower(), word.upper(), word.title()):
        assert getattr(Settings.from_environment({variable: text}), field_of(variable)) == word


@pytest.mark.parametrize(("text", "level"), [("WARN", "WARNING"), ("warn", "WARNING"), ("Fatal", "CRITICAL")])
def test_a_level_may_have_the_other_name_that_python_has_for_it(text: str, level: str) -> None:
    assert Settings.from_environment({"AGENTCORE_LOG_LEVEL": text}).log_level == level


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "false", "0", "no", "off"])
def test_a_truth_value_has_many_words_in_any_case(word: str) -> None:
    for text in (word.lower(), word.upper(), word.title()):
        settings = Settings.from_environment({"AGENTCORE_CANCEL_ON_DISCONNECT": text})
        assert settings.cancel_on_disconnect is (word in {"true", "1", "yes", "on"})


def test_a_level_is_no_word_of_another_variable() -> None:
    with pytest.raises(SettingsError):
        Settings.from_environment({"AGENTCORE_LOG_FORMAT": "warn"})


@pytest.mark.parametrize(
    ("variable", "text", "accepted"),
    [
        ("AGENTCORE_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("AGENTCORE_LOG_FORMAT", "xml", "auto, json, text, none"),
        ("AGENTCORE_HANDLER_ISOLATION", "none", "isolated, inline"),
        ("AGENTCORE_SYNC_THREADS", "many", "int"),
        ("AGENTCORE_SYNC_THREADS", "0", ">= 1"),
        ("AGENTCORE_STALL_SECONDS", "soon", "float"),
        ("AGENTCORE_CANCEL_ON_DISCONNECT", "maybe", "true, 1, yes, on, false, 0, no, off, in any case"),
        ("AGENTCORE_MAX_CONCURRENT_INVOCATIONS", "0", ">= 1"),
        ("AGENTCORE_MAX_CONCURRENT_INVOCATIONS", "none", "`int`"),
    ],
)
def test_the_error_says_what_is_accepted(variable: str, text: str, accepted: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(accepted)):
        Settings.from_environment({variable: text})


def test_a_retired_variable_is_found_where_it_is_set_and_no_error() -> None:
    environment = {"AGENTCORE_MAX_WORKER_LOOPS": "many", "AGENTCORE_SYNC_THREADS": "8"}
    assert retired_variables(environment) == ["AGENTCORE_MAX_WORKER_LOOPS"]
    assert Settings.from_environment(environment) == Settings(sync_threads=8)
    assert retired_variables({"AGENTCORE_MAX_WORKER_LOOPS": ""}) == []


def test_retired_variables_are_looked_for_in_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTCORE_MAX_WORKER_LOOPS", raising=False)
    assert retired_variables() == []
    monkeypatch.setenv("AGENTCORE_MAX_WORKER_LOOPS", "4")
    assert retired_variables() == ["AGENTCORE_MAX_WORKER_LOOPS"]


def test_no_setting_is_retired() -> None:
    variables = {f"AGENTCORE_{name.upper()}": "1" for name in Settings.__struct_fields__}
    assert retired_variables(variables) == []


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
