"""The rows of the table that send nothing: the console, and nothing at all."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.backends.agents import HTTP, agent
from tests.backends.collector import collector
from tests.e2e.trace_promises import invoke, new_session, spans_of


def test_the_console_gets_each_span_as_an_object_of_json() -> None:
    session = new_session()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout:
        with agent("tests.e2e.tracing_agent:app", stdout, OTEL_TRACES_EXPORTER="console") as server:
            request_id = invoke(server, session, do="async function")
            server.terminate()
        stdout.seek(0)
        spans = {span["name"]: span for span in _objects(stdout.read())}
    assert spans.keys() == {"step", "POST /invocations"}
    assert spans["step"]["parent_id"] == spans["POST /invocations"]["context"]["span_id"]
    assert spans["step"]["attributes"] == {
        "session.id": session,
        "gen_ai.conversation.id": session,
        "request.id": request_id,
    }


def test_the_console_and_a_backend_get_the_same_spans(tmp_path: Path) -> None:
    session = new_session()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout, collector(tmp_path) as backend:
        both = backend.endpoint(HTTP) | {"OTEL_TRACES_EXPORTER": "otlp,console"}
        with agent("tests.e2e.tracing_agent:app", stdout, **both) as server:
            invoke(server, session, do="async function")
            sent = spans_of(backend, session, 2)
            server.terminate()
        stdout.seek(0)
        written = {span["name"]: span["context"]["span_id"] for span in _objects(stdout.read())}
    assert written == {name: f"0x{span.span_id}" for name, span in sent.items()}


def test_disabled_it_sends_and_writes_nothing(tmp_path: Path) -> None:
    silent, heard = new_session(), new_session()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout, collector(tmp_path) as backend:
        everything = backend.endpoint(HTTP) | {"OTEL_TRACES_EXPORTER": "otlp,console"}
        with agent("tests.e2e.tracing_agent:app", stdout, **everything, OTEL_SDK_DISABLED="true") as server:
            invoke(server, silent, do="async function")
            server.terminate()
        with agent(**backend.endpoint(HTTP)) as server:  # what was sent before is there when this is
            invoke(server, heard, do="async function")
            spans_of(backend, heard, 2)
        assert {span.attributes["session.id"] for span in backend.spans()} == {heard}
        stdout.seek(0)
        assert list(_objects(stdout.read())) == []


def _objects(text: str) -> list[dict[str, Any]]:
    """The objects that stand in a text one after another, between lines that are none."""
    decoder, found, position = json.JSONDecoder(), [], 0
    while (position := text.find("{\n", position)) >= 0:
        value, position = decoder.raw_decode(text, position)
        found.append(value)
    return found
