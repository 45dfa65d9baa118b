"""One run of `sequoia bench forward`; imported only once the options are known to be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from sequoia.bench.environment import Environment
from sequoia.bench.forward.passes import MakePassTimer, Pass
from sequoia.bench.forward.report import MODELS, make_result
from sequoia.bench.forward.times import MakeLimitMeter, time_passes
from sequoia.bench.report import Result
from sequoia.cli.bench_common import chosen_place, say_progress
from sequoia.cli.session import fetch_models, say
from sequoia.launcher import LaunchOptions
from sequoia.runtime.catalogue import default_draft


@dataclass(frozen=True, slots=True)
class ForwardBenchmark:
    """One run of the command, as its options say."""

    target: str
    draft: str | None
    dtype: str
    device: str
    nodes: Sequence[int]
    batches: Sequence[int]
    prefixes: Sequence[int]
    repetitions: int
    threads: int

    def run(self) -> Result:
        """Measure and report.

        Raises:
            OptionError: a pass does not fit a model's context.
            BenchmarkError: a model cannot be loaded.
        """
        fetch_models(LaunchOptions(self.target, self.draft))
        device, dtype = chosen_place(self.device, self.dtype)
        environment = Environment.gather(device)
        threads = self.threads or torch.get_num_threads()
        kinds = [
            Pass(nodes, batch, prefix)
            for prefix, batch, nodes in product(self.prefixes, self.batches, self.nodes)
        ]
        timers = {
            name: MakePassTimer(name, self.target, self.draft, dtype, device, threads)
            for name in MODELS
        }
        say("measuring the machine, loading the models")
        meter = MakeLimitMeter(device, dtype, threads)
        times = time_passes(timers, meter, kinds, self.repetitions, say_progress)
        settings: dict[str, object] = {
            "target": self.target,
            "draft": self.draft or default_draft(self.target),
            "dtype": dtype,
            "device": device,
            "threads": threads,
            "nodes": list(self.nodes),
            "batch": list(self.batches),
            "prefix": list(self.prefixes),
            "repetitions": self.repetitions,
        }
        return make_result(times, settings, environment)
