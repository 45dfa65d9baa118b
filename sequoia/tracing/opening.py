"""From the options of a command line to a tracer; what cannot be used ends the process."""

from __future__ import annotations

from sequoia.config import fail
from sequoia.tracing.spans import Tracer


def opened(role: str, endpoint: str | None, step_interval: int) -> Tracer | None:
    """The tracer of a role; None without an endpoint."""
    if endpoint is None:
        return None
    try:
        from sequoia.tracing.provider import otlp_tracer
    except ImportError:
        fail("--otlp-endpoint needs OpenTelemetry: pip install 'sequoia[tracing]'", 2)
    return otlp_tracer(role, endpoint, step_interval)
