"""From runs to figures: rows, ratios of the same run, and where greedy texts part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sequoia.bench.interleave import Spread
from sequoia.bench.peers.runs import Run

OURS = "sequoia"
OURS_ALONE = "sequoia-no-speculation"
OURS_IN_PROCESS = "sequoia-in-process"
REFERENCE = "transformers"

Leads = Callable[[Sequence[int], int], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One system's figures.

    Attributes:
        seconds_per_token: over all prompts and repetitions.
        tokens_per_step: all new tokens over all passes of the target.
        greedy_match: share of prompts whose whole text is the reference's; None where texts are drawn.
    """

    name: str
    seconds_per_token: Spread
    tokens_per_step: float
    greedy_match: float | None

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "name": self.name,
            "seconds_per_token": self.seconds_per_token.median,
            "spread": self.seconds_per_token.interquartile,
            "quartiles": [self.seconds_per_token.low, self.seconds_per_token.high],
            "tokens_per_step": self.tokens_per_step,
            "greedy_match": self.greedy_match,
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """Seconds per token of one system over those of another, below 1 where the first is faster.

    Attributes:
        of_medians: the rows' medians, divided.
        paired: the two runs of the same prompt and repetition divided, over all of them.
    """

    name: str
    of_medians: float
    paired: Spread


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a greedy text parts from the reference.

    Attributes:
        prompt: its place among the prompts, from 0.
        position: new tokens that both have in common.
        token_id: what the system says there, and `reference_token_id` the other; None: it ended.
        top_gap: there, the reference's best logit less its second.
        logit_gap: there, the reference's best logit less that of the system's token; None: it ended.
    """

    system: str
    prompt: int
    position: int
    token_id: int | None
    reference_token_id: int | None
    top_gap: float
    logit_gap: float | None


def make_rows(runs: Mapping[str, Sequence[Run]], prompt_count: int, greedy: bool) -> list[Row]:
    """A row for every system, in their order."""
    return [
        Row(
            name,
            Spread.of([run.seconds_per_token for run in mine]),
            sum(len(run.token_ids) for run in mine) / max(sum(run.step_count for run in mine), 1),
            _match(mine, runs[REFERENCE], prompt_count) if greedy else None,
        )
        for name, mine in runs.items()
    ]


def make_ratios(
    runs: Mapping[str, Sequence[Run]], rows: Sequence[Row], pairs: Sequence[tuple[str, str]]
) -> list[Ratio]:
    """The ratios of those pairs of which both have run."""
    medians = {row.name: row.seconds_per_token.median for row in rows}
    return [
        Ratio(
            f"{first} / {second}",
            medians[first] / medians[second],
            Spread.of(
                [
                    one.seconds_per_token / other.seconds_per_token
                    for one, other in zip(runs[first], runs[second], strict=True)
                ]
            ),
        )
        for first, second in pairs
        if first in runs and second in runs
    ]


def overhead_per_step(served: Sequence[Run], in_process: Sequence[Run]) -> Spread:
    """Seconds that gRPC and separate processes add to a step, run by run of the same prompt."""
    return Spread.of(
        [
            one.seconds_per_step - other.seconds_per_step
            for one, other in zip(served, in_process, strict=True)
        ]
    )


def find_differences(
    runs: Mapping[str, Sequence[Run]],
    prompts: Sequence[Sequence[int]],
    leads: Leads,
) -> list[Difference]:
    """Every system's first repetition against the reference's.

    Args:
        runs: of all systems, the reference among them.
        prompts: token ids of the prompts, in the order of the runs.
        leads: after some tokens, how far the reference's best logit is ahead of its second and of
            a token's.
    """
    found = []
    for name, mine in runs.items():
        for index, prompt in enumerate(prompts):
            ours, theirs = mine[index].token_ids, runs[REFERENCE][index].token_ids
            if ours == theirs:
                continue
            position = common_length(ours, theirs)
            said = ours[position] if position < len(ours) else None
            expected = theirs[position] if position < len(theirs) else None
            before = [*prompt, *theirs[:position]]
            top_gap, gap = leads(before, said if said is not None else 0)
            logit_gap = None if said is None else gap
            found.append(Difference(name, index, position, said, expected, top_gap, logit_gap))
    return found


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that both share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _match(mine: Sequence[Run], reference: Sequence[Run], prompt_count: int) -> float:
    """Greedy texts do not depend on the repetition, so a prompt matches if all of its texts do."""
    return fmean(
        all(
            mine[place].token_ids == reference[place].token_ids
            for place in range(index, len(mine), prompt_count)
        )
        for index in range(prompt_count)
    )
