"""What draft and target workers count: batches, trees, prompts, sessions, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import Counter, Gauge, Histogram, Info

from sequoia.messages import WorkerInfo
from sequoia.metrics.instruments import POWERS_OF_TWO, SECONDS, Instruments


class WorkerMetrics(Instruments):
    """A worker's instruments; it steps on its device thread and is scraped on another.

    Args:
        role: draft or target.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        labels, registry = ("role",), self.registry
        self._role = role
        self._batch_seconds = Histogram(
            "sequoia_worker_batch_seconds",
            "Time of a batch of steps on the device.",
            labels,
            buckets=SECONDS,
            registry=registry,
        ).labels(role)
        self._batch_sessions = Histogram(
            "sequoia_worker_batch_sessions",
            "Sessions that stepped in one batch.",
            labels,
            buckets=POWERS_OF_TWO,
            registry=registry,
        ).labels(role)
        self._tree_nodes = Histogram(
            "sequoia_worker_tree_nodes",
            "Nodes of a session's tree, the root included.",
            labels,
            buckets=POWERS_OF_TWO,
            registry=registry,
        ).labels(role)
        self._read_seconds = Histogram(
            "sequoia_worker_prefill_pass_seconds",
            "Time of a pass over chunks of prompts.",
            labels,
            buckets=SECONDS,
            registry=registry,
        ).labels(role)
        self._read_tokens = Counter(
            "sequoia_worker_prefill_tokens",
            "Tokens of prompts read.",
            labels,
            registry=registry,
        ).labels(role)
        self.reused = Counter(
            "sequoia_worker_prefill_reused_tokens",
            "Tokens of prompts that a closed session had read already.",
            labels,
            registry=registry,
        ).labels(role)
        self.opened = Counter(
            "sequoia_worker_sessions_opened",
            "Sessions opened or rebuilt.",
            labels,
            registry=registry,
        ).labels(role)
        self.evicted = Counter(
            "sequoia_worker_sessions_evicted",
            "Idle sessions that had to make room for others, or that nobody came back to.",
            labels,
            registry=registry,
        ).labels(role)
        self._info = Info(
            "sequoia_worker", "The model and where it runs.", labels, registry=registry
        ).labels(role)

    def show(
        self,
        info: Callable[[], WorkerInfo],
        queued: Callable[[], int],
        retained_bytes: Callable[[], int],
    ) -> None:
        """Read what the worker holds from it whenever it is scraped.

        Args:
            info: what it says of itself.
            queued: how many calls wait for its device.
            retained_bytes: what is kept of closed sessions beside those in the information.
        """
        known = info()
        self._info.info(
            {
                "model": known.model,
                "dtype": known.dtype,
                "device": known.device,
                "placement": known.placement,
            }
        )
        gauges: Iterable[tuple[str, str, Callable[[], float]]] = (
            ("sessions", "Sessions held.", lambda: info().session_count),
            ("session_limit", "Most sessions.", lambda: info().session_limit),
            ("kv_cache_bytes", "Keys and values held.", lambda: info().kv_cache_bytes),
            (
                "kv_cache_limit_bytes",
                "Most bytes of keys and values.",
                lambda: info().kv_cache_limit_bytes,
            ),
            (
                "retained_kv_cache_bytes",
                "Keys, values and features of closed sessions, kept for prompts that begin alike.",
                retained_bytes,
            ),
            ("jobs_queued", "Steps and chunks that wait for the device.", queued),
        )
        for name, documentation, value in gauges:
            gauge = Gauge(
                f"sequoia_worker_{name}", documentation, ("role",), registry=self.registry
            )
            gauge.labels(self._role).set_function(value)

    def has_stepped(self, seconds: float, node_counts: Sequence[int]) -> None:
        """A batch took so long, and its sessions now hold trees of so many nodes."""
        self._batch_seconds.observe(seconds)
        self._batch_sessions.observe(len(node_counts))
        for count in node_counts:
            self._tree_nodes.observe(count)

    def has_read(self, token_count: int, seconds: float) -> None:
        """A pass read so many tokens of prompts."""
        self._read_tokens.inc(token_count)
        self._read_seconds.observe(seconds)
