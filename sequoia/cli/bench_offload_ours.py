"""Ours in `sequoia bench offload`: systems with one draft or another, and with this budget or that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sequoia.bench.interleave import take_turns
from sequoia.bench.offload.figures import Row, Setting
from sequoia.bench.offload.models import Models
from sequoia.bench.offload.streamed import Streamed
from sequoia.bench.offload.with_sequoia import OffloadedSystem, call_seconds
from sequoia.bench.peers.comparison import OURS, OURS_ALONE
from sequoia.bench.peers.runs import Prompt
from sequoia.bench.peers.served import ServedSystem
from sequoia.cli.bench_common import say_progress
from sequoia.cli.bench_planning import LOOK_SECONDS, held_after
from sequoia.cli.session import quiet_system, say
from sequoia.config import Placement
from sequoia.launcher import LaunchOptions
from sequoia.plans import PlannedTree, request_class
from sequoia.settings import DrawRule

DEVICE = "cpu"
GREEDY = request_class(0.0, DrawRule.GREEDY)


@dataclass(frozen=True, slots=True)
class Ours:
    """What all of our systems have in common.

    Attributes:
        prompts: with as many new tokens as speculation makes.
        plain_tokens: new tokens without speculation.
    """

    models: Models
    prompts: tuple[Prompt, ...]
    plain_tokens: int
    dtype: str
    threads: int

    @contextmanager
    def running(
        self, draft: str, device_memory: int
    ) -> Iterator[tuple[OffloadedSystem, PlannedTree | None]]:
        """A system with this draft and budget, and the tree that its plan holds for these requests."""
        gib = device_memory / 2**30
        say(f"a system with {gib:.3g} GiB for the target, and the draft {Path(draft).name}")
        launch = LaunchOptions(
            str(self.models.target),
            draft,
            dtype=self.dtype,
            device=DEVICE,
            threads=self.threads,
            max_batch_size=1,  # texts are written one at a time
            replan_seconds=LOOK_SECONDS,
            placement=Placement.OFFLOAD,
            device_memory=device_memory,
            prefix_cache=False,
        )
        timeout = call_seconds(max(prompt.max_new_tokens for prompt in self.prompts))
        with (
            quiet_system(launch) as system,
            ServedSystem(system.address, 0.0, timeout) as served,
        ):
            ours = OffloadedSystem(system, served, self.models.files, self.plain_tokens)

            def warm_up() -> None:
                for prompt in self.prompts:
                    ours.speculate(prompt)

            with held_after(system, warm_up) as plan:
                yield ours, plan.tree_for(GREEDY, 1)

    def measure(
        self,
        draft: str,
        device_memory: int,
        names: Sequence[str],
        reference: Sequence[Streamed] | None,
    ) -> Setting:
        """Ours with another draft or budget: every prompt once."""
        with self.running(draft, device_memory) as (ours, tree):
            systems = {OURS: ours.speculate, OURS_ALONE: ours.alone}
            runs = take_turns(
                {name: systems[name] for name in names}, self.prompts, 1, say_progress
            )
            peak = ours.peak_memory()
        first = None if reference is None else reference[: len(self.prompts)]
        rows = [Row.of(name, mine, peak, first) for name, mine in runs.items()]
        return Setting(draft, device_memory, rows, tree)
