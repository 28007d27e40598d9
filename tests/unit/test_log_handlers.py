"""The contract's "Logs": whatever a host program does to logging, the service's lines reach standard error, once."""

import importlib
import json
import logging
import logging.config
import pkgutil
import queue
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from types import ModuleType
from typing import Any

import agentcore_telemetry
import litestar
import litestar_agentcore
import pytest
import uvicorn
import uvicorn.config
from agentcore_telemetry.log_handlers import LogSetup, server_level, uvicorn_unconfigured
from litestar.logging import LoggingConfig
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, Settings
from litestar_agentcore.errors import BrokenResponseError, report_once
from rich.console import Console
from rich.logging import RichHandler
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.unit.conftest import REQUEST_ID, SESSION_ID, LogLines, stop_listener

APP = "litestar_agentcore.app"
OWN = [APP, "litestar_agentcore", "agentcore_telemetry"]
UVICORN = ["uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"]
IDS = {REQUEST_ID: "r-1", SESSION_ID: "s-1"}

pytestmark = pytest.mark.usefixtures("fresh_logging")


class Output:
    """What was written to standard error."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def lines(self) -> list[str]:
        return self._capfd.readouterr().err.splitlines()

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.entries()]


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Output:
    return Output(capfd)


class Records(logging.Handler):
    """Keeps what it is given, as an exporter or an error tracker on the root logger is."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def on_root() -> Records:
    logging.getLogger().addHandler(handler := Records())
    return handler


def no_ids() -> tuple[None, None]:
    return None, None


def set_up(level: str = "INFO") -> LogSetup:
    """All of it, as an app that begins to serve."""
    setup = LogSetup(no_ids, level)
    setup.configure_package("litestar_agentcore", without=APP)
    setup.configure_package("agentcore_telemetry")
    setup.configure_logger(APP)
    setup.configure_server()
    setup.configure_root()
    return setup


# What host programs do to logging


def to_standard_error(**more: Any) -> dict[str, Any]:
    handlers = {"console": {"class": "logging.StreamHandler", **more.pop("handler", {})}}
    return {"version": 1, "handlers": handlers, "root": {"level": "INFO", "handlers": ["console"]}, **more}


def file_config() -> None:
    Path("logging.ini").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=console\n[formatters]\nkeys=plain\n"
        "[logger_root]\nlevel=INFO\nhandlers=console\n"
        "[handler_console]\nclass=StreamHandler\nformatter=plain\nargs=(sys.stderr,)\n"
        "[formatter_plain]\nformat=%(levelname)s %(message)s\n"
    )
    logging.config.fileConfig("logging.ini")


def root_gets(make: Callable[[], logging.Handler]) -> Callable[[], None]:
    return lambda: logging.getLogger().addHandler(make())


def queued() -> logging.Handler:
    """A handler whose queue is written to standard error by another thread."""
    handler = QueueHandler(queue.SimpleQueue())
    listener = QueueListener(handler.queue, logging.StreamHandler())
    listener.start()
    handler.listener = listener  # type: ignore[attr-defined]  # as ``logging.config`` has it from Python 3.12 on
    return handler


HABITS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "NullHandler": root_gets(logging.NullHandler),
    "FileHandler": root_gets(lambda: logging.FileHandler("agent.log")),
    "StreamHandler": root_gets(logging.StreamHandler),
    "StreamHandler on the same file": root_gets(lambda: logging.StreamHandler(sys.__stderr__)),
    "FileHandler on the same file": root_gets(lambda: logging.FileHandler("/dev/fd/2", "a")),
    "exporter": root_gets(Records),
    "error tracker": root_gets(lambda: Records(logging.ERROR)),
    "rich": root_gets(lambda: RichHandler(console=Console(stderr=True, width=200))),
    "QueueHandler": root_gets(queued),
    "level alone": lambda: logging.getLogger().setLevel(logging.CRITICAL),
    "basicConfig": logging.basicConfig,
    "basicConfig at WARNING": lambda: logging.basicConfig(level=logging.WARNING),
    "basicConfig at DEBUG": lambda: logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s"),
    "basicConfig with force": lambda: logging.basicConfig(force=True),
    "basicConfig to a file": lambda: logging.basicConfig(filename="agent.log", force=True),
    "basicConfig to standard output": lambda: logging.basicConfig(stream=sys.stdout, force=True),
    "dictConfig, empty": lambda: logging.config.dictConfig({"version": 1}),
    "dictConfig": lambda: logging.config.dictConfig(to_standard_error()),
    "dictConfig to standard output": lambda: logging.config.dictConfig(
        to_standard_error(handler={"stream": "ext://sys.stdout"})
    ),
    "dictConfig that disables nothing": lambda: logging.config.dictConfig(
        to_standard_error(disable_existing_loggers=False)
    ),
    "dictConfig, incremental": lambda: logging.config.dictConfig(
        {"version": 1, "incremental": True, "root": {"level": "ERROR"}}
    ),
    "dictConfig of another logger": lambda: logging.config.dictConfig(
        to_standard_error(loggers={"mine": {"level": "DEBUG", "handlers": ["console"]}})
    ),
    "fileConfig": file_config,
    "Litestar's configuration": lambda: LoggingConfig(log_exceptions="always").configure(),
}
MOMENTS = ["before the app is made", "after it is made", "in the lifespan", "in the handler"]


def an_app(habit: Callable[[], object], moment: str) -> BedrockAgentCoreApp:
    """An app whose author logs and then fails, and has a habit of his own at some moment."""

    def at(now: str) -> None:
        if now == moment:
            habit()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        at("in the lifespan")
        yield

    at("before the app is made")
    app = BedrockAgentCoreApp(lifespan=lifespan)
    at("after it is made")

    @app.entrypoint
    async def handler(payload: Any) -> Any:
        at("in the handler")
        app.logger.info("the author's line")
        raise LookupError("lost")

    return app


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("habit", HABITS)
def test_the_lines_of_app_and_service_are_there_once_with_their_ids_whatever_the_host_does(
    habit: str, moment: str, output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with TestClient(app=an_app(HABITS[habit], moment)) as client:
        assert client.post("/invocations", json=1, headers=IDS).status_code == 500
    for handler in logging.getLogger().handlers:
        stop_listener(handler)
    lines = output.lines()
    for message, level in (("the author's line", "INFO"), ("The handler raised", "ERROR")):
        found = [line for line in lines if message in line]
        assert len(found) == 1, lines
        entry = json.loads(found[0])
        assert (entry["message"], entry["level"]) == (message, level)
        assert (entry["requestId"], entry["sessionId"]) == ("r-1", "s-1")


def test_a_handler_of_the_root_logger_that_writes_elsewhere_gets_the_lines_too(
    output: Output, on_root: Records, capfd: pytest.CaptureFixture[str]
) -> None:
    with TestClient(app=an_app(lambda: None, "")) as client:
        client.post("/invocations", json=1)
    assert on_root.messages()[-2:] == ["the author's line", "The handler raised"]


def test_a_record_carries_no_mark_that_an_exporter_would_send_along(on_root: Records) -> None:
    plain = logging.LogRecord("name", logging.INFO, "path", 1, "message", None, None)
    logger = LogSetup(no_ids).configure_logger(APP)
    logger.info("hello")
    assert vars(on_root.records[0]).keys() == vars(plain).keys()


def test_an_error_tracker_on_the_root_logger_hears_of_a_failure_once() -> None:
    tracker = Records(logging.ERROR)
    logging.getLogger().addHandler(tracker)
    with TestClient(app=an_app(lambda: None, "")) as client:
        client.post("/invocations", json=1)
    assert tracker.messages() == ["The handler raised"]


def test_what_is_logged_while_a_line_is_handled_is_there_once_too(output: Output) -> None:
    logger = LogSetup(no_ids).configure_logger(APP)

    class Talkative(Records):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "first":
                logger.info("second")

    logging.getLogger().addHandler(Talkative())
    logging.getLogger().addHandler(logging.StreamHandler())
    logger.info("first")
    assert output.messages() == ["first", "second"]


def test_standard_error_is_what_it_is_when_a_line_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = LogSetup(no_ids).configure_logger(APP)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", stream := Stream())
            logger.info("hello")
        assert json.loads(stream.written)["message"] == "hello"


class Stream:
    """As little of a stream as can be written to."""

    written = ""

    def write(self, text: str) -> None:
        self.written += text

    def isatty(self) -> bool:
        return False


def test_a_process_without_standard_error_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    set_up()
    logging.getLogger(APP).error("unheard")


# What the author says of our loggers himself


def test_a_level_of_the_authors_is_kept(output: Output) -> None:
    logging.getLogger(APP).setLevel(logging.ERROR)
    logging.getLogger("litestar_agentcore").setLevel(logging.CRITICAL)
    with TestClient(app=an_app(lambda: None, "")) as client:
        client.post("/invocations", json=1)
    assert not {"the author's line", "The handler raised"} & set(output.messages())


def test_logging_that_is_disabled_as_a_whole_is(output: Output) -> None:
    with TestClient(app=an_app(lambda: logging.disable(logging.CRITICAL), "in the handler")) as client:
        client.post("/invocations", json=1)
    assert not {"the author's line", "The handler raised"} & set(output.messages())


def test_a_logger_that_the_author_disables_himself_is_disabled(output: Output) -> None:
    app = BedrockAgentCoreApp()
    app.logger.disabled = True
    app.logger.error("unheard")
    app.logger.disabled = False
    app.logger.error("heard")
    assert output.messages() == ["heard"]


def test_without_its_handler_the_apps_logger_is_as_any_other(output: Output, on_root: Records) -> None:
    app = BedrockAgentCoreApp()
    app.logger.handlers.clear()
    app.logger.info("hello")
    assert output.lines() == []
    assert on_root.messages() == ["hello"]
    app.logger.addHandler(logging.StreamHandler())
    app.logger.info("in the author's own form")
    assert output.lines() == ["in the author's own form"]


def test_a_handler_that_the_author_removed_does_not_come_back(output: Output, on_root: Records) -> None:
    app = an_app(lambda: None, "")
    app.logger.handlers.clear()
    with TestClient(app=app) as client:
        client.post("/invocations", json=1)
    assert "the author's line" not in output.messages()
    assert "the author's line" in on_root.messages()


def test_a_configuration_that_names_a_logger_has_the_say_over_it(output: Output) -> None:
    app = BedrockAgentCoreApp()
    logging.config.dictConfig(to_standard_error(loggers={"litestar_agentcore": {"level": "DEBUG"}}))
    app.logger.info("in the host's form")
    logging.getLogger("agentcore_telemetry").info("in ours")
    first, second = output.lines()
    assert first == "in the host's form"
    assert json.loads(second)["message"] == "in ours"


def test_the_handler_can_be_sent_elsewhere_and_have_another_form(output: Output) -> None:
    app = BedrockAgentCoreApp()
    [handler] = app.logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream := Stream())
    handler.setFormatter(logging.Formatter("%(message)s!"))
    app.logger.info("hello")
    assert stream.written == "hello!\n"
    assert output.lines() == []


def test_a_handler_of_the_root_logger_leaves_out_no_line_that_is_not_there(output: Output) -> None:
    logging.basicConfig(format="%(message)s")
    app = BedrockAgentCoreApp()
    app.logger.info("first")
    assert output.messages() == ["first"]
    app.logger.handlers[0].setStream(Stream())  # type: ignore[attr-defined]
    app.logger.info("second")
    assert output.lines() == ["second"]


def test_a_logger_that_does_not_propagate_writes_all_the_same(output: Output, on_root: Records) -> None:
    app = BedrockAgentCoreApp()
    app.logger.propagate = False
    app.logger.info("hello")
    assert output.messages() == ["hello"]
    assert on_root.records == []


def test_a_handler_of_the_authors_on_the_apps_logger_gets_the_lines_besides(output: Output) -> None:
    app = BedrockAgentCoreApp()
    app.logger.addHandler(own := Records())
    app.logger.info("hello")
    assert output.messages() == ["hello"]
    assert own.messages() == ["hello"]


def test_loggers_below_the_apps_write_too(output: Output) -> None:
    app = BedrockAgentCoreApp()
    app.logger.getChild("tools").info("hello")
    assert [(entry["logger"], entry["message"]) for entry in output.entries()] == [(f"{APP}.tools", "hello")]


def test_a_test_of_the_authors_sees_the_lines(log: LogLines) -> None:
    BedrockAgentCoreApp().logger.info("hello")
    assert [line["message"] for line in log.lines] == ["hello"]


# Levels


@pytest.mark.parametrize(
    ("variable", "debug", "level"),
    [
        ("", False, "INFO"),
        ("", True, "DEBUG"),
        ("debug", False, "DEBUG"),
        ("WARN", False, "WARNING"),
        ("error", True, "ERROR"),
    ],
)
def test_the_apps_logger_has_the_level_that_is_asked_for(
    variable: str, debug: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_LOG_LEVEL", variable)
    assert logging.getLevelName(BedrockAgentCoreApp(debug=debug).logger.level) == level


@pytest.mark.parametrize("root_level", [logging.NOTSET, logging.DEBUG, logging.ERROR])
def test_a_level_of_the_root_logger_is_kept_where_it_is_not_the_default(root_level: int) -> None:
    logging.getLogger().setLevel(root_level)
    LogSetup(no_ids).configure_root()
    assert logging.getLogger().level == root_level


def test_lines_below_the_level_are_not_written(output: Output) -> None:
    set_up("WARNING")
    for name in (*OWN, "an.author"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud")
    assert output.messages() == ["loud"] * 4


# All other loggers


@pytest.mark.parametrize("habit", ["nothing", "level alone"])
def test_where_nobody_has_set_up_the_root_logger_every_line_has_the_form_and_the_ids(
    habit: str, output: Output
) -> None:
    app = BedrockAgentCoreApp()

    @app.entrypoint
    def handler(payload: Any) -> None:
        logging.getLogger("a.library").critical("from a library")

    HABITS[habit]()
    with TestClient(app=app) as client:
        client.post("/invocations", json=1, headers=IDS)
    [entry] = [entry for entry in output.entries() if entry["logger"] == "a.library"]
    assert (entry["message"], entry["requestId"], entry["sessionId"]) == ("from a library", "r-1", "s-1")


def test_a_library_with_a_null_handler_is_no_set_up(output: Output) -> None:
    logging.getLogger("a.library").addHandler(logging.NullHandler())
    set_up()
    logging.getLogger("a.library").info("hello")
    assert output.messages() == ["hello"]


@pytest.mark.parametrize("moment", MOMENTS[:3])
def test_a_host_that_has_set_up_the_root_logger_has_the_say_over_other_loggers(moment: str, output: Output) -> None:
    with TestClient(app=an_app(lambda: logging.basicConfig(level=logging.INFO), moment)):
        logging.getLogger("a.library").info("in the host's form")
    assert output.lines()[-1] == "INFO:a.library:in the host's form"
    assert len(logging.getLogger().handlers) == 1


def test_setting_up_twice_writes_each_line_once(output: Output) -> None:
    set_up()
    set_up()
    for name in (*OWN, *UVICORN, "an.author"):
        logging.getLogger(name).info("hello")
    assert output.messages() == ["hello"] * 8


def in_starlette(app: BedrockAgentCoreApp) -> Any:
    return TestClient(app=Starlette(routes=[Mount("/agent", app)]))


def in_litestar(app: BedrockAgentCoreApp) -> Any:
    mounted = litestar.asgi("/agent", is_mount=True, copy_scope=True)(app)
    return TestClient(app=litestar.Litestar([mounted], logging_config=None))


@pytest.mark.parametrize("mounted", [in_starlette, in_litestar])
def test_lines_are_there_where_the_app_is_mounted_and_its_lifespan_does_not_run(
    mounted: Callable[[BedrockAgentCoreApp], Any], output: Output
) -> None:
    app = BedrockAgentCoreApp()

    @app.entrypoint
    def handler(payload: Any) -> None:
        app.logger.info("by the app")
        logging.getLogger("a.library").info("by a library")

    client = mounted(app)
    assert logging.getLogger().handlers == []
    assert client.post("/agent/invocations", json=1, headers=IDS).status_code == 200
    entries = [(entry["message"], entry.get("requestId")) for entry in output.entries()]
    assert [entry for entry in entries if entry[0].startswith("by")] == [("by the app", "r-1"), ("by a library", "r-1")]


def test_lines_are_there_once_where_the_app_is_mounted_in_a_litestar_that_sets_up_logging(output: Output) -> None:
    app = BedrockAgentCoreApp()

    @app.entrypoint
    def handler(payload: Any) -> None:
        app.logger.info("by the app")

    host = litestar.Litestar([litestar.asgi("/agent", is_mount=True, copy_scope=True)(app)])
    TestClient(app=host).post("/agent/invocations", json=1)
    stop_listener(logging.getLogger().handlers[0])
    assert [json.loads(line)["logger"] for line in output.lines() if "by the app" in line] == [APP]


# What is left alone

STATE_OF_LOGGING = """
import json, logging, sys

PRISTINE = ["Logger", logging.NOTSET, True, False, [], []]

def state():
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {"": [
        id(logging.getLoggerClass()), id(logging.getLogRecordFactory()), id(logging.lastResort),
        logging.root.manager.disable, logging.raiseExceptions, logging.getLevelName(20), id(logging.basicConfig),
        id(sys.excepthook), id(sys.stderr),
    ]} | {
        logger.name: [type(logger).__name__, logger.level, logger.propagate, logger.disabled,
                      list(map(id, logger.handlers)), list(map(id, logger.filters))]
        for logger in loggers if isinstance(logger, logging.Logger)
    }

def changed(before, after):
    return {name.partition(".")[0] for name in after if after[name] != before.get(name, PRISTINE)}

if configured:
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("host").addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
import litestar, uvicorn, opentelemetry.trace
before = state()
import litestar_agentcore
imported = state()
litestar_agentcore.BedrockAgentCoreApp()
print(json.dumps([sorted(changed(before, imported)), sorted(changed(imported, state()))]))
"""


@pytest.mark.parametrize("configured", [True, False], ids=["a host with logging", "a host without"])
def test_importing_changes_no_logging_and_making_an_app_that_of_its_own_loggers_alone(configured: bool) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"configured = {configured}\n{STATE_OF_LOGGING}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(result.stdout) == [[], ["agentcore_telemetry", "litestar_agentcore"]]
    assert result.stderr == b""


def state_of(names: list[str]) -> list[Any]:
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    return [(type(each), each.level, each.propagate, each.handlers[:], each.filters[:]) for each in loggers]


@pytest.mark.parametrize("variable", ["none", "NONE"])
def test_the_format_none_leaves_all_logging_as_it_is(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_LOG_FORMAT", variable)
    before = state_of([*OWN, *UVICORN])
    app = BedrockAgentCoreApp(debug=True)
    app.entrypoint(lambda payload: payload)
    with TestClient(app=app) as client, app._plugin.server_lifespan(app):
        assert client.post("/invocations", json=1).json() == 1
        assert state_of([*OWN, *UVICORN]) == before
    logging.config.dictConfig({"version": 1})
    assert app.logger.disabled


def test_the_plugin_sets_up_logging_if_asked(output: Output) -> None:
    plugin = AgentCorePlugin(lambda payload: 1 / 0, logging=True)
    with TestClient(app=litestar.Litestar(plugins=[plugin], logging_config=None)) as client:
        client.post("/invocations", json=1, headers=IDS)
    assert [entry["requestId"] for entry in output.entries() if entry["message"] == "The handler raised"] == ["r-1"]


def test_a_logging_configuration_for_litestar_is_the_authors_own_and_so_is_the_logger() -> None:
    app = BedrockAgentCoreApp(logging_config=LoggingConfig(configure_root_logger=False))
    assert app.logger.name == "litestar"
    stop_listener(app.logger.handlers[0])


# Loggers that a configuration disables


def test_no_logger_of_ours_can_be_disabled_by_a_configuration_be_its_module_imported_or_not(output: Output) -> None:
    set_up()
    modules = [
        importlib.import_module(module.name)
        for package in (litestar_agentcore, agentcore_telemetry)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    logging.config.dictConfig({"version": 1})
    loggers = {logger for module in modules if isinstance(logger := getattr(module, "logger", None), logging.Logger)}
    assert len(loggers) > 10
    for logger in loggers:
        logger.error("hello")
    assert {entry["logger"] for entry in output.entries()} == {logger.name for logger in loggers}
    assert logging.getLogger("asyncio").disabled  # the configuration did what it was asked to


def test_loggers_that_were_disabled_before_the_app_was_made_are_enabled(output: Output) -> None:
    logging.config.dictConfig({"version": 1})
    assert logging.getLogger("litestar_agentcore.errors").disabled
    BedrockAgentCoreApp()
    logging.getLogger("litestar_agentcore.errors").error("hello")
    assert output.messages() == ["hello"]


def test_loggers_keep_the_class_that_the_host_program_gave_them() -> None:
    class Chatty(logging.Logger):
        def chat(self) -> str:
            return f"{self.name} chats"

    logging.setLoggerClass(Chatty)
    try:
        logger = logging.getLogger("tests.chatty")
    finally:
        logging.setLoggerClass(logging.Logger)
    LogSetup(no_ids).configure_logger("tests.chatty")
    logging.config.dictConfig({"version": 1})
    assert isinstance(logger, Chatty)
    assert logger.chat() == "tests.chatty chats"
    assert type(logger).__name__ == "Chatty"
    assert not logger.disabled


# The server's lines


def configured_by_uvicorn() -> None:
    uvicorn.Config("app:app").configure_logging()


def test_the_lines_of_uvicorn_are_in_the_same_form_and_once(output: Output, capfd: pytest.CaptureFixture[str]) -> None:
    configured_by_uvicorn()
    set_up()
    for name in UVICORN:
        logging.getLogger(name).info("from uvicorn")
    written = capfd.readouterr()
    assert [json.loads(line)["logger"] for line in written.err.splitlines()] == UVICORN
    assert written.out == ""


def test_lines_of_uvicorn_that_were_written_before_the_app_starts_have_the_form_too(output: Output) -> None:
    configured_by_uvicorn()
    BedrockAgentCoreApp()
    logging.getLogger("uvicorn.error").info("Started server process")
    assert output.messages() == ["Started server process"]


def test_where_the_host_has_set_up_the_root_logger_uvicorns_lines_are_uvicorns(on_root: Records) -> None:
    configured_by_uvicorn()
    before = [logging.getLogger(name).handlers[:] for name in UVICORN]
    formatters = [handler.formatter for handlers in before for handler in handlers]
    app = an_app(lambda: None, "")
    with TestClient(app=app):
        assert app._plugin.log_setup.configure_server() is False
    assert [logging.getLogger(name).handlers for name in UVICORN] == before
    assert [handler.formatter for handlers in before for handler in handlers] == formatters


def test_an_access_log_that_was_silenced_stays_silent(output: Output) -> None:
    uvicorn.Config("app:app", access_log=False).configure_logging()
    set_up()
    logging.getLogger("uvicorn.access").info("quiet")
    assert output.lines() == []


@pytest.mark.parametrize("habit", ["nothing", "exporter"])
def test_the_query_is_cut_off_the_lines_on_a_request_and_a_socket(
    habit: str, capfd: pytest.CaptureFixture[str]
) -> None:
    HABITS[habit]()
    configured_by_uvicorn()
    set_up()
    set_up()
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "client", "GET", "/ping?key=secret", "1.1", 200)
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "client", "/ws?key=secret")
    logging.getLogger("uvicorn.error").warning("Whose fault? %s", "who?")
    written = "".join(capfd.readouterr())
    assert "/ping" in written
    assert "/ws" in written
    assert "secret" not in written
    assert "Whose fault? who?" in written


@pytest.mark.parametrize(
    ("asked", "of_uvicorn", "expected"),
    [
        ("INFO", "info", "INFO"),
        ("WARNING", "info", "WARNING"),
        ("DEBUG", "info", "INFO"),
        ("INFO", "warning", "WARNING"),
        ("INFO", "debug", "DEBUG"),
    ],
)
def test_uvicorns_level_is_the_services_unless_it_was_set_otherwise(asked: str, of_uvicorn: str, expected: str) -> None:
    uvicorn.Config("app:app", log_level=of_uvicorn).configure_logging()
    set_up(asked)
    assert logging.getLevelName(logging.getLogger("uvicorn.error").level) == expected
    assert server_level("DEBUG") == "INFO"


@pytest.mark.parametrize("habit", ["nothing", "exporter"])
def test_uvicorn_is_told_not_to_set_up_logging_where_that_is_done(habit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: told.update(options))
    HABITS[habit]()
    BedrockAgentCoreApp().run()
    assert ("log_config" in told) is (habit == "nothing")
    assert told.get("log_config") is None


def test_running_leaves_the_root_logger_to_the_lifespan(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    monkeypatch.setattr("uvicorn.run", lambda app, **options: logging.getLogger("uvicorn.error").info("Started"))
    BedrockAgentCoreApp().run()
    assert output.messages() == ["Started"]
    assert logging.getLogger().handlers == []


def test_litestars_command_line_is_kept_from_configuring_uvicorn(output: Output) -> None:
    app = BedrockAgentCoreApp()
    with app._plugin.server_lifespan(app):
        configured_by_uvicorn()
        logging.getLogger("uvicorn.error").info("Started")
    assert output.messages() == ["Started"]
    assert uvicorn.config.LOGGING_CONFIG["loggers"]
    with pytest.raises(RuntimeError), uvicorn_unconfigured():
        raise RuntimeError
    assert uvicorn.config.LOGGING_CONFIG["loggers"]


# Failures that others report too


def raised_from(*errors: Exception) -> Exception:
    """The last of some exceptions, each raised from the one before."""
    for error, cause in zip(errors[1:], errors, strict=False):
        error.__cause__ = cause
    return errors[-1]


@pytest.mark.parametrize("host", ["nothing", "exporter"])
def test_the_server_does_not_report_a_failure_that_is_in_the_log(host: str, output: Output) -> None:
    HABITS[host]()
    configured_by_uvicorn()
    set_up()
    report = logging.getLogger("uvicorn.error").error
    logged = raised_from(LookupError("lost"), BrokenResponseError("broken"), RuntimeError("after the start"))
    report("Exception in ASGI application", exc_info=logged)
    assert output.lines() == []
    circle = raised_from(first := LookupError("first"), LookupError("second"), first)
    for error in (LookupError("lost"), raised_from(LookupError("lost"), RuntimeError("of it")), circle):
        report("Exception in ASGI application", exc_info=error)
        assert sum("Exception in ASGI application" in line for line in output.lines()) == 1


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The loggers that Sentry was told to leave out."""
    names: list[str] = []
    module = ModuleType("sentry_sdk.integrations.logging")
    module.ignore_logger = names.append  # type: ignore[attr-defined]
    for name in ("sentry_sdk", "sentry_sdk.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return names


def test_sentry_leaves_out_the_lines_on_what_its_hook_reports(ignored: list[str]) -> None:
    def hook(error: Exception, scope: Any) -> None: ...

    BedrockAgentCoreApp(after_exception=[hook])
    assert ignored == []
    hook.__module__ = "sentry_sdk.integrations.litestar"
    BedrockAgentCoreApp(after_exception=[hook])
    assert ignored == ["litestar_agentcore.answer", "litestar_agentcore.errors"]


def test_hooks_of_any_kind_are_looked_at() -> None:
    class Hook:
        __module__ = None  # type: ignore[assignment]

    report_once([Hook(), object(), print])


# Retired settings


def test_a_retired_variable_is_named_in_one_warning_at_start_up(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_WORKER_LOOPS", "4")
    app = BedrockAgentCoreApp()
    assert output.lines() == []
    for _ in range(2):
        with TestClient(app=app):
            pass
    warnings = [entry for entry in output.entries() if entry["level"] == "WARNING"]
    assert [entry["logger"] for entry in warnings] == ["litestar_agentcore.plugin"]
    assert "AGENTCORE_MAX_WORKER_LOOPS" in warnings[0]["message"]


def test_settings_that_were_not_read_from_the_environment_warn_of_nothing(
    log: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_WORKER_LOOPS", "4")
    plugin = AgentCorePlugin(settings=Settings())
    with TestClient(app=litestar.Litestar(plugins=[plugin], logging_config=None)):
        assert [line for line in log.lines if line["level"] == "WARNING"] == []
