"""Options that say what a process tells of itself, and to whom."""

from __future__ import annotations

import re
from typing import Annotated

import typer

COLLECTOR = re.compile(r"^https?://(\[[0-9a-fA-F:]+\]|[^:/\s@]+)(:\d{1,5})?/?$")


def _collector(value: str | None) -> str | None:
    if value is not None and not COLLECTOR.match(value):
        raise typer.BadParameter(f"{value!r} is not http://HOST:PORT or https://HOST:PORT")
    return value


MetricsPort = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_METRICS_PORT",
        min=0,
        max=65535,
        help="Port of /metrics for Prometheus, on the address to listen on; 0: none.",
    ),
]
SystemMetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        envvar="SEQUOIA_METRICS_PORT",
        min=0,
        max=65532,
        help="Port of the coordinator's /metrics for Prometheus; planner, target and draft take the next "
        "three, on the addresses that they listen on; 0: none.",
    ),
]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(
        envvar=["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"],
        callback=_collector,
        metavar="URL",
        help="Collector of OpenTelemetry traces, over gRPC, such as http://localhost:4317. Default: no "
        "traces.",
    ),
]
TraceSteps = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_TRACE_STEPS",
        min=0,
        help="One step in so many has spans of its own in traces; 0: none.",
    ),
]
