"""The house: three layers, arrows that point one way only, and a docstring on all that is public."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT / directory).with_suffix("").parts).removesuffix(".__init__"): path
    for directory in ("service", "telemetry")
    for path in sorted((ROOT / directory).rglob("*.py"))
}


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(module: str) -> Iterator[str]:
    """What a module imports anywhere in its code, be it late or for types alone, each by its absolute name."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imports_within(package: str) -> list[tuple[str, str]]:
    """Each module of a package with each of its imports."""
    return [(module, name) for module in MODULES if within(module, package) for name in imports_of(module)]


@pytest.mark.parametrize(
    ("layer", "known"),
    [
        ("litestar_agentcore.protocol", ["litestar_agentcore.protocol"]),
        ("litestar_agentcore.runtime", ["litestar_agentcore.protocol", "litestar_agentcore.runtime"]),
        ("agentcore_telemetry", []),
    ],
)
def test_a_layer_knows_itself_and_those_below_alone(layer: str, known: list[str]) -> None:
    imports = imports_within(layer)
    assert imports
    assert [arrow for arrow in imports if within(arrow[1], "litestar_agentcore") and not within(arrow[1], *known)] == []


@pytest.mark.parametrize(
    ("layer", "foreign"),
    [
        ("litestar_agentcore.protocol", ["litestar", "uvicorn", "asyncio", "threading", "concurrent"]),
        ("litestar_agentcore.runtime", ["litestar", "uvicorn"]),
        ("agentcore_telemetry", ["litestar"]),
        ("litestar_agentcore", ["bedrock_agentcore", "starlette"]),
        ("agentcore_telemetry", ["bedrock_agentcore", "starlette"]),
    ],
)
def test_a_layer_does_without_what_is_not_its_business(layer: str, foreign: list[str]) -> None:
    imports = imports_within(layer)
    assert imports
    assert [arrow for arrow in imports if within(arrow[1], *foreign)] == []


def modules_of_ours_imported_by(module: str) -> set[str]:
    """Of what a module imports, the modules that are ours."""
    by_name = re.findall(r"""import_module\(["']([\w.]+)""", MODULES[module].read_text())
    found = set()
    for name in (*imports_of(module), *by_name):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        found.add(name)
    return found & MODULES.keys() - {module}


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({module: modules_of_ours_imported_by(module) for module in MODULES}).prepare()


def public_things(module: str) -> Iterator[tuple[str, str | None]]:
    """The public classes, functions and methods that a module defines, each with its docstring."""
    for name, thing in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module:
            continue
        if inspect.isfunction(thing):
            yield name, inspect.getdoc(thing)
        elif inspect.isclass(thing):
            yield name, vars(thing).get("__doc__")
            for member, value in vars(thing).items():
                if not member.startswith("_") and isinstance(
                    value, FunctionType | classmethod | staticmethod | property
                ):
                    yield f"{name}.{member}", inspect.getdoc(getattr(thing, member))


@pytest.mark.parametrize("module", MODULES)
def test_all_that_is_public_has_a_docstring(module: str) -> None:
    assert importlib.import_module(module).__doc__
    assert [name for name, documentation in public_things(module) if not documentation] == []


def test_each_package_is_loaded_under_its_own_name_alone() -> None:
    # From the repository's root the directories around the packages could be imported as packages too.
    copies = [name for name in sys.modules if within(name, "service", "telemetry")]
    assert copies == []
