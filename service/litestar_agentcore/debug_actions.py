"""Payloads that ask for a debug action in place of the handler, in an app made with ``debug=True``."""

from litestar_agentcore.protocol.models import PingStatus, Refusal
from litestar_agentcore.protocol.serialization import decode_body, encode
from litestar_agentcore.runtime.agent import Agent

ACTION = "_agent_core_app_action"
"""The key of such a payload."""


async def debug_action(agent: Agent, body: bytes) -> bytes | None:
    """Do what a payload asks for.

    Args:
        agent: The agent that is asked.
        body: The body of the request.

    Returns:
        The answer's body; ``None`` for any other payload.

    Raises:
        Refusal: The body is not JSON, or there is no such action (status 400).
    """
    payload = decode_body(body)
    if not isinstance(payload, dict) or ACTION not in payload:
        return None
    health = agent.health
    action = payload[ACTION]
    if action == "ping_status":
        return encode(await health.answer())
    if action == "job_status":
        return encode(agent.tasks.info())
    if action == "force_healthy":
        health.force(PingStatus.HEALTHY)
        return encode({"forced_status": "Healthy"})
    if action == "force_busy":
        health.force(PingStatus.HEALTHY_BUSY)
        return encode({"forced_status": "HealthyBusy"})
    if action == "clear_forced_status":
        health.clear()
        return encode({"forced_status": "Cleared"})
    raise Refusal(400, f"Unknown action: {action}", reason="Unknown action")
