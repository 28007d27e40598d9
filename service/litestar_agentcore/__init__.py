"""Serve an AI agent as Amazon Bedrock AgentCore Runtime does, anywhere.

The names are the reference runtime's: an agent written for it runs here after one import line is changed.
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litestar_agentcore.a2a import (
        A2APlugin,
        BedrockCallContextBuilder,
        build_a2a_app,
        build_runtime_url,
        serve_a2a,
    )
    from litestar_agentcore.ag_ui import AGUIApp, AGUIPlugin, build_ag_ui_app, serve_ag_ui
    from litestar_agentcore.mcp import MCPPlugin, mcp_app, serve_mcp

# Importing makes thousands of objects that stay: collecting garbage meanwhile is a tenth of its time.
_was_enabled = gc.isenabled()
gc.disable()
try:
    from litestar_agentcore.app import BedrockAgentCoreApp
    from litestar_agentcore.context import BedrockAgentCoreContext
    from litestar_agentcore.guards import require_authentication
    from litestar_agentcore.plugin import AgentCorePlugin
    from litestar_agentcore.protocol.context import RequestContext
    from litestar_agentcore.protocol.models import PingStatus
    from litestar_agentcore.protocol.settings import Settings, SettingsError
    from litestar_agentcore.version import __version__
finally:
    if not gc.get_freeze_count():  # else they are the host program's
        # To the oldest generation at once: the first collection would look at all of it, for another tenth.
        gc.freeze()
        gc.unfreeze()
    if _was_enabled:
        gc.enable()

__all__ = [
    "A2APlugin",
    "AGUIApp",
    "AGUIPlugin",
    "AgentCorePlugin",
    "BedrockAgentCoreApp",
    "BedrockAgentCoreContext",
    "BedrockCallContextBuilder",
    "MCPPlugin",
    "PingStatus",
    "RequestContext",
    "Settings",
    "SettingsError",
    "__version__",
    "build_a2a_app",
    "build_ag_ui_app",
    "build_runtime_url",
    "mcp_app",
    "require_authentication",
    "serve_a2a",
    "serve_ag_ui",
    "serve_mcp",
]

_MODULES = {
    "A2APlugin": "a2a",
    "BedrockCallContextBuilder": "a2a",
    "build_a2a_app": "a2a",
    "build_runtime_url": "a2a",
    "serve_a2a": "a2a",
    "AGUIApp": "ag_ui",
    "AGUIPlugin": "ag_ui",
    "build_ag_ui_app": "ag_ui",
    "serve_ag_ui": "ag_ui",
    "MCPPlugin": "mcp",
    "mcp_app": "mcp",
    "serve_mcp": "mcp",
}
"""Where the names are whose modules are imported once they are asked for."""


def __getattr__(name: str) -> Any:
    if (module := _MODULES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
