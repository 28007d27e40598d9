"""Serve an AI agent the way Amazon Bedrock AgentCore Runtime does, anywhere.

The names are the reference runtime's on purpose: an agent written for it moves here by changing one import line.
"""

import gc

# Importing makes thousands of objects that stay, and looking among them for garbage is a tenth of its time.
_was_enabled = gc.isenabled()
gc.disable()
try:
    from service.app import BedrockAgentCoreApp
    from service.plugin import AgentCorePlugin
    from service.protocol.context import BedrockAgentCoreContext, RequestContext
    from service.protocol.models import PingStatus
    from service.protocol.settings import Settings, SettingsError
    from service.version import __version__
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
