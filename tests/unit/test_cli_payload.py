"""The payload of an invocation as people give it: JSON as it is, text as a field, a sentence where it is neither."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar_agentcore.cli.payload import Payload, payload_of, read_payload

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_values, st.booleans())
def test_json_is_sent_byte_for_byte(value: Any, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:  # a lone surrogate, which is no UTF-8
        return
    assert payload_of(raw, "prompt", "") == Payload(raw)


@pytest.mark.parametrize("text", ["hi", "what is 3 + 4?", "  hello \n", "true story", "naïve 🐈", "3 apples", "-"])
def test_text_becomes_a_field(text: str) -> None:
    payload = payload_of(text.encode(), "question", "")
    assert payload.is_wrapped_text
    assert json.loads(payload.body) == {"question": text.strip()}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{prompt: hi}", "in line 1, column 2, before 'prompt: hi}'"),
        (b'{"prompt": "hi"', "in line 1, column 16, at its end"),
        (b'{\n  "a" 1\n}', "in line 2"),
        (b"[1, 2", "at its end"),
        (b'"open', "is not JSON"),
        (b"\xff\xfe\xff", "neither JSON nor text in UTF-8"),
    ],
)
def test_what_was_meant_to_be_json_and_is_not_gets_a_sentence(raw: bytes, said: str) -> None:
    with pytest.raises(click.UsageError) as refusal:
        payload_of(raw, "prompt", "that was given")
    assert said in refusal.value.message
    assert "that was given" in refusal.value.message


def test_json_beyond_this_interpreters_limits_is_the_servers_to_refuse() -> None:
    for raw in (b"[" * 100_000 + b"]" * 100_000, b"1" * 5000):
        assert payload_of(raw, "prompt", "") == Payload(raw)


def test_arguments_are_one_text() -> None:
    assert json.loads(read_payload(("tell", "me"), "prompt").body) == {"prompt": "tell me"}


def test_a_file_is_read_and_named_where_it_is_not_json(tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    file.write_bytes(b'{"a": 1}\n')
    assert read_payload((f"@{file}",), "prompt").body == b'{"a": 1}\n'
    file.write_bytes(b"{")
    with pytest.raises(click.UsageError, match=r"in .*payload\.json is not JSON"):
        read_payload((f"@{file}",), "prompt")


@pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_gets_a_sentence(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=reason):
        read_payload((f"@{tmp_path / name}",), "prompt")


@pytest.mark.parametrize("words", [(), ("-",), ("@-",)])
def test_standard_input_is_read_where_it_is_asked_for_or_nothing_is_given(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
    assert read_payload(words, "prompt").body == b'{"a": 1}'


def test_without_any_payload_it_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(click.UsageError, match="There is no payload"):
        read_payload((), "prompt")
