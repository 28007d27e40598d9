"""An agent's file: found, imported, and the application in it.

It is imported as a server imports it, not under the name ``__main__``: what stands under ``if __name__ ==
"__main__":`` does not run. Before that, the official SDK's serving names are made ours (:mod:`.sdk_imports`).
"""

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import msgspec
import rich_click as click
from litestar import Litestar

from litestar_agentcore.app import BedrockAgentCoreApp
from litestar_agentcore.cli.sdk_imports import serve_sdk_imports
from litestar_agentcore.plugin import AgentCorePlugin
from litestar_agentcore.protocol.recognition import PORTS
from litestar_agentcore.protocol.settings import SettingsError

PACKAGE_DIRECTORY = str(Path(__file__).parents[1])

CALL_RUN_GUARDED = 'it must call app.run() under `if __name__ == "__main__":`'

LIKELY_FILES = ("agent.py", "app.py", "main.py")
"""What an agent's file is called most often, the likeliest first."""

RunCall = Callable[..., None]
"""What takes the place of ``BedrockAgentCoreApp.run`` while the file is imported."""


class AgentFile(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent is, as a command line says it."""

    text: str
    """As it was written, without the variable."""

    path: Path | None
    """The file; ``None`` where a module is named."""

    module: str
    """The name under which it is imported."""

    directories: tuple[Path, ...]
    """What is searched for the modules that it imports, before everything else."""

    variable: str | None
    """The application's variable, or a function that returns it."""

    @classmethod
    def parse(cls, text: str) -> "AgentFile":
        """Find what a command line names.

        Args:
            text: ``agent.py``, ``agent.py:app``, ``package.module`` or ``package.module:app``.

        Raises:
            click.UsageError: There is no such file or module.
        """
        name, separator, variable = text.rpartition(":")
        if not separator or not re.fullmatch(r"\w+(\.\w+)*", variable):
            name, variable = text, ""
        if not name:
            raise click.UsageError("The name of the agent's file is empty")
        path = Path(name)
        if path.is_dir():
            raise click.UsageError(f"{name} is a directory: name the agent's file, as in {_file_in(path)}")
        if path.suffix != ".py" and not path.exists() and re.fullmatch(r"\w+(\.\w+)*", name):
            return cls._of_module(name, variable or None)
        if not path.is_file():
            raise click.UsageError(f"There is no file {name}")
        if path.suffix != ".py":
            raise click.UsageError(f"{name} is not Python: its name does not end in .py")
        path = path.resolve()
        root, module = path.parent, path.stem
        while (root / "__init__.py").exists():
            root, module = root.parent, f"{root.name}.{module}"
        directories = tuple(dict.fromkeys((path.parent, root)))
        return cls(text=name, path=path, module=module, directories=directories, variable=variable or None)

    @classmethod
    def _of_module(cls, name: str, variable: str | None) -> "AgentFile":
        here = Path.cwd()
        top = name.partition(".")[0]
        if top not in sys.modules and PathFinder.find_spec(top, [str(here), *sys.path]) is None:
            raise click.UsageError(f"There is no module {top} here or installed, and no file {name}")
        return cls(text=name, path=None, module=name, directories=(here,), variable=variable)

    @property
    def directory(self) -> Path:
        """Where the agent's own code is."""
        return self.directories[0]

    @property
    def absolute(self) -> str:
        """What names it from any working directory."""
        return ":".join(filter(None, [str(self.path or self.module), self.variable]))

    def __str__(self) -> str:
        return self.text if self.variable is None else f"{self.text}:{self.variable}"


class ImportFailed(click.ClickException):
    """An agent's file raised when it was imported.

    Args:
        agent: The file.
        error: What was raised.
    """

    def __init__(self, agent: AgentFile, error: BaseException) -> None:
        self.error = error
        if isinstance(error, SettingsError):
            super().__init__(str(error))
        else:
            super().__init__(f"{agent.text} cannot be imported: {''.join(_exception_only(error))}")

    def write_traceback(self) -> None:
        """Write where it was raised, in the author's code and what that calls, to standard error."""
        if not isinstance(self.error, SettingsError):
            sys.stderr.write("".join(traceback_of(self.error)))


def load(agent: AgentFile, run: RunCall | None = None) -> Litestar:
    """Import an agent's file.

    The process's import path and, for ``sys.argv``, its arguments become those of ``python agent.py``.

    Args:
        agent: The file.
        run: Called in the place of ``app.run()``, with the same arguments, where the file calls that while it is
            imported; by default that is an error.

    Returns:
        The application, whose agent is served.

    Raises:
        ImportFailed: The file raised.
        click.ClickException: The file has no application, or several.
    """
    serve_sdk_imports()
    _set_import_path(agent.directories)
    sys.argv[:] = [agent.text]
    try:
        with _instead_of_run(run or _refuse_to_run):
            module = _import(agent)
            return application_in(module, agent)
    except Exception as error:
        if isinstance(error, click.ClickException):
            raise
        raise ImportFailed(agent, error) from error


def application_in(module: ModuleType, agent: AgentFile) -> Litestar:
    """Find the application in an agent's module.

    Args:
        module: The imported module.
        agent: How it was named.

    Raises:
        click.ClickException: There is none, or which of several is meant is not said.
    """
    found: dict[str, Litestar] = {}
    for name, value in vars(module).items():
        if isinstance(value, Litestar) and not any(value is other for other in found.values()):
            found[name] = value
    if agent.variable is not None:
        return _application_named(agent.variable, module, agent, found)
    if len(found) > 1:
        names = " or ".join(f"{agent.text}:{name}" for name in found)
        raise click.ClickException(f"{agent.text} has {len(found)} applications: say which one, {names}")
    if not found:
        raise click.ClickException(
            f"{agent.text} has no application: no variable of it is a BedrockAgentCoreApp or a Litestar. One that is"
            f' made in a function, or under `if __name__ == "__main__":`, is not found; a function that returns it can'
            f" be named, as in {agent.text}:create_app"
        )
    ((name, app),) = found.items()
    return _with_agent(app, f"{agent.text}:{name}")


def plugin_of(app: Litestar) -> AgentCorePlugin:
    """The plugin that serves an application's agent.

    Args:
        app: The application, which has one.
    """
    return app.plugins.get(AgentCorePlugin)


def traceback_of(error: BaseException) -> Iterator[str]:
    """The lines of a traceback without the frames of this package and of Python's import system.

    Args:
        error: What was raised.
    """
    pending: list[traceback.TracebackException | None] = [(whole := traceback.TracebackException.from_exception(error))]
    while pending:
        if (part := pending.pop()) is not None:
            frames = [frame for frame in part.stack if not _is_ours(frame.filename)]
            part.stack = traceback.StackSummary.from_list(frames)
            pending += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or [])]
    return whole.format()


def _is_ours(filename: str) -> bool:
    return filename.startswith((PACKAGE_DIRECTORY + os.sep, "<frozen ")) or filename == importlib.__file__


def _exception_only(error: BaseException) -> Iterator[str]:
    lines = list(traceback.TracebackException.from_exception(error).format_exception_only())
    yield lines[-1].strip()
    if isinstance(error, ImportError) and "relative import" in str(error):
        yield ". A module that uses relative imports is named with its package, as in package.module:app"


def _application_named(variable: str, module: ModuleType, agent: AgentFile, found: dict[str, Litestar]) -> Litestar:
    value: Any = module
    for part in variable.split("."):
        value = getattr(value, part, None)
        if value is None:
            known = f"; it has {', '.join(found)}" if found else ""
            raise click.ClickException(f"{agent.text} has no {variable}{known}")
    if not isinstance(value, Litestar) and callable(value):
        value = value()
    if not isinstance(value, Litestar):
        raise click.ClickException(f"{agent} is of type {type(value).__name__}, and no BedrockAgentCoreApp or Litestar")
    return _with_agent(value, str(agent))


def default_port(app: Litestar) -> int:
    """The port on which AgentCore Runtime expects an application: that of its only protocol, or else of plain HTTP.

    Args:
        app: An application with an agent.
    """
    plugin = plugin_of(app)
    ports = [port for protocol, port in PORTS.items() if plugin.serves_protocol(protocol)]
    return ports[0] if len(ports) == 1 else PORTS["http"]


def _with_agent(app: Litestar, name: str) -> Litestar:
    if not any(isinstance(plugin, AgentCorePlugin) for plugin in app.plugins):
        raise click.ClickException(f"{name} is a Litestar application without an agent: give it an AgentCorePlugin")
    return app


def _import(agent: AgentFile) -> ModuleType:
    if agent.path is None or "." in agent.module:
        return importlib.import_module(agent.module)
    # A name that another module has already, as in json.py, is that one's.
    name = f"agent_file_{agent.module}" if agent.module in sys.modules else agent.module
    spec = importlib.util.spec_from_file_location(name, agent.path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{agent.path} cannot be loaded", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _set_import_path(directories: tuple[Path, ...]) -> None:
    first = 0 if sys.flags.safe_path else 1  # then the script's directory is not there
    own = [str(directory) for directory in directories]
    sys.path[:] = own + [entry for entry in sys.path[first:] if entry not in own]


@contextmanager
def _instead_of_run(run: RunCall) -> Iterator[None]:
    """Have ``app.run()`` call something else while the block runs."""
    original = BedrockAgentCoreApp.run
    BedrockAgentCoreApp.run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        BedrockAgentCoreApp.run = original  # type: ignore[method-assign]


def _refuse_to_run(*_: Any, **__: Any) -> NoReturn:
    raise click.ClickException(f"A process that serves the file only imports it: {CALL_RUN_GUARDED}")


def _file_in(directory: Path) -> Path:
    """A Python file in a directory, the likeliest one."""
    names = [path.name for path in sorted(directory.glob("*.py")) if path.name != "__init__.py"]
    likely = [name for name in LIKELY_FILES if name in names]
    return directory / [*likely, *names, "agent.py"][0]
