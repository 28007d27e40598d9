"""``bedrock_agentcore``, as an agent file imports it that is served here unchanged.

The names with which an agent is served (:data:`SERVING`) are ours in the modules that have them. Every other
module and name is the installed SDK's own, loaded from where it is installed when it is asked for; where the SDK is
not installed, importing one is an error that says what to install.

This is for processes that ``litestar-agent`` starts to serve or to examine an agent file. Importing the package changes
no import. What such a process has imported from the SDK before, in a ``sitecustomize`` for instance, stays what it was
for who imported it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

PACKAGE = "bedrock_agentcore"
DISTRIBUTION = "bedrock-agentcore"

_ALL = ("BedrockAgentCoreApp", "BedrockAgentCoreContext", "PingStatus", "RequestContext")
_A2A = ("BedrockCallContextBuilder", "build_a2a_app", "build_runtime_url", "serve_a2a")
_AG_UI = ("AGUIApp", "build_ag_ui_app", "serve_ag_ui")
SERVING = {
    PACKAGE: _ALL,
    f"{PACKAGE}.runtime": (*_ALL, *_A2A, *_AG_UI),
    f"{PACKAGE}.runtime.a2a": _A2A,
    f"{PACKAGE}.runtime.ag_ui": _AG_UI,
    f"{PACKAGE}.runtime.app": _ALL,
    f"{PACKAGE}.runtime.context": ("BedrockAgentCoreContext", "RequestContext"),
    f"{PACKAGE}.runtime.models": ("PingStatus",),
}
"""The modules of the SDK that are ours, each with the names in it that are ours."""

_PACKAGES = (PACKAGE, f"{PACKAGE}.runtime")


def serve_sdk_imports() -> None:
    """Have imports of the SDK's serving names give ours, from now on, in this process. A second call changes nothing.

    What was imported of the SDK already is imported anew at the next import of it.
    """
    if any(isinstance(finder, _SdkFinder) for finder in sys.meta_path):
        return
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _SdkFinder())


class _SdkFinder(MetaPathFinder):
    """Finds the modules of :data:`SERVING`, and says what to install where another module of the SDK is not there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in SERVING:
            if fullname.startswith(f"{PACKAGE}.") and not path:
                # The name is the package's: of a submodule's own, ``from package import name`` would ignore the error.
                raise ModuleNotFoundError(_not_installed(fullname), name=PACKAGE)
            return None
        theirs = None if path is not None and not path else self._theirs(fullname, path)
        spec = ModuleSpec(fullname, _ServingLoader(theirs), origin=__file__)
        spec.has_location = True
        if fullname in _PACKAGES and theirs is not None:
            spec.submodule_search_locations = theirs.submodule_search_locations
        elif theirs is None:
            # Where it counts as a package, a name that it lacks is looked for as a submodule, and so reported as above.
            spec.submodule_search_locations = []
        return spec

    def _theirs(self, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """The installed module."""
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find_spec is None else find_spec(fullname, path, None)
            if spec is not None and spec.origin is not None:  # else it is a directory of that name, and no package
                return spec
        return None


def _not_installed(name: str) -> str:
    return (
        f"{name} is the official SDK's, which is not installed: `pip install {DISTRIBUTION}`."
        f" Here are only {', '.join(_ALL)}"
    )


class _ServingLoader(Loader):
    """Makes a module of names of ours, in front of the installed one of that name.

    Args:
        theirs: The installed module's spec, where there is one.
    """

    def __init__(self, theirs: ModuleSpec | None) -> None:
        self._theirs = theirs
        self._installed: ModuleType | None = None

    def exec_module(self, module: ModuleType) -> None:
        package = importlib.import_module("litestar_agentcore")
        names = SERVING[module.__name__]
        # Those of the other protocols are imported when they are asked for.
        vars(module).update({name: getattr(package, name) for name in names if name in vars(package)})
        if self._theirs is None:
            vars(module)["__all__"] = list(names)

        def other_name(name: str) -> Any:
            if name in names:
                return getattr(package, name)
            if self._theirs is not None and (name == "__all__" or not name.startswith("__")):
                if self._installed is None:
                    self._installed = _executed(self._theirs)
                if name in vars(module):  # a submodule that was imported by that
                    return vars(module)[name]
                return getattr(self._installed, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=module)

        vars(module)["__getattr__"] = other_name


def _executed(theirs: ModuleSpec) -> ModuleType:
    """Run the installed module beside ours. What it imports of its own package is ours, where that is served."""
    module = module_from_spec(theirs)
    if theirs.loader is not None:
        theirs.loader.exec_module(module)
    return module
