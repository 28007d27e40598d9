"""The official SDK's own tests of its runtime pass here, as far as they use no more than its public names.

The tests are in the SDK's source distribution, which is fetched into a scratch directory each time. There the imports
of the names that we have are led to us, and the tests run in an environment with both runtimes. Which tests use public
names only is decided by reading them: a test that touches a private attribute, a name that the package
``bedrock_agentcore.runtime`` does not export, or the inside of a module of the SDK, is a test of the SDK's inside.
"""

import ast
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from tests.e2e.environments import environment, run
from tests.e2e.runtimes import HERE, ROOT

REQUIREMENTS = HERE / "requirements-sdk-tests.txt"
PATIENCE = 300.0

OURS = {"BedrockAgentCoreApp", "BedrockAgentCoreContext", "PingStatus", "RequestContext"}
KEPT = {"ConfigBundleRef"}
"""Names outside the runtime that agents hand to it, and go on importing from the SDK."""

MODULES = r"bedrock_agentcore\.runtime(?:\.(?:app|context|models))?"
IMPORT = re.compile(rf"^(\s*)from ({MODULES}) import (\([^)]*\)|[^\n(]+)", re.MULTILINE)

PRIVATE = re.compile(r"_(?!agent_core_app_action)[a-z]\w+|bedrock_agentcore(\.\w+)+")
"""Names in strings, as ``patch`` takes them; the key of the debug actions is none."""

FILES = [
    "tests/bedrock_agentcore/runtime/test_app.py",
    "tests/bedrock_agentcore/runtime/test_async_tasks.py",
    "tests/bedrock_agentcore/runtime/test_context.py",
    "tests/bedrock_agentcore/runtime/test_identity_wat_propagation.py",
    "tests/bedrock_agentcore/runtime/test_manual_async_tasks.py",
    "tests/bedrock_agentcore/runtime/test_tracing.py",
    "tests/integration/runtime/test_otel_no_user_content.py",
    "tests/integration/runtime/test_streaming_disconnect_integration.py",
]
"""Those that are about the four names. The others are about A2A, AG-UI, shells, clients of AWS, and helpers inside."""

TASKS = "tests/bedrock_agentcore/runtime/test_manual_async_tasks.py::"
APP = "tests/bedrock_agentcore/runtime/test_app.py::"
LOG_LEVEL = "asks for the exact arguments of uvicorn.run: the server logs from AGENTCORE_LOG_LEVEL on, not from WARNING"
PROTOCOLS = "asks for the exact arguments of uvicorn.run: its protocols are given too, which bound a request's headers"
IN_PLACE = "asks for the text of a whole answer that has a date in it: here the date alone is text, in its place"
SEPARATORS = "asks for a space after the colon, as Python's encoder writes JSON"

DIFFERENT = {
    f"{APP}TestBedrockAgentCoreApp::test_serve_in_docker": LOG_LEVEL,
    f"{APP}TestBedrockAgentCoreApp::test_serve_with_dockerenv_file": LOG_LEVEL,
    f"{APP}TestBedrockAgentCoreApp::test_serve_localhost": LOG_LEVEL,
    f"{APP}TestBedrockAgentCoreApp::test_serve_custom_host": LOG_LEVEL,
    f"{APP}TestBedrockAgentCoreApp::test_entrypoint_serve_method": LOG_LEVEL,
    f"{APP}TestBedrockAgentCoreApp::test_run_with_kwargs": LOG_LEVEL,
    f"{APP}TestBedrockAgentCoreApp::test_debug_mode_uvicorn_config": PROTOCOLS,
    f"{APP}TestNonStreamingSafeSerialization::test_non_streaming_uses_safe_serialization": IN_PLACE,
    f"{APP}TestSerializationConsistency::test_complex_nested_objects": IN_PLACE,
    f"{APP}TestWorkerLoopInvocation::test_sync_streaming_still_works_via_http": SEPARATORS,
    f"{APP}TestWorkerLoopInvocation::test_async_gen_streaming_works_via_http": SEPARATORS,
    f"{APP}TestNonStreamingSafeSerialization::test_non_streaming_consistency_with_streaming": (
        "writes to app.handlers, which can only be read here"
    ),
    f"{APP}TestConfigBundleBaggageParsing::test_baggage_header_populates_bundle_ref": (
        "compares with an object of the SDK's class: the reference to a bundle is one of ours, with the same fields"
    ),
    f"{APP}TestWebSocketSupport::test_websocket_no_handler_defined": (
        "asks for a refused handshake (403): here the socket is accepted and closed with code 1011"
    ),
    f"{TASKS}TestIntegrationScenarios::test_task_lifecycle_logging": (
        "asks for an INFO line at a task's start and at its end: here metrics and spans tell of both"
    ),
}
"""The tests that use public names only and do not pass here, each with the reason."""


class SdkTests(msgspec.Struct, frozen=True):
    directory: Path
    black_box: list[str]
    inside: dict[str, list[str]]
    """What of the SDK's inside each of the other tests uses."""


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> SdkTests:
    directory = tmp_path_factory.mktemp("sdk")
    # Not to be built, which would need the network again: its build backend is one of our own requirements.
    run(
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
        "--require-hashes", "--requirement", REQUIREMENTS, "--dest", directory,
    )  # fmt: skip
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    (root,) = directory.glob("*/")
    black_box: list[str] = []
    inside: dict[str, list[str]] = {}
    for name in FILES:
        for test, uses in _tests_of((root / name).read_text()):
            if uses:
                inside[f"{name}::{test}"] = uses
            else:
                black_box.append(f"{name}::{test}")
    return SdkTests(root, black_box, inside)


@pytest.fixture(scope="module")
def failures(tests: SdkTests) -> dict[str, str]:
    """What went wrong here, by the test."""
    for name in FILES:
        file = tests.directory / name
        file.write_text(ported(file.read_text()))
    return _run(tests)


def ported(source: str) -> str:
    """The source with the names that we have imported from us."""

    def led_here(found: "re.Match[str]") -> str:
        indent, module, names = found.groups()
        imported = [name.strip() for name in names.strip("()").split(",") if name.strip()]
        ours = [name for name in imported if name in OURS]
        theirs = [name for name in imported if name not in OURS]
        lines = [f"from litestar_agentcore import {', '.join(ours)}"] if ours else []
        lines += [f"from {module} import {', '.join(theirs)}"] if theirs else []
        return "\n".join(f"{indent}{line}" for line in lines)

    return IMPORT.sub(led_here, source)


def _tests_of(source: str) -> Iterator[tuple[str, list[str]]]:
    """The tests of a file, each with what it uses of the SDK's inside."""
    module = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).startswith("bedrock_agentcore")
        and alias.name not in OURS | KEPT
    }
    globally = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            methods = {
                each.name: each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            for name, method in methods.items():
                if name.startswith("test_"):
                    yield f"{node.name}::{name}", sorted(set(_inside(method, globally | methods, imported, set())))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name, sorted(set(_inside(node, globally, imported, set())))


def _inside(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    helpers: dict[str, ast.FunctionDef | ast.AsyncFunctionDef],
    imported: set[str],
    seen: set[str],
) -> Iterator[str]:
    """What a function, and the fixtures and helpers that it uses, touch of the SDK's inside."""
    seen.add(function.name)
    for node in ast.walk(function):
        name = ""
        if isinstance(node, ast.Attribute):
            name = node.attr
            if name.startswith("_") and not name.endswith("__") and name not in helpers:
                yield name
        elif isinstance(node, ast.Name):
            name = node.id
            if name in imported:
                yield name
        elif isinstance(node, ast.arg):  # a fixture, perhaps
            name = node.arg
        elif isinstance(node, ast.Constant) and PRIVATE.fullmatch(str(node.value)):
            yield str(node.value)
        if name in helpers and name not in seen:
            yield from _inside(helpers[name], helpers, imported, seen)


def _run(tests: SdkTests) -> dict[str, str]:
    report = tests.directory / "report.xml"
    chosen = tests.directory / "chosen.txt"
    chosen.write_text("\n".join(tests.black_box))
    done = subprocess.run(
        [environment("moved") / "python", "-m", "pytest", f"@{chosen}", "-q", "-p", "no:cacheprovider", "-W", "ignore",
         "-o", "junit_family=xunit1", f"--junitxml={report}"],
        cwd=tests.directory,
        env={"PYTHONPATH": f"{ROOT / 'service'}:{ROOT / 'telemetry'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    failures: dict[str, str] = {}
    ran = set()
    for case in ET.parse(report).iter("testcase"):
        class_name = case.attrib["classname"].rpartition(".")[2]
        name = case.attrib["name"].partition("[")[0]
        test = f"{case.attrib['file']}::" + (f"{class_name}::" if class_name.startswith("Test") else "") + name
        ran.add(test)
        for outcome in case:
            if outcome.tag in {"failure", "error", "skipped"}:
                failures[test] = f"{failures.get(test, '')}{outcome.text or outcome.attrib}\n"
    assert ran == set(tests.black_box), done.stdout + done.stderr
    return failures


def test_most_of_its_tests_of_the_public_names_are_found(tests: SdkTests) -> None:
    assert len(tests.black_box) >= 90
    assert tests.inside


def test_they_pass_here(failures: dict[str, str]) -> None:
    unexpected = {test: text for test, text in failures.items() if test not in DIFFERENT}
    if unexpected:
        pytest.fail("\n\n".join(f"{test}\n{text}" for test, text in unexpected.items()), pytrace=False)


def test_those_that_do_not_are_named_with_the_reason(failures: dict[str, str]) -> None:
    assert set(DIFFERENT) <= set(failures)
