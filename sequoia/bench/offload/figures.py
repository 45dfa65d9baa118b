"""From runs to figures: rows, ratios of the same run, and what passes took beside their limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

from sequoia.bench.errors import BenchmarkError
from sequoia.bench.interleave import Spread
from sequoia.bench.offload.streamed import Streamed
from sequoia.bench.peers.comparison import OURS, OURS_ALONE, common_length
from sequoia.bench.report import shown
from sequoia.bench.trees import tree_as_json
from sequoia.plans import PlannedTree

ACCELERATE = "accelerate"
ACCELERATE_CACHED = "accelerate-with-page-cache"
TIMES_TOKENS = f"{OURS} / {OURS_ALONE}, times tokens per step"
RATIOS = (
    (OURS_ALONE, ACCELERATE),
    (OURS, OURS_ALONE),
    (OURS, ACCELERATE),
    (OURS, ACCELERATE_CACHED),
    (OURS_ALONE, ACCELERATE_CACHED),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One system's figures.

    Attributes:
        seconds_per_token: of the tokens after the first ones, over all prompts and repetitions.
        seconds_to_first_token: reading the prompt, and the first step.
        tokens_per_step: all new tokens over all passes of the target that gave some.
        bytes_per_second: read from the disk.
        page_cache_bytes: the most of the checkpoint that was cached at the end of a text.
        peak_memory_bytes: of the process that has the target's weights.
        greedy_match: share of texts that equal accelerate's as far as both go; None without accelerate.
    """

    name: str
    seconds_per_token: Spread
    seconds_to_first_token: Spread
    tokens_per_step: float
    bytes_per_second: Spread
    page_cache_bytes: int
    peak_memory_bytes: int | None
    greedy_match: float | None

    @classmethod
    def of(
        cls,
        name: str,
        runs: Sequence[Streamed],
        peak_memory_bytes: int | None,
        reference: Sequence[Streamed] | None,
    ) -> Row:
        """Of a system's runs; `reference` has accelerate's in the same order.

        Raises:
            BenchmarkError: no text goes on after its first step, so there is nothing to time.
        """
        later = [run.run.seconds_per_later_token for run in runs]
        timed = [seconds for seconds in later if seconds is not None]
        if not timed:
            raise BenchmarkError(f"{name}: every text ended in its first step")
        return cls(
            name,
            Spread.of(timed),
            Spread.of([run.run.first_seconds for run in runs]),
            tokens_per_step(runs),
            Spread.of([run.bytes_per_second for run in runs]),
            max(run.page_cache_bytes for run in runs),
            peak_memory_bytes,
            None if reference is None else _match(runs, reference),
        )

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "name": self.name,
            "seconds_per_token": self.seconds_per_token.median,
            "spread": self.seconds_per_token.interquartile,
            "quartiles": [self.seconds_per_token.low, self.seconds_per_token.high],
            "seconds_to_first_token": self.seconds_to_first_token.median,
            "tokens_per_step": self.tokens_per_step,
            "bytes_per_second": self.bytes_per_second.median,
            "page_cache_bytes": self.page_cache_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "greedy_match": self.greedy_match,
        }


@dataclass(frozen=True, slots=True)
class PassTime:
    """A kind of pass of the target beside the least that it could take.

    Attributes:
        nodes: of its tree.
        seconds: what it took, the median over texts of their means.
        byte_count: read for it.
        read_seconds: `byte_count` at the raw rate of the disk.
        compute_seconds: with all weights in memory.
    """

    name: str
    nodes: int
    seconds: float
    byte_count: float
    read_seconds: float
    compute_seconds: float

    @classmethod
    def of(
        cls,
        name: str,
        runs: Sequence[Streamed],
        nodes: int,
        bytes_per_second: float,
        compute_seconds: float,
    ) -> PassTime:
        """Of a system's runs, the raw rate of the disk, and what computing alone takes."""
        byte_count = median(run.bytes_per_pass for run in runs)
        return cls(
            name,
            nodes,
            median(run.run.pass_seconds for run in runs),
            byte_count,
            byte_count / bytes_per_second,
            compute_seconds,
        )

    @property
    def times_the_limit(self) -> float:
        """Over the larger of reading and computing, which could hide each other."""
        return self.seconds / max(self.read_seconds, self.compute_seconds)

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {**asdict(self), "times_the_limit": self.times_the_limit}


@dataclass(frozen=True, slots=True)
class Setting:
    """Ours once more, with another draft or budget than in the comparison.

    Attributes:
        draft: a reference.
        rows: with speculation and, where it was asked for, without.
        tree: the planner's; None: it had none for one request at a time.
    """

    draft: str
    device_memory_bytes: int
    rows: Sequence[Row]
    tree: PlannedTree | None

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "draft": shown(self.draft),
            "device_memory_bytes": self.device_memory_bytes,
            "rows": [row.as_json() for row in self.rows],
            "tree": tree_as_json(self.tree),
        }


def tokens_per_step(runs: Sequence[Streamed]) -> float:
    """All new tokens over all passes that gave some."""
    tokens = sum(len(run.run.token_ids) for run in runs)
    return tokens / max(sum(run.run.step_count for run in runs), 1)


def make_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds per token of one system over another's, below 1: the first is faster.

    The last one is what speculation costs a pass: 1 where a step with a tree takes as long as one without.
    """
    medians = {row.name: row.seconds_per_token.median for row in rows}
    ratios = {
        f"{first} / {second}": medians[first] / medians[second]
        for first, second in RATIOS
        if first in medians and second in medians
    }
    steps = {row.name: row.tokens_per_step for row in rows}
    return ratios | {TIMES_TOKENS: ratios[f"{OURS} / {OURS_ALONE}"] * steps[OURS]}


def _match(runs: Sequence[Streamed], reference: Sequence[Streamed]) -> float:
    """Systems may stop after different numbers of tokens: texts match up to the shorter one's end."""
    pairs = [
        (one.run.token_ids, other.run.token_ids) for one, other in zip(runs, reference, strict=True)
    ]
    return fmean(common_length(one, other) == min(len(one), len(other)) for one, other in pairs)
