"""The official SDK in the same process: its ``BedrockAgentCoreContext`` gets and sets the values of ours.

Its identity and memory decorators ask that class for the token and the ids. Agents import it at the top of a file, or
only inside a handler or a tool, so the class is changed whenever its module is loaded. Nothing is imported here, and
where that module is not imported nothing happens.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from litestar_agentcore.context import BedrockAgentCoreContext

MODULE = "bedrock_agentcore.runtime.context"


def share_context() -> None:
    """Make the official SDK's context one with ours, now or when it is loaded. Calling it again changes nothing."""
    if (module := sys.modules.get(MODULE)) is not None:
        _share_with(module)
    if not any(isinstance(finder, _ContextFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ContextFinder())


class _ContextFinder(MetaPathFinder):
    """Finds that one module as the other finders do, and has it changed after its code has run.

    It stays in ``sys.meta_path``: taking it out while another thread imports would make that one skip a finder.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _ContextLoader(spec.loader)
                return spec
        return None


class _ContextLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # as it would be without us
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _share_with(module)


def _share_with(module: ModuleType) -> None:
    theirs, ours = getattr(module, "BedrockAgentCoreContext", None), BedrockAgentCoreContext
    if theirs is None or theirs is ours:
        return
    before = [(name, getattr(theirs, f"get_{name}", lambda: None)()) for name in _SET_OUTSIDE_REQUESTS]
    for name in vars(ours):
        if name.startswith(("get_", "set_")) and hasattr(theirs, name):
            setattr(theirs, name, getattr(ours, name))
    for name, value in before:
        if value is not None:
            getattr(ours, f"set_{name}")(value)


_SET_OUTSIDE_REQUESTS = ("workload_access_token", "oauth2_callback_url")
"""What a program may have set before there was an application, for local development."""
