"""An agent that records a span with all that a span may have."""

from typing import Any

from litestar_agentcore import BedrockAgentCoreApp
from opentelemetry import trace
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tests.backends.details import ATTRIBUTES, LINKED, MESSAGE

app = BedrockAgentCoreApp()


@app.entrypoint
async def detailed(payload: dict[str, Any]) -> None:
    linked = SpanContext(*LINKED, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with trace.get_tracer("a library", "1.2").start_as_current_span(
        "details", kind=SpanKind.CLIENT, attributes=ATTRIBUTES, links=[trace.Link(linked, {"why": "retry"})]
    ) as span:
        span.add_event("half way", {"percent": 50})
        span.set_status(Status(StatusCode.ERROR, MESSAGE))
