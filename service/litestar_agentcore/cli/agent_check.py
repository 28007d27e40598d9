"""Whether an agent's file can be imported, how its handlers will run, and who has set up logging and authentication."""

import builtins
import inspect
import logging
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click
from agentcore_telemetry.log_handlers import StandardErrorHandler

from litestar_agentcore.app import BedrockAgentCoreApp
from litestar_agentcore.cli.agent_file import CALL_RUN_GUARDED, AgentFile, ImportFailed, load, plugin_of
from litestar_agentcore.cli.findings import Finding
from litestar_agentcore.plugin import AgentCorePlugin
from litestar_agentcore.protocol.recognition import PORTS, TITLES
from litestar_agentcore.protocol.settings import variable_of
from litestar_agentcore.protocols import ProtocolPlugin
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.handler import Handler, name_of

if TYPE_CHECKING:
    from litestar import Litestar

SLOW_SECONDS = 0.2
"""An import that takes longer is named."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Ran(BaseException):
    """Ends the import of a file where it calls ``app.run()``. No ``Exception``, lest the file catches it."""

    def __init__(self, app: BedrockAgentCoreApp) -> None:
        self.app = app


class _SlowImports:
    """Measures, of the modules that an agent's own code imports, how long each takes with all that it imports."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._depth = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measured(self) -> Iterator[None]:
        original = builtins.__import__

        def measuring(
            name: str,
            globals: Mapping[str, Any] | None = None,  # noqa: A002 - the name that it has
            *arguments: Any,
            **keywords: Any,
        ) -> Any:
            file = str((globals or {}).get("__file__") or "")
            if self._depth or not _is_in(file, self._directory):
                return original(name, globals, *arguments, **keywords)
            self._depth, began = 1, time.perf_counter()
            try:
                return original(name, globals, *arguments, **keywords)
            finally:
                self._depth = 0
                self.seconds[name.partition(".")[0]] += time.perf_counter() - began

        builtins.__import__ = measuring
        try:
            yield
        finally:
            builtins.__import__ = original

    def __str__(self) -> str:
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])[:5]
        slow = [(name, seconds) for name, seconds in longest if seconds >= SLOW_SECONDS]
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slow)


class AgentCheck:
    """Imports an agent's file and looks at its application.

    Args:
        agent: The file.
    """

    def __init__(self, agent: AgentFile) -> None:
        self._agent = agent
        self.app: Litestar | None = None
        """The application, once it has been imported."""

    def load(self) -> Iterator[Finding]:
        """Import the file."""

        def run(app: BedrockAgentCoreApp, *_: Any, **__: Any) -> None:
            raise _Ran(app)

        slow, began = _SlowImports(str(self._agent.directory)), time.perf_counter()
        try:
            with slow.measured():
                self.app = load(self._agent, run)
        except _Ran as ran:
            self.app = ran.app
            advice = f"With --workers and --reload {CALL_RUN_GUARDED}"
            yield Finding("warning", "agent", f"{self._agent} calls app.run() while it is imported", f"{advice}.")
        except ImportFailed as failed:
            yield Finding("failure", "agent", f"{failed.message}{_place(failed.error, str(self._agent.directory))}")
        except click.ClickException as error:
            yield Finding("failure", "agent", error.message)
        except SystemExit as error:
            code = "" if error.code is None else f" ({error.code})"
            yield Finding("failure", "agent", f"{self._agent} ends the process when it is imported{code}")
        else:
            took = time.perf_counter() - began
            longest = f"; longest: {slow}" if str(slow) else ""
            yield Finding("ok", "agent", f"{self._agent} is imported in {took:.2f} s{longest}")

    def check_handlers(self) -> Iterator[Finding]:
        """Look at what is registered."""
        if self.app is None:
            return
        plugin = plugin_of(self.app)
        agent = plugin.agent
        yield from _protocols_of(plugin)
        for other in self.app.plugins:
            if isinstance(other, ProtocolPlugin) and plugin.serves_protocol(other.protocol):
                yield from _handler_of(other)
        if plugin.serves_protocol("http"):
            yield from _handlers_of(agent)
        custom = agent.health.function
        limit = agent.settings.ping_timeout_seconds
        by = "by the tasks that run" if custom is None else f"{name_of(custom)}, within {limit:g} s"
        yield Finding("ok", "ping", f"/ping: {by}")
        if self.app.debug:
            text = "on: payloads may ask for debug actions"
            yield Finding("warning", "debug mode", text, "Leave debug=True out where others can reach the agent.")

    def check_authentication(self, host: str) -> Finding | None:
        """Tell who may come in.

        Args:
            host: The address that is listened on.
        """
        if self.app is None:
            return None
        plugin = plugin_of(self.app)
        settings = plugin.agent.settings
        if plugin.authentication is not None:
            kinds = ["bearer tokens (JWT)"] * bool(settings.jwt_discovery_url) + ["API keys"] * bool(
                settings.api_keys_file
            )
            return Finding("ok", "authentication", f"on: {' or '.join(kinds)}")
        if host in _LOOPBACK:
            return Finding("ok", "authentication", f"off, and {host} is for this machine alone")
        return Finding(
            "warning",
            "authentication",
            f"off: whoever reaches {host} may call the agent",
            "AGENTCORE_JWT_DISCOVERY_URL or AGENTCORE_API_KEYS_FILE switches it on, if nothing in front of it does it.",
        )

    def check_logging(self) -> Finding | None:
        """Tell who has set up logging, after the import."""
        if self.app is None:
            return None
        return _logging_of(plugin_of(self.app))


def _protocols_of(plugin: AgentCorePlugin) -> Iterator[Finding]:
    """What is served, where, and on which port a platform expects it."""
    served = [protocol for protocol in TITLES if plugin.serves_protocol(protocol)]
    chosen = plugin.agent.settings.protocol
    if chosen is not None and chosen not in plugin.protocols:
        has = ", ".join(sorted(plugin.protocols)) or "none"
        text = f"{variable_of('protocol')}={chosen!r}, and the application has {has}"
        yield Finding("failure", "protocol", text, "It would end at its start.")
    for protocol in served:
        paths = ", ".join(plugin.agent.protocol_paths.get(protocol, ()))
        where = f"{paths}; " if paths else ""
        yield Finding("ok", "protocol", f"{TITLES[protocol]}: {where}AgentCore expects it on port {PORTS[protocol]}")


def _handler_of(plugin: ProtocolPlugin) -> Iterator[Finding]:
    """The handler of a protocol that has one."""
    if (handler := plugin.handler) is not None:
        yield Finding("ok", "handler", f"{handler.name}: {handler.kind.value}; {TITLES[plugin.protocol]}")
    elif plugin.protocol == "ag-ui":
        advice = "Decorate the function that gives the events with @app.entrypoint."
        yield Finding("failure", "handler", "none: each run would be answered 500", advice)


def _handlers_of(agent: Agent) -> Iterator[Finding]:
    """The handlers of plain HTTP."""
    if (handler := agent.entrypoint) is None:
        advice = "Decorate the function that answers with @app.entrypoint."
        yield Finding("failure", "handler", "none: each invocation would be answered 500", advice)
    else:
        inline = agent.execution.runs_here(handler)
        runs = "async, on the loop that accepts requests" if inline else handler.kind.value
        yield Finding("ok", "handler", f"{handler.name}: {runs}; {_signature(handler)}")
        if handler.remark is not None:
            yield Finding("warning", "handler", handler.remark)
    if (websocket := agent.websocket_handler) is not None:
        yield Finding("ok", "WebSocket", f"/ws: {name_of(websocket)}, async, on the agent's loop")
    else:
        yield Finding("ok", "WebSocket", "none: /ws is closed with 1011")


def _logging_of(plugin: AgentCorePlugin) -> Finding:
    settings = plugin.agent.settings
    own = any(isinstance(handler, StandardErrorHandler) for handler in logging.getLogger("litestar_agentcore").handlers)
    foreign = [handler for handler in logging.getLogger().handlers if not isinstance(handler, StandardErrorHandler)]
    form = settings.log_format
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    lines = f"the service's lines: {form} on stderr, from {settings.log_level}"
    if not own:
        lines = "the service's lines: as the program has it"
    if foreign:
        kinds = ", ".join(dict.fromkeys(f"{type(h).__module__}.{type(h).__qualname__}" for h in foreign))
        return Finding("ok", "logging", f"{lines}; all others: the root logger's {kinds}, set up by the program")
    others = "all others too: nobody has set up the root logger" if own else "nobody has set up the root logger"
    return Finding("ok", "logging", f"{lines}; {others}")


def _signature(handler: Handler) -> str:
    kind = handler.payload_type
    name = getattr(kind, "__name__", str(kind))
    payload = "any JSON" if handler.decode is None else f"payload validated as {name}"
    context = "with the context" if handler.context is not None else "without the context"
    called = [handler.function, getattr(handler.function, "__call__", None)]  # noqa: B004 - the method of an object
    streams = any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in called)
    return f"{payload}; {context}; {'streams' if streams else 'answers once, or streams where it returns a generator'}"


def _place(error: BaseException, directory: str) -> str:
    """The place in the author's code where something was raised."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_in(frame.filename, directory)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _is_in(file: str, directory: str) -> bool:
    return file.startswith(directory + os.sep) and "site-packages" not in file
