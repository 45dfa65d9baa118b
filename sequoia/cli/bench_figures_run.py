"""One run of `sequoia bench figures`; imported only once the options are known to be right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from sequoia.bench.environment import Environment
from sequoia.bench.figures import forward_times, on_chip, regret, rejection, robustness, tree_sizes
from sequoia.bench.forward.passes import MakePassTimer
from sequoia.bench.report import Result, shown
from sequoia.cli.bench_common import chosen_place, say_progress
from sequoia.cli.bench_figures_pair import PairFigures
from sequoia.cli.bench_figures_system import SystemFigures, running
from sequoia.cli.bench_planning import HELD_SECONDS
from sequoia.cli.bench_prompts import PromptTokens, read_prompt_tokens
from sequoia.cli.session import fetch_models, say
from sequoia.launcher import LaunchOptions
from sequoia.runtime.catalogue import default_draft

ON_THE_SYSTEM = {"5", "6"}
FORWARD_DTYPES = ("float32", "bfloat16")
WIDE_DTYPE = "bfloat16"  # float32 takes twice the memory, which large targets may not find
FORWARD_TURNS = 5  # passes are short: more turns for each repetition asked for


@dataclass(frozen=True)
class FiguresBenchmark:
    """One run of the command, as its options say."""

    target: str
    draft: str | None
    wide: Sequence[str]
    prompts: Path
    prompt_count: int
    temperature: float
    max_new_tokens: int
    repetitions: int
    dtype: str
    device: str
    threads: int

    def run(self, numbers: Sequence[str]) -> Iterator[tuple[str, Result]]:
        """Measure figure after figure.

        Raises:
            OptionError: a pass of figure 4 does not fit a context.
            BenchmarkError: the planner is not running, or nothing could be timed.
            PromptsError, ModelError, SequoiaError: as their makers say.
        """
        fetch_models(self._options)
        torch.set_num_threads(self._threads)
        environment = Environment.gather(self._options.device)
        for number in numbers:
            if number not in ON_THE_SYSTEM:
                say(f"figure {number}")
                yield number, self._figure(number, environment)
        if of_system := [number for number in numbers if number in ON_THE_SYSTEM]:
            yield from self._of_system(of_system, environment)

    def _figure(self, number: str, environment: Environment) -> Result:
        """One of the figures that need no running system."""
        place = self._settings, environment
        match number:
            case "1":
                points = self._pair.tree_sizes((0.0, self.temperature))
                vectors = {at: self._pair.vectors(at) for at in (0.0, self.temperature)}
                return tree_sizes.make_result(points, vectors, *place)
            case "2":
                return rejection.make_result(self._pair.rejection(), *place)
            case "3":
                topology = self._pair.fixed_tree(self.temperature)
                return robustness.make_result(self._pair.robustness(topology), topology, *place)
            case _:
                return forward_times.make_result(self._forward(), *place)

    def _forward(self) -> list[forward_times.Line]:
        kinds = [(self.target, dtype) for dtype in FORWARD_DTYPES]
        kinds += [(reference, WIDE_DTYPE) for reference in self.wide]
        device, threads = self._options.device, self._threads
        makers = [
            MakePassTimer("target", reference, None, dtype, device, threads)
            for reference, dtype in kinds
        ]
        return forward_times.measure(makers, FORWARD_TURNS * self.repetitions, say_progress)

    def _of_system(
        self, numbers: Sequence[str], environment: Environment
    ) -> Iterator[tuple[str, Result]]:
        say("counting and comparing on the target's texts")
        temperatures = (0.0, self.temperature)
        sweep = self._pair.sweep() if "6" in numbers else []
        counts = {at: self._pair.grid(at) for at in temperatures} if "5" in numbers else {}
        with running(self._options, self._texts, self.max_new_tokens, temperatures) as system:
            figures = SystemFigures(
                system.held,
                system.plan,
                self._texts.prompts,
                self.max_new_tokens,
                self.repetitions,
            )
            place = self._settings, environment
            if "5" in numbers:
                say("figure 5")
                yield "5", on_chip.make_result(*figures.on_chip(counts), *place)
            if "6" in numbers:
                say("figure 6")
                yield "6", regret.make_result(*figures.regret(sweep), *place)

    @cached_property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    @cached_property
    def _options(self) -> LaunchOptions:
        device, dtype = chosen_place(self.device, self.dtype)
        return LaunchOptions(
            self.target,
            self.draft,
            dtype=dtype,
            device=device,
            threads=self._threads,
            replan_seconds=HELD_SECONDS,
            prefix_cache=False,
        )

    @cached_property
    def _texts(self) -> PromptTokens:
        return read_prompt_tokens(self.target, self.prompts, self.prompt_count, self.max_new_tokens)

    @cached_property
    def _pair(self) -> PairFigures:
        options = self._options
        say("loading the models")
        return PairFigures.load(
            self.target,
            self.draft,
            options.dtype,
            options.device,
            self._texts.prompts,
            self.max_new_tokens,
        )

    @property
    def _settings(self) -> dict[str, object]:
        return {
            "target": shown(self.target),
            "draft": shown(self.draft or default_draft(self.target) or ""),
            "wide": [shown(reference) for reference in self.wide],
            "dtype": self._options.dtype,
            "device": self._options.device,
            "threads": self._threads,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "prompts": self.prompts.name,
            "prompt_count": len(self._texts.prompts),
            "repetitions": self.repetitions,
        }
