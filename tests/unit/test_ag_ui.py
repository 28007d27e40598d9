"""AG-UI where its library is not installed, and what the commands make of prompts and events."""

import json
import subprocess
import sys
from typing import Any

import litestar_agentcore
import pytest
from litestar_agentcore.cli.ag_ui import RunPrinter, run_input
from litestar_agentcore.cli.events import error_of
from litestar_agentcore.cli.terminal import Output

NAMES = ("AGUIApp", "AGUIPlugin", "build_ag_ui_app", "serve_ag_ui")


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ag_ui", None)


@pytest.mark.parametrize("make", ["AGUIApp()", "AGUIPlugin()", "build_ag_ui_app(print)", "serve_ag_ui(print)"])
def test_without_the_library_the_error_names_the_extra(make: str) -> None:
    with pytest.raises(ImportError, match=r"pip install 'litestar-agentcore\[ag-ui\]'"):
        eval(make, {name: getattr(litestar_agentcore, name) for name in NAMES})


def test_the_names_are_there_and_cost_nothing_until_they_are_asked_for() -> None:
    assert set(NAMES) <= set(litestar_agentcore.__all__)
    code = "import sys, litestar_agentcore; print('litestar_agentcore.ag_ui' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_name_that_is_not_there_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'litestar_agentcore' has no attribute 'AGUI'"):
        _ = litestar_agentcore.AGUI


# The input of a run


def made_of(payload: Any) -> Any:
    return json.loads(run_input(json.dumps(payload).encode(), "prompt", "session-1"))


@pytest.mark.parametrize("payload", ["hello", {"prompt": "hello"}])
def test_a_prompt_becomes_the_message_of_a_user(payload: Any) -> None:
    made = made_of(payload)
    (message,) = made["messages"]
    assert (message["role"], message["content"]) == ("user", "hello")
    assert made["threadId"] == "session-1"
    assert made["runId"] != made_of(payload)["runId"]
    assert (made["state"], made["tools"], made["context"], made["forwardedProps"]) == ({}, [], [], {})
    assert "prompt" not in made


def test_fields_of_an_input_stay_as_they_are() -> None:
    given = {"threadId": "t", "runId": "r", "messages": [], "state": {"count": 1}, "tools": [{"name": "x"}]}
    assert made_of(given) == {**given, "context": [], "forwardedProps": {}}


def test_messages_win_over_a_field_of_the_prompts_name() -> None:
    made = made_of({"messages": [], "prompt": "hello"})
    assert (made["messages"], made["prompt"]) == ([], "hello")


@pytest.mark.parametrize("payload", [5, None, [1]])
def test_what_is_no_input_is_sent_as_it_is(payload: Any) -> None:
    assert made_of(payload) == payload


# The events of a run


def printed(capsysbinary: pytest.CaptureFixture[bytes], *events: Any, text_only: bool = False) -> RunPrinter:
    printer = RunPrinter(Output(), text_only=text_only)
    for event in events:
        printer.take(event if isinstance(event, str) else json.dumps(event))
    printer.end()
    return printer


CALL = [
    {"type": "TOOL_CALL_START", "toolCallId": "1", "toolCallName": "weather"},
    {"type": "TOOL_CALL_ARGS", "toolCallId": "1", "delta": '{"city": '},
    {"type": "TOOL_CALL_ARGS", "toolCallId": "1", "delta": '"Oslo"}'},
    {"type": "TOOL_CALL_END", "toolCallId": "1"},
    {"type": "TOOL_CALL_RESULT", "toolCallId": "1", "content": "snow,\nmuch"},
]
CHUNKS = [
    {"type": "TOOL_CALL_CHUNK", "toolCallId": "1", "toolCallName": "weather", "delta": "{"},
    {"type": "TOOL_CALL_CHUNK", "delta": "}"},
    {"type": "TOOL_CALL_CHUNK", "toolCallId": "2", "toolCallName": "time", "delta": "{}"},
]
TEXT = [
    {"type": "TEXT_MESSAGE_START", "messageId": "m"},
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "Hello "},
    {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "world"},
    {"type": "TEXT_MESSAGE_END", "messageId": "m"},
]


def test_a_run_is_printed_as_its_text_and_its_tools(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = printed(capsysbinary, {"type": "RUN_STARTED"}, *CALL, *TEXT, {"type": "RUN_FINISHED"})
    assert capsysbinary.readouterr().out == b'weather({"city": "Oslo"})\n-> snow, much\nHello world\n'
    assert (printer.error, printer.withheld) == (None, 2)


def test_calls_in_chunks_end_where_the_next_begins(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    printed(capsysbinary, *CHUNKS)
    assert capsysbinary.readouterr().out == b"weather({})\ntime({})\n"


def test_text_alone_is_printed_where_that_is_asked_for(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    printed(capsysbinary, *CALL, *TEXT, text_only=True)
    assert capsysbinary.readouterr().out == b"Hello world\n"


def test_a_run_that_fails_says_why(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = printed(capsysbinary, *TEXT, {"type": "RUN_ERROR", "message": "no credit", "code": "CREDIT"})
    assert printer.error == "CREDIT: no credit"
    assert error_of({"type": "RUN_ERROR", "message": "no credit"}) == "no credit"


@pytest.mark.parametrize(
    "event",
    ["no JSON", "5", "null", "[]", '{"type": 5}', '{"type": "TOOL_CALL_ARGS", "toolCallId": {}, "delta": 5}', "{}"],
)
def test_nothing_that_an_agent_sends_stops_it(event: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert printed(capsysbinary, event).error is None
    assert capsysbinary.readouterr().out == b""
