"""The official SDK's names in a process that serves an agent file unchanged: ours to serve, the SDK's own otherwise."""

import importlib
import importlib.util
import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import litestar_agentcore
import pytest
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext
from litestar_agentcore.cli.sdk_imports import PACKAGE, SERVING, serve_sdk_imports
from litestar_agentcore.official_sdk import share_context

INSTALLED = {
    "__init__.py": "raise AssertionError('its own serving names are loaded')",
    "runtime/__init__.py": """
        from .app import BedrockAgentCoreApp
        from .client import Client
        from .context import BedrockAgentCoreContext
        __all__ = ["BedrockAgentCoreApp", "Client", "late"]
        def __getattr__(name):
            if name == "late":
                from . import client
                return client.Client
            raise AttributeError(name)
    """,
    "runtime/app.py": "raise AssertionError('its server is loaded')",
    "runtime/client.py": "class Client: ...",
    "runtime/context.py": "class BedrockAgentCoreContext: ...\nclass Ref: ...",
    "runtime/models.py": "class PingStatus: ...\nSESSION_HEADER = 'session'",
    "identity.py": "from bedrock_agentcore.runtime import BedrockAgentCoreContext",
    "memory/__init__.py": "from .client import MemoryClient",
    "memory/client.py": "from ..runtime.models import PingStatus, SESSION_HEADER\nclass MemoryClient: ...",
}
"""A stand-in for the SDK, with the imports that it has among its modules."""


def loaded() -> list[str]:
    return [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]


@pytest.fixture
def aliases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process serves the SDK's names, and forgets them afterwards."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    serve_sdk_imports()
    yield
    for name in loaded():
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aliases: None) -> Path:
    """The stand-in is installed."""
    for name, source in INSTALLED.items():
        file = tmp_path / PACKAGE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(inspect.cleandoc(source))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / PACKAGE


def imported(statement: str) -> dict[str, Any]:
    """The names that an import statement brings."""
    names: dict[str, Any] = {}
    exec(statement, names)
    del names["__builtins__"]
    return names


@pytest.mark.parametrize("module", SERVING)
@pytest.mark.parametrize("with_sdk", [False, True])
def test_what_serves_is_ours(module: str, with_sdk: bool, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("installed" if with_sdk else "aliases")
    for name in SERVING[module]:
        assert imported(f"from {module} import {name}") == {name: getattr(litestar_agentcore, name)}
    assert importlib.import_module(module).__name__ == module


def test_everything_can_be_imported_at_once_without_the_sdk(aliases: None) -> None:
    for module, names in SERVING.items():
        assert set(imported(f"from {module} import *")) == set(names)


def test_with_the_sdk_everything_is_what_it_says(installed: Path) -> None:
    names = imported("from bedrock_agentcore.runtime import *")
    assert set(names) == {"BedrockAgentCoreApp", "Client", "late"}
    assert names["BedrockAgentCoreApp"] is BedrockAgentCoreApp
    assert names["late"] is names["Client"]


@pytest.mark.parametrize(
    "statement",
    [
        "from bedrock_agentcore.memory import MemoryClient",
        "import bedrock_agentcore.memory.client",
        "from bedrock_agentcore import memory",
        "from bedrock_agentcore.runtime import AgentCoreRuntimeClient",
        "from bedrock_agentcore.runtime import shell",
        "from bedrock_agentcore.runtime.models import SESSION_HEADER",
        "from bedrock_agentcore.runtime.context import ConfigBundleRef",
        "from bedrock_agentcore.runtime.app import logger",
    ],
)
def test_without_the_sdk_its_own_names_are_an_error_that_says_what_to_install(statement: str, aliases: None) -> None:
    with pytest.raises(ImportError, match=r"is not installed: `pip install bedrock-agentcore`") as caught:
        imported(statement)
    assert caught.value.name == PACKAGE


def test_without_the_sdk_who_asks_whether_a_name_is_there_is_told_no(aliases: None) -> None:
    runtime = importlib.import_module("bedrock_agentcore.runtime")
    assert not hasattr(runtime, "AgentCoreRuntimeClient")
    assert getattr(runtime, "shell", None) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.util.find_spec("bedrock_agentcore.memory")


def test_the_sdks_own_names_are_the_installed_ones(installed: Path) -> None:
    client = imported("from bedrock_agentcore.runtime import Client")["Client"]
    assert inspect.getsourcefile(client) == str(installed / "runtime" / "client.py")
    memory = imported("from bedrock_agentcore.memory import MemoryClient")["MemoryClient"]
    assert inspect.getsource(memory) == "class MemoryClient: ...\n"
    assert imported("from bedrock_agentcore.runtime.models import SESSION_HEADER") == {"SESSION_HEADER": "session"}
    assert imported("from bedrock_agentcore.runtime.context import Ref")["Ref"].__name__ == "Ref"
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        imported("from bedrock_agentcore.runtime import Nothing")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'bedrock_agentcore\.nothing'"):
        imported("import bedrock_agentcore.nothing")


def test_the_sdks_own_modules_have_our_context_and_status(installed: Path) -> None:
    identity = importlib.import_module("bedrock_agentcore.identity")
    assert identity.BedrockAgentCoreContext is BedrockAgentCoreContext
    client = importlib.import_module("bedrock_agentcore.memory.client")
    assert client.PingStatus is litestar_agentcore.PingStatus


def test_what_nobody_asks_for_is_not_loaded(installed: Path) -> None:
    imported("from bedrock_agentcore.runtime import BedrockAgentCoreApp")
    assert sorted(loaded()) == ["bedrock_agentcore", "bedrock_agentcore.runtime"]


@pytest.mark.parametrize("with_sdk", [False, True])
@pytest.mark.parametrize("module", SERVING)
def test_reloading_gives_ours_again(module: str, with_sdk: bool, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("installed" if with_sdk else "aliases")
    BedrockAgentCoreApp()  # which shares the context of an SDK that is loaded
    reloaded = importlib.reload(importlib.import_module(module))
    for name in SERVING[module]:
        assert getattr(reloaded, name) is getattr(litestar_agentcore, name)


def test_sharing_the_context_leaves_ours_as_it_is(aliases: None) -> None:
    before = dict(vars(BedrockAgentCoreContext))
    share_context()
    importlib.import_module("bedrock_agentcore.runtime.context")
    share_context()
    assert dict(vars(BedrockAgentCoreContext)) == before


def test_what_is_pickled_is_found_again_by_its_name_here_and_on_the_reference(aliases: None) -> None:
    status = imported("from bedrock_agentcore.runtime.models import PingStatus")["PingStatus"].HEALTHY_BUSY
    assert pickle.loads(pickle.dumps(status)) is litestar_agentcore.PingStatus.HEALTHY_BUSY
    theirs = b"cbedrock_agentcore.runtime.models\nPingStatus\n(S'Healthy'\ntR."
    assert pickle.loads(theirs) is litestar_agentcore.PingStatus.HEALTHY


def test_the_source_of_a_class_is_ours(aliases: None) -> None:
    app = imported("from bedrock_agentcore import BedrockAgentCoreApp")["BedrockAgentCoreApp"]
    assert inspect.getsourcefile(app) == litestar_agentcore.app.__file__
    module = importlib.import_module("bedrock_agentcore")
    assert (inspect.getsourcefile(module) or "").endswith("cli/sdk_imports.py")


def test_what_was_imported_before_is_imported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setitem(sys.modules, PACKAGE, ModuleType(PACKAGE))
    monkeypatch.setitem(sys.modules, "bedrock_agentcore.runtime", ModuleType("bedrock_agentcore.runtime"))
    serve_sdk_imports()
    serve_sdk_imports()
    assert imported("from bedrock_agentcore.runtime import PingStatus")["PingStatus"] is litestar_agentcore.PingStatus
    assert len([finder for finder in sys.meta_path if type(finder).__module__.endswith("sdk_imports")]) == 1


def test_importing_the_package_or_its_commands_changes_no_import() -> None:
    program = (
        "import sys; before = list(sys.meta_path); import litestar_agentcore.cli.console, litestar_agentcore.cli.run;"
        "import litestar_agentcore.cli.doctor; assert sys.meta_path == before; assert 'boto3' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
