"""One run of `sequoia bench offload`; imported only once the options are known to be right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import typer

from sequoia.bench.environment import Environment
from sequoia.bench.errors import HostError, UnavailableError
from sequoia.bench.host import ProcessHost
from sequoia.bench.interleave import Spread, take_turns
from sequoia.bench.offload.budgets import require_budgets
from sequoia.bench.offload.compute import MakeComputeTimer
from sequoia.bench.offload.disk import DiskReader
from sequoia.bench.offload.figures import ACCELERATE, ACCELERATE_CACHED, PassTime, Row, Setting
from sequoia.bench.offload.models import ModelChoice, Models
from sequoia.bench.offload.report import Comparison, make_result
from sequoia.bench.offload.streamed import Streamed
from sequoia.bench.offload.with_accelerate import MakeAcceleratePeer
from sequoia.bench.offload.with_sequoia import shortened
from sequoia.bench.peers.comparison import OURS, OURS_ALONE
from sequoia.bench.peers.runs import Prompt
from sequoia.bench.report import Result, shown
from sequoia.cli.bench_common import chosen_place, say_progress
from sequoia.cli.bench_offload_ours import DEVICE, Ours
from sequoia.cli.bench_prompts import read_prompt_tokens
from sequoia.cli.session import say
from sequoia.plans import PlannedTree

READ_SHARE = 8  # of the checkpoint, read by itself after each turn: one part in so many

Runs = Mapping[str, Sequence[Streamed]]


@dataclass(frozen=True, slots=True)
class OffloadBenchmark:
    """One run of the command, as its options say.

    Attributes:
        max_new_tokens: with speculation.
        plain_tokens: of the systems that make one token a pass.
        device_memory: the budget of the comparison, in bytes.
        budgets: for ours alone; empty for none.
    """

    models: ModelChoice
    prompts: Path
    prompt_count: int
    max_new_tokens: int
    plain_tokens: int
    device_memory: int
    budgets: Sequence[int]
    dtype: str
    repetitions: int
    threads: int

    def run(self) -> Result:
        """Measure and report.

        Raises:
            OptionError: a budget in which the target cannot run.
            BenchmarkError: ours failed, the planner is not running, or the disk takes no direct reads.
            PromptsError, ModelError, WidenError, SequoiaError: as their makers say.
        """
        device, dtype = chosen_place(DEVICE, self.dtype)
        models = self.models.find(getattr(torch, dtype))
        require_budgets(models.target, getattr(torch, dtype), self.device_memory, self.budgets)
        texts = read_prompt_tokens(
            str(models.target), self.prompts, self.prompt_count, self.max_new_tokens
        )
        environment = Environment.gather(device)
        threads = self.threads or torch.get_num_threads()
        prompts = tuple(Prompt(ids, self.max_new_tokens) for ids in texts.prompts)
        ours = Ours(models, prompts, self.plain_tokens, dtype, threads)
        measurement = Measurement(self, models, texts.stop_token_ids, ours)
        return make_result(measurement.compare(), measurement.settings(), environment)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A run whose models and prompts are at hand."""

    options: OffloadBenchmark
    models: Models
    stop_token_ids: tuple[int, ...]
    ours: Ours

    def compare(self) -> Comparison:
        """Everything, one part after the other; what is compared within a part takes turns."""
        options, models = self.options, self.models
        reader = DiskReader(models.files)
        read_size = models.byte_count // READ_SHARE
        rates = [reader.bytes_per_second(read_size)]

        def after_turn(done: int, total: int) -> None:
            rates.append(reader.bytes_per_second(read_size))
            say_progress(done, total)

        skipped: dict[str, str] = {}
        with (
            self.ours.running(models.draft, options.device_memory) as (ours, tree),
            ExitStack() as hosts,
        ):
            systems = {OURS: ours.speculate, OURS_ALONE: ours.alone}
            accelerate = hosts.enter_context(self._accelerate())
            systems |= self._warmed_up(accelerate, skipped)
            runs = take_turns(systems, self.ours.prompts, options.repetitions, after_turn)
            peaks = {name: ours.peak_memory() for name in (OURS, OURS_ALONE)}
            if ACCELERATE in runs:
                peaks |= dict.fromkeys(
                    (ACCELERATE, ACCELERATE_CACHED), accelerate.call("peak_memory")
                )
        reference = runs.get(ACCELERATE)
        rows = [Row.of(name, mine, peaks[name], reference) for name, mine in runs.items()]
        raw = Spread.of(rates)
        measured = Setting(models.draft, options.device_memory, rows[:2], tree)
        return Comparison(
            rows,
            self._passes(runs, tree, raw.median),
            raw,
            options.device_memory,
            tree,
            self._drafts(measured, reference, skipped),
            self._budgets(measured, reference, skipped),
            skipped,
        )

    def settings(self) -> dict[str, object]:
        """What was asked for and what followed from it."""
        options, models = self.options, self.models
        return {
            "model": models.name,
            "target": shown(str(models.target)),
            "draft": shown(models.draft),
            "other_draft": models.other_draft and shown(models.other_draft),
            "checkpoint_bytes": models.byte_count,
            "dtype": self.ours.dtype,
            "threads": self.ours.threads,
            "device_memory_bytes": options.device_memory,
            "budgets_bytes": list(options.budgets),
            "prompts": options.prompts.name,
            "prompt_token_counts": [len(prompt.token_ids) for prompt in self.ours.prompts],
            "max_new_tokens": options.max_new_tokens,
            "plain_tokens": options.plain_tokens,
            "repetitions": options.repetitions,
        }

    @contextmanager
    def _accelerate(self) -> Iterator[ProcessHost]:
        """A process with accelerate in it."""
        with tempfile.TemporaryDirectory(prefix="sequoia-accelerate-") as folder:
            make = MakeAcceleratePeer(
                self.models.target,
                self.models.files,
                Path(folder),
                self.ours.dtype,
                self.ours.threads,
                self.stop_token_ids,
            )
            with ProcessHost(ACCELERATE, make) as host:
                yield host

    def _warmed_up(
        self, accelerate: ProcessHost, skipped: dict[str, str]
    ) -> dict[str, Callable[[Prompt], Streamed]]:
        """accelerate within the budget and with the page cache; none where it does not work."""
        say("warming up: accelerate")

        def run(keeps_page_cache: bool, prompt: Prompt) -> Streamed:
            short = shortened(prompt, self.options.plain_tokens)
            streamed: Streamed = accelerate.call("generate", keeps_page_cache, short)
            return streamed

        try:
            left = self.options.device_memory - accelerate.call("resident_memory")
            accelerate.call("load", left)
            accelerate.call("generate", False, shortened(self.ours.prompts[0], 1))
        except (HostError, UnavailableError) as error:
            skipped[ACCELERATE] = str(error)
            return {}
        return {ACCELERATE: partial(run, False), ACCELERATE_CACHED: partial(run, True)}

    def _passes(
        self, runs: Runs, tree: PlannedTree | None, bytes_per_second: float
    ) -> list[PassTime]:
        """Ours, with the plan's tree and with single tokens, beside what they could take."""
        say("timing passes with all weights in memory")
        nodes = {OURS: tree.topology.node_count if tree else 1, OURS_ALONE: 1}
        prefix = (
            max(len(prompt.token_ids) for prompt in self.ours.prompts)
            + self.options.max_new_tokens // 2
        )
        make = MakeComputeTimer(self.models.target, self.ours.dtype, self.ours.threads)
        with ProcessHost("compute", make) as timer:
            return [
                PassTime.of(
                    name, runs[name], count, bytes_per_second, timer.call("seconds", count, prefix)
                )
                for name, count in nodes.items()
            ]

    def _drafts(
        self,
        measured: Setting,
        reference: Sequence[Streamed] | None,
        skipped: dict[str, str],
    ) -> list[Setting]:
        """Both drafts with speculation, on the budget of the comparison; none where there is one alone."""
        other = self.models.other_draft
        if other is None:
            return []
        mine = Setting(
            measured.draft, measured.device_memory_bytes, measured.rows[:1], measured.tree
        )
        budget = measured.device_memory_bytes
        with _left_out(f"draft {shown(other)}", skipped):
            return [mine, self.ours.measure(other, budget, (OURS,), reference)]
        return []

    def _budgets(
        self,
        measured: Setting,
        reference: Sequence[Streamed] | None,
        skipped: dict[str, str],
    ) -> list[Setting]:
        """Every budget with speculation and without, ascending; none where there is one alone."""
        others = sorted({*self.options.budgets} - {measured.device_memory_bytes})
        settings = []
        for budget in others:
            with _left_out(f"{budget / 2**30:.3g} GiB", skipped):
                names = OURS, OURS_ALONE
                settings.append(self.ours.measure(measured.draft, budget, names, reference))
        if not settings:
            return []
        return sorted([measured, *settings], key=lambda setting: setting.device_memory_bytes)


@contextmanager
def _left_out(name: str, skipped: dict[str, str]) -> Iterator[None]:
    """A system that does not start after minutes of measuring leaves the others' figures alone."""
    try:
        yield
    except typer.Exit:
        skipped[name] = "the system did not start; what it said is among the messages"
