"""Serve an AI agent the way Amazon Bedrock AgentCore Runtime does, anywhere.

The names are the reference runtime's on purpose: an agent written for it moves here by changing one import line.
"""

import gc

# Importing makes thousands of objects that stay, and looking among them for garbage is a tenth of its time.
_was_enabled = gc.isenabled()
gc.disable()
try:
    from litestar_agentcore.app import BedrockAgentCoreApp
    from litestar_agentcore.plugin import AgentCorePlugin
    from litestar_agentcore.protocol.context import BedrockAgentCoreContext, RequestContext
    from litestar_agentcore.protocol.models import PingStatus
    from litestar_agentcore.protocol.settings import Settings, SettingsError
    from litestar_agentcore.version import __version__
finally:
    if _was_enabled:
        gc.enable()

__all__ = [
    "AgentCorePlugin",
    "BedrockAgentCoreApp",
    "BedrockAgentCoreContext",
    "PingStatus",
    "RequestContext",
    "Settings",
    "SettingsError",
    "__version__",
]
