"""Traces, metrics and logs of a service. Depends neither on ``litestar_agentcore`` nor on Litestar."""
