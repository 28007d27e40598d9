"""API keys in a file: what a line is, how keys are compared, and how the file is read anew."""

import hmac
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from litestar_agentcore import SettingsError, api_keys
from litestar_agentcore.api_keys import MAX_FILE_BYTES, ApiKeys


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at for each caller."""
    monkeypatch.setattr(api_keys, "LOOK_SECONDS", 0.0)


def keys_in(path: Path, content: str | bytes) -> ApiKeys:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return ApiKeys(str(path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


CONTENT = "# of people\nann:key-of-ann\n\n  bob : x\n\tplain-key  \r\nkey#with-hash\nsvc:a:b\n   # end"


def test_each_line_is_a_key_and_may_have_a_name(file: Path) -> None:
    keys = keys_in(file, CONTENT.replace("  bob : x\n", ""))
    assert keys.name_of("key-of-ann") == (True, "ann")
    assert keys.name_of("plain-key") == (True, None)
    assert keys.name_of("key#with-hash") == (True, None)
    assert keys.name_of("a:b") == (True, "svc")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ann",
        "ann:key-of-ann",
        "key-of-an",
        "key-of-ann ",
        "KEY-OF-ANN",
        "# of people",
        "\x00",
        "\ud800",
        "x" * 99_999,
    ],
)
def test_anything_else_is_no_key(file: Path, key: str) -> None:
    keys = keys_in(file, CONTENT.replace("  bob : x\n", ""))
    assert keys.name_of(key) == (False, None)


def test_keys_are_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_in(file, "right\nother")
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def noting(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    assert [keys.name_of(key)[0] for key in ("right", "wrong", "righ", "")] == [True, False, False, False]
    assert compared == [(32, 32)] * 4


def test_no_key_is_kept_as_it_is(file: Path) -> None:
    assert "right" not in repr(vars(keys_in(file, "right")))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no key in it"),
        ("\n \n# only this\n", "no key in it"),
        ("fine\ntwo words\n", "line 2"),
        ("name:\n", "line 1"),
        ("schlüssel\n", "line 1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a\x07b", "line 1"),
        ("x" * 1025, "line 1"),
        ("same\nname:same\n", "line 2"),
        (b"x" * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error_that_says_where(file: Path, content: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        keys_in(file, content)
    assert f"AGENTCORE_API_KEYS_FILE={str(file)!r}" in str(caught.value)
    assert "two words" not in str(caught.value)


def missing(path: Path) -> None: ...


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [missing, a_directory, a_pipe, a_loop])
def test_what_is_no_file_is_an_error_that_names_it(file: Path, make: Callable[[Path], None]) -> None:
    make(file)
    with pytest.raises(SettingsError, match="AGENTCORE_API_KEYS_FILE=") as caught:
        ApiKeys(str(file))
    assert str(file) in str(caught.value)


# A file that changes


def test_new_keys_are_read_when_the_file_changes(file: Path, always: None) -> None:
    keys = keys_in(file, "old-key")
    file.write_text("new:new-key\n")
    assert keys.name_of("new-key") == (True, "new")
    assert keys.name_of("old-key") == (False, None)


def test_a_file_of_the_same_size_and_time_is_another_by_its_inode(file: Path, always: None) -> None:
    keys = keys_in(file, "old-key")
    before = file.stat()
    other = file.with_name("other")
    other.write_text("new-key")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert keys.name_of("new-key")[0]


def test_a_mounted_secret_is_followed_when_its_directory_is_swapped(tmp_path: Path, always: None) -> None:
    """As Kubernetes does it: ``keys`` -> ``..data/keys``, and ``..data`` is replaced by a rename."""
    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"{version}-key")
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = ApiKeys(str(tmp_path / "keys"))
    assert keys.name_of("first-key")[0]
    (tmp_path / "..next").symlink_to("second")
    (tmp_path / "..next").replace(tmp_path / "..data")
    assert keys.name_of("second-key")[0]
    assert not keys.name_of("first-key")[0]


def test_a_file_that_vanishes_leaves_the_keys_as_they_were_and_says_so_once(
    file: Path, always: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = keys_in(file, "old-key")
    file.unlink()
    assert [keys.name_of("old-key")[0] for _ in range(5)] == [True] * 5
    assert [line for line in caplog.messages if "stay as they were" in line and str(file) in line] == caplog.messages
    assert len(caplog.messages) == 1
    file.write_text("new-key")
    assert keys.name_of("new-key")[0]
    assert "read anew" in caplog.messages[-1]
    file.unlink()
    assert keys.name_of("new-key")[0]
    assert len(caplog.messages) == 3


@pytest.mark.parametrize("content", ["", "two words", "# nothing"])
def test_a_change_that_makes_no_sense_leaves_the_keys_as_they_were(
    file: Path, always: None, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    keys = keys_in(file, "old-key")
    file.write_text(content)
    assert [keys.name_of("old-key")[0] for _ in range(5)] == [True] * 5
    assert len(caplog.messages) == 1
    assert "two words" not in caplog.text
    file.write_text("new-key")
    assert keys.name_of("new-key")[0]


def test_a_file_is_looked_at_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_in(file, "old-key")
    now = time.monotonic()
    monkeypatch.setattr(api_keys, "monotonic", lambda: now)
    keys._looked = now
    file.write_text("new-key")
    assert not keys.name_of("new-key")[0]
    now += api_keys.LOOK_SECONDS
    assert keys.name_of("new-key")[0]
