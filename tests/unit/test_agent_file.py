"""What a command line names as an agent, and which application is served of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner
from litestar import Litestar
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp
from litestar_agentcore.cli.agent_file import AgentFile, ImportFailed, application_in, load, traceback_of
from litestar_agentcore.cli.group import agent_group
from litestar_agentcore.cli.run import run
from litestar_agentcore.cli.sdk_imports import PACKAGE

APP = "from bedrock_agentcore.runtime import BedrockAgentCoreApp\napp = BedrockAgentCoreApp()\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory is empty, and what loading a file changes in this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = set(sys.modules)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name not in before and (name.startswith(PACKAGE) or file.startswith(str(tmp_path))):
            del sys.modules[name]


def write(name: str, source: str = APP) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(source)


def loaded(text: str, **options: Any) -> Litestar:
    return load(AgentFile.parse(text), **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agent.py", "There is no file agent.py"),
        ("agent.py:app", "There is no file agent.py"),
        ("there/is/none.py", "There is no file there/is/none.py"),
        ("empty", "empty is a directory: name the agent's file, as in empty/agent.py"),
        ("full", "full is a directory: name the agent's file, as in full/main.py"),
        ("notes.txt", "notes.txt is not Python: its name does not end in .py"),
        ("nothing_of_that_name", "There is no module nothing_of_that_name here or installed"),
        ("nothing_of_that_name.agent:app", "There is no module nothing_of_that_name here or installed"),
        ("", "The name of the agent's file is empty"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(text: str, says: str) -> None:
    Path("empty").mkdir()
    write("full/main.py")
    write("full/a.py")
    write("notes.txt", "no Python")
    with pytest.raises(click.UsageError) as caught:
        AgentFile.parse(text)
    assert says in caught.value.message


def test_a_file_is_imported_with_its_neighbours_and_not_as_main(here: Path) -> None:
    write("agents/tools.py", "price = 7")
    write("agents/agent.py", f"import sys, tools\n{APP}app.seen = (__name__, tools.price, sys.path[0], sys.argv)")
    app: Any = loaded("agents/agent.py")
    assert app.seen == ("agent", 7, str(here / "agents"), ["agents/agent.py"])
    assert sys.modules["agent"].app is app


def test_a_file_of_a_package_may_import_relatively_and_from_beside_it() -> None:
    write("pack_of_agents/__init__.py", "")
    write("pack_of_agents/tools.py", "price = 7")
    write("pack_of_agents/agent.py", f"from .tools import price\nimport tools\n{APP}app.seen = (__name__, tools.price)")
    app: Any = loaded("pack_of_agents/agent.py")
    assert app.seen == ("pack_of_agents.agent", 7)


def test_a_module_is_imported_from_the_current_directory() -> None:
    write("pack_of_services/deep/agent.py")
    assert isinstance(loaded("pack_of_services.deep.agent:app"), BedrockAgentCoreApp)
    assert isinstance(loaded("pack_of_services.deep.agent"), BedrockAgentCoreApp)


def test_a_file_with_the_name_of_another_module_leaves_that_one_alone() -> None:
    import json

    write("json.py")
    loaded("json.py")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("one.py", APP),
        ("same.py", f"{APP}again = app"),
        ("named.py:second", f"{APP}second = BedrockAgentCoreApp()"),
        ("made.py:make", "from bedrock_agentcore import *\ndef make():\n    return BedrockAgentCoreApp()"),
        ("held.py:Held.app", f"{APP}class Held:\n    app = app\nother = BedrockAgentCoreApp()"),
        ("guarded.py", f"{APP}if __name__ == '__main__':\n    raise SystemExit(1)"),
        (
            "plugin.py",
            "import litestar, litestar_agentcore as l\napp = litestar.Litestar(plugins=[l.AgentCorePlugin(str)])",
        ),
    ],
)
def test_the_application_is_found(text: str, source: str) -> None:
    write(text.partition(":")[0], source)
    assert isinstance(loaded(text), Litestar)


@pytest.mark.parametrize(
    ("text", "source", "says"),
    [
        ("none.py", "", "none.py has no application"),
        ("inside.py", "def main():\n    app = 1", "named, as in inside.py:create_app"),
        ("two.py", f"{APP}b = BedrockAgentCoreApp()", "2 applications: say which one, two.py:app or two.py:b"),
        ("other.py:ap", APP, "other.py has no ap; it has app"),
        ("number.py:n", "n = 1", "number.py:n is of type int, and no BedrockAgentCoreApp or Litestar"),
        ("bare.py", "from litestar import Litestar\napp = Litestar()", "without an agent: give it an AgentCorePlugin"),
        ("runs.py", f"{APP}app.run()", 'must call app.run() under `if __name__ == "__main__":`'),
        ("handler.py", f"{APP}@app.entrypoint\ndef f(p): ...\nf.run()", "must call app.run() under"),
    ],
)
def test_where_it_is_not_clear_a_sentence_says_what_to_do(text: str, source: str, says: str) -> None:
    write(text.partition(":")[0], source)
    with pytest.raises(click.ClickException) as caught:
        loaded(text)
    assert says in caught.value.message
    assert not isinstance(caught.value, ImportFailed)


def test_a_call_of_run_while_the_file_is_imported_is_handed_over_with_its_arguments() -> None:
    calls: list[Any] = []
    write("runs.py", f"{APP}app.run(9000, host='::1')\nafter = 1")
    app = loaded("runs.py", run=lambda *arguments, **options: calls.append((arguments, options)))
    assert calls == [((app, 9000), {"host": "::1"})]
    original = BedrockAgentCoreApp.run
    assert original.__name__ == "run"


RAISING = {
    "zero.py": ("def f():\n    return 1 / 0\n\nf()", "ZeroDivisionError: division by zero", ["line 4", "line 2"]),
    "handler.py": (f"{APP}\n@app.entrypoint\ndef f(): ...", "TypeError: ", ["line 4"]),
    "syntax.py": ("x = (", "SyntaxError: ", []),
    "missing.py": ("import nothing_of_that_name", "No module named 'nothing_of_that_name'", ["line 1"]),
    "relative.py": ("from .tools import price", "named with its package, as in package.module:app", ["line 1"]),
    "cause.py": ("try:\n    1 / 0\nexcept ValueError: ...\nfinally:\n    [][1]", "IndexError", ["line 2", "line 5"]),
}


@pytest.mark.parametrize("name", RAISING)
def test_the_traceback_of_a_file_that_raises_has_the_authors_lines_alone(name: str) -> None:
    source, says, lines = RAISING[name]
    write(name, source)
    with pytest.raises(ImportFailed) as caught:
        loaded(name)
    assert says in caught.value.message
    text = "".join(traceback_of(caught.value.error))
    found = [line for line in text.splitlines() if line.startswith("  File ") and "in " in line]
    assert len(found) == len(lines)
    assert all(place in line and name in line for place, line in zip(lines, found, strict=True))
    assert name.removesuffix(".py") not in sys.modules


def test_a_setting_that_makes_no_sense_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "many")
    write("agent.py")
    with pytest.raises(ImportFailed) as caught:
        loaded("agent.py")
    assert caught.value.message.startswith("AGENTCORE_SYNC_THREADS='many' makes no sense: ")
    caught.value.write_traceback()
    assert capsys.readouterr().err == ""


def test_an_application_of_another_module_counts_too() -> None:
    module = ModuleType("agent")
    vars(module)["app"] = app = Litestar(plugins=[AgentCorePlugin(str)])
    write("agent.py", "")
    assert application_in(module, AgentFile.parse("agent.py")) is app


# The command


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(run, arguments, env={"COLUMNS": "200", "WEB_CONCURRENCY": ""})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument"),
        (("agent.py", "--port", "http"), "is not a valid integer range"),
        (("agent.py", "--port", "70000"), "70000 is not in the range"),
        (("agent.py", "--workers", "0"), "0 is not in the range"),
        (("agent.py", "--workers", "2", "--reload"), "--reload serves with one process"),
        (("nothing.py",), "There is no file nothing.py"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(arguments: tuple[str, ...], says: str) -> None:
    write("agent.py")
    result = invoked(*arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_group_has_each_command_with_a_line_on_what_it_does() -> None:
    result = CliRunner().invoke(agent_group, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for line in ("Serve an agent's file", "Look at an agent's file"):
        assert line in result.output


def test_a_broken_application_of_litestars_is_no_hindrance(here: Path) -> None:
    """Litestar imports one before each of its commands: ``app.py``, or what ``LITESTAR_APP`` names."""
    write("app.py", "1 / 0")
    write("agent.py", "import os\nraise SystemExit(os.environ['LITESTAR_APP'])")
    litestar = Path(sys.executable).with_name("litestar")
    environment = os.environ | {"LITESTAR_APP": "nothing_of_that_name:app"}
    done = subprocess.run(
        [litestar, "agent", "run", "agent.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines() == ["nothing_of_that_name:app"], "which the agent itself still sees"
    assert done.returncode == 1
