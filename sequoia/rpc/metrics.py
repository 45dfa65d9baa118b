"""Calls as a server counts them: how long, how they ended, and why they failed.

Named as OpenTelemetry's conventions for RPC have it. A step on an open stream counts as a call.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from sequoia.errors import Reason
from sequoia.metrics.instruments import Instruments
from sequoia.rpc.errors import CODES
from sequoia.rpc.method import Method

CALL_SECONDS = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0),
)
OK = "OK"
CANCELLED = "CANCELLED"


class RpcMetrics(Instruments):
    """What a server tells of its calls, and whether it is serving."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds = Histogram(
            "rpc_server_call_duration_seconds",
            "Time of a call, or of a step where a call carries many.",
            ("rpc_method", "rpc_response_status_code"),
            buckets=CALL_SECONDS,
            registry=self.registry,
        )
        self._failures = Counter(
            "sequoia_rpc_failures",
            "Calls that failed, by reason; callers that went away are none.",
            ("rpc_method", "reason"),
            registry=self.registry,
        )
        self.serving = Gauge(
            "sequoia_serving", "1 when the role can do its work.", registry=self.registry
        )

    def add_method(self, method: Method[object, object]) -> None:
        """Begin to count a method's failures at 0, so that the first one shows as a rise."""
        for reason in Reason:
            self._failures.labels(_name(method), reason.value)

    def has_answered(self, method: Method[object, object], seconds: float) -> None:
        """A call was answered."""
        self._seconds.labels(_name(method), OK).observe(seconds)

    def was_cancelled(self, method: Method[object, object], seconds: float) -> None:
        """The caller went away."""
        self._seconds.labels(_name(method), CANCELLED).observe(seconds)

    def has_failed(self, method: Method[object, object], seconds: float, reason: Reason) -> None:
        """A call failed."""
        self._seconds.labels(_name(method), CODES[reason].name).observe(seconds)
        self._failures.labels(_name(method), reason.value).inc()


def _name(method: Method[object, object]) -> str:
    return method.path[1:]
