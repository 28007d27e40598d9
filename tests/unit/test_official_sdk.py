"""The official SDK's context in the same process, whenever it is loaded: a stand-in module shows how."""

import asyncio
import importlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, BedrockAgentCoreContext
from litestar_agentcore.official_sdk import MODULE, share_context
from litestar_agentcore.protocol.context import RequestValues, current_request

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, events

STAND_IN = '''
from contextvars import ContextVar

executions = 0
executions += 1


class BedrockAgentCoreContext:
    """Like the official SDK's, of an older release that has fewer methods, and one that we do not have."""

    _token = ContextVar("token", default=None)
    _request_id = ContextVar("request_id", default=None)
    _session_id = ContextVar("session_id", default=None)

    @classmethod
    def set_workload_access_token(cls, token):
        cls._token.set(token)

    @classmethod
    def get_workload_access_token(cls):
        return cls._token.get()

    @classmethod
    def set_request_context(cls, request_id, session_id=None):
        cls._request_id.set(request_id)
        cls._session_id.set(session_id)

    @classmethod
    def get_request_id(cls):
        return cls._request_id.get()

    @classmethod
    def get_session_id(cls):
        return cls._session_id.get()

    @classmethod
    def get_something_new(cls):
        return "new"
'''
PACKAGES = ("bedrock_agentcore", "bedrock_agentcore.runtime")
TOKEN = "X-Amz-Bedrock-AgentCore-Identity-WAT"


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in, ready to be imported."""
    directory = tmp_path / "bedrock_agentcore" / "runtime"
    directory.mkdir(parents=True)
    (directory.parent / "__init__.py").write_text("")
    (directory / "__init__.py").write_text("from .context import BedrockAgentCoreContext")
    (directory / "context.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    token = current_request.set(RequestValues())
    yield directory / "context.py"
    current_request.reset(token)
    for name in (MODULE, *reversed(PACKAGES)):
        sys.modules.pop(name, None)


def imported() -> Any:
    return importlib.import_module("bedrock_agentcore.runtime").BedrockAgentCoreContext


def seen() -> list[Any]:
    """What an identity decorator, imported just now, sees of the request."""
    theirs = imported()
    return [theirs.get_request_id(), theirs.get_session_id(), theirs.get_workload_access_token()]


def plain(payload: Any) -> Any:
    return seen()


async def coroutine(payload: Any) -> Any:
    await asyncio.sleep(0)
    return seen()


def generator(payload: Any) -> Iterator[Any]:
    yield seen()
    yield seen()


async def async_generator(payload: Any) -> AsyncIterator[Any]:
    yield seen()
    await asyncio.sleep(0)
    yield seen()


async def tasks(payload: Any) -> Any:
    task = asyncio.create_task(coroutine(payload))
    return [await asyncio.to_thread(seen), await task]


@pytest.mark.parametrize("handler", [plain, coroutine, generator, async_generator, tasks])
def test_imported_in_the_handler_it_shows_the_first_request_and_each_other(
    handler: Callable[[Any], Any], sdk: Path, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(handler)
    assert MODULE not in sys.modules

    for number in range(3):
        headers = {REQUEST_ID: f"r{number}", SESSION_ID: f"s{number}", TOKEN: f"t{number}"}
        response = client.post("/invocations", json={}, headers=headers)
        answers = events(response) if "event-stream" in response.headers["content-type"] else response.json()
        expected = [f"r{number}", f"s{number}", f"t{number}"]
        assert answers == (expected if handler in {plain, coroutine} else [expected] * 2)

    without = client.post("/invocations", json={}, headers={REQUEST_ID: "r"})
    assert '"r",null,null' in without.text


def test_of_requests_that_are_served_at_once_each_sees_its_own(
    sdk: Path, app: BedrockAgentCoreApp, client: Client
) -> None:
    everyone = threading.Barrier(8)

    @app.entrypoint
    def handler(payload: Any) -> Any:
        everyone.wait(30)
        return seen()

    answers: dict[int, Any] = {}

    def call(number: int) -> None:
        headers = {REQUEST_ID: f"r{number}", SESSION_ID: f"s{number}", TOKEN: f"t{number}"}
        answers[number] = client.post("/invocations", json={}, headers=headers).json()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: [f"r{number}", f"s{number}", f"t{number}"] for number in range(8)}


def test_what_is_set_in_one_is_seen_in_the_other_for_that_request_alone(
    sdk: Path, app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.entrypoint
    async def handler(payload: Any) -> Any:
        theirs = imported()
        before = theirs.get_workload_access_token()
        theirs.set_workload_access_token(payload)
        theirs.set_request_context("changed")
        return [before, BedrockAgentCoreContext.get_workload_access_token(), *seen()]

    for token in ("one", "two"):
        answer = client.post("/invocations", json=token, headers={SESSION_ID: "s"}).json()
        assert answer == [None, token, "changed", None, token]


@pytest.mark.parametrize("make", [BedrockAgentCoreApp, AgentCorePlugin, share_context])
def test_loaded_before_the_application_it_is_shared_too_with_what_was_set(make: Callable[[], Any], sdk: Path) -> None:
    theirs = imported()
    theirs.set_workload_access_token("of the laptop")
    make()
    assert BedrockAgentCoreContext.get_workload_access_token() == "of the laptop"
    app = BedrockAgentCoreApp()
    app.entrypoint(plain)
    with TestClient(app) as client:
        assert client.post("/invocations", json={}, headers={REQUEST_ID: "r"}).json() == ["r", None, "of the laptop"]
    BedrockAgentCoreContext.set_request_context("r", "s")
    assert seen() == ["r", "s", "of the laptop"]


def test_what_only_the_sdk_has_stays_as_it_is(sdk: Path) -> None:
    share_context()
    theirs = imported()
    assert theirs.get_something_new() == "new"
    assert not hasattr(theirs, "get_config_bundle")


def test_the_module_is_loaded_as_it_would_be_without_us(sdk: Path) -> None:
    share_context()
    module = importlib.import_module(MODULE)
    assert module.executions == 1
    assert module.__file__ == str(sdk)
    assert type(module.__loader__) is type(importlib.import_module("json").__loader__)
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert module.BedrockAgentCoreContext.__doc__.startswith("Like the official SDK's")


def test_an_import_that_fails_fails_as_it_would(sdk: Path) -> None:
    share_context()
    sdk.write_text("raise RuntimeError('broken')")
    with pytest.raises(RuntimeError, match="broken"):
        imported()
    assert MODULE not in sys.modules


def test_a_module_without_the_class_is_left_alone(sdk: Path) -> None:
    share_context()
    sdk.write_text("")
    assert not hasattr(importlib.import_module("bedrock_agentcore"), "BedrockAgentCoreContext")
    with pytest.raises(ImportError):
        imported()


def test_it_is_looked_for_once_however_many_applications_there_are() -> None:
    for _ in range(3):
        BedrockAgentCoreApp()
    assert len([finder for finder in sys.meta_path if type(finder).__module__ == share_context.__module__]) == 1


def test_an_application_loads_nothing_of_the_sdk_and_importing_us_changes_no_import() -> None:
    program = (
        "import sys; before = list(sys.meta_path); import litestar_agentcore; assert sys.meta_path == before;"
        "litestar_agentcore.BedrockAgentCoreApp(); assert 'bedrock_agentcore' not in sys.modules;"
        "assert 'boto3' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
