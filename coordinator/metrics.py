"""What a coordinator counts: requests, tokens, times, steps, acceptance, the line, the plan in force.

Names and buckets of `gen_ai_*` are those of OpenTelemetry's conventions for generative AI, in
Prometheus' spelling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import Counter, Histogram

from coordinator.step_metrics import StepMetrics
from coordinator.worker_session import WorkerSession
from sequoia.generation import Completion, GenerationChunk, GenerationRequest
from sequoia.metrics.instruments import SECONDS, Instruments

TIME_TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TIME_PER_OUTPUT_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5),
)
REQUEST_DURATION = tuple(0.01 * 2**power for power in range(14))
TOKEN_USAGE = tuple(4**power for power in range(14))
QUEUE_SECONDS = (0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0)
GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
PROVIDER = "sequoia"
FAILED = "failed"
ABANDONED = "abandoned"
ROLES = ("target", "draft")


class CoordinatorMetrics(Instruments):
    """A coordinator's instruments.

    Args:
        model: names the target; empty as long as it has not been found.
    """

    def __init__(self, model: Callable[[], str]) -> None:
        super().__init__()
        registry = self.registry
        self.model = model
        self.steps = StepMetrics(registry)
        self.requests = Counter(
            "sequoia_requests",
            "Requests that have ended: with stop, stop_string, length, cancelled (by a coordinator that "
            "stops), abandoned (by the client), failed.",
            ("outcome",),
            registry=registry,
        )
        self.client_tokens = Counter(
            "sequoia_client_tokens",
            "Tokens by client, of prompts (input) and texts (output), failed requests included.",
            ("client", "gen_ai_token_type"),
            registry=registry,
        )
        self.request_duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time of a request, the line included.",
            (*GEN_AI, "error_type"),
            buckets=REQUEST_DURATION,
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a request to its first token, the line included.",
            GEN_AI,
            buckets=TIME_TO_FIRST_TOKEN,
            registry=registry,
        )
        self.time_per_output_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per token after the first, over a request that has ended by itself.",
            GEN_AI,
            buckets=TIME_PER_OUTPUT_TOKEN,
            registry=registry,
        )
        self.token_usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request that has ended by itself: of its prompt (input), of its text (output).",
            (*GEN_AI, "gen_ai_token_type"),
            buckets=TOKEN_USAGE,
            registry=registry,
        )
        self.between_chunks = Histogram(
            "sequoia_between_chunks_seconds",
            "Time between two pieces of a text, each of one token or several.",
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "sequoia_queue_seconds",
            "Time that a request waited in the line before it was let in.",
            buckets=QUEUE_SECONDS,
            registry=registry,
        )

        self.sessions_rebuilt = Counter(
            "sequoia_sessions_rebuilt",
            "Sessions that a worker read anew, because it or another one had lost them.",
            ("worker",),
            registry=registry,
        )
        self.sessions_moved = Counter(
            "sequoia_sessions_moved",
            "Sessions that went to another worker: theirs was lost, told to end or full.",
            ("worker",),
            registry=registry,
        )
        for role in ROLES:  # shown before they happen
            self.sessions_rebuilt.labels(role)
            self.sessions_moved.labels(role)

    def had_sessions(self, sessions: Iterable[WorkerSession[Any, Any]]) -> None:
        """A request has ended, and with it its sessions."""
        for session in sessions:
            role = session.worker.role
            self.sessions_rebuilt.labels(role).inc(session.rebuilt_count)
            self.sessions_moved.labels(role).inc(session.moved_count)

    @contextmanager
    def request(self, request: GenerationRequest, client: str) -> Iterator[RequestMetrics]:
        """Around one request, from before its prompt is read."""
        one = RequestMetrics(self, "text_completion" if request.chat is None else "chat", client)
        try:
            yield one
        except (asyncio.CancelledError, GeneratorExit):
            one.end(one.outcome, error_type="CANCELLED" if one.outcome == ABANDONED else "")
            raise
        except BaseException as error:
            one.end(FAILED, error_type=str(getattr(error, "reason", "INTERNAL")))
            raise
        else:
            one.end(one.outcome)


class RequestMetrics:
    """One request on its way."""

    def __init__(self, metrics: CoordinatorMetrics, operation: str, client: str) -> None:
        self.outcome = ABANDONED  # until its last chunk says how it ended
        self._metrics = metrics
        self._labels = operation, PROVIDER, metrics.model()
        self._client = client
        self._started = time.perf_counter()
        self._first_chunk = self._last_chunk = 0.0
        self._first_count = 0  # tokens of the first piece

    def prompt(self, token_count: int) -> None:
        """Its prompt has been read."""
        self._metrics.client_tokens.labels(self._client, "input").inc(token_count)

    def generated(self, chunk: GenerationChunk) -> None:
        """A piece of its text is about to be written."""
        if chunk.tokens:
            now = time.perf_counter()
            self._metrics.client_tokens.labels(self._client, "output").inc(len(chunk.tokens))
            if self._last_chunk:
                self._metrics.between_chunks.observe(now - self._last_chunk)
            else:
                first = self._metrics.time_to_first_token.labels(*self._labels)
                first.observe(now - self._started)
                self._first_chunk, self._first_count = now, len(chunk.tokens)
            self._last_chunk = now
        if chunk.completion:
            self._completed(chunk.completion)

    def _completed(self, completion: Completion) -> None:
        usage = completion.usage
        self.outcome = completion.finish_reason.value
        for kind, count in (
            ("input", usage.prompt_token_count),
            ("output", usage.completion_token_count),
        ):
            self._metrics.token_usage.labels(*self._labels, kind).observe(count)
        later = usage.completion_token_count - self._first_count if self._last_chunk else 0
        if later > 0:
            per_token = self._metrics.time_per_output_token.labels(*self._labels)
            per_token.observe((self._last_chunk - self._first_chunk) / later)

    def end(self, outcome: str, error_type: str = "") -> None:
        """It has ended, and how."""
        self._metrics.requests.labels(outcome).inc()
        duration = self._metrics.request_duration.labels(*self._labels, error_type)
        duration.observe(time.perf_counter() - self._started)
