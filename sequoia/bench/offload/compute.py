"""What a pass would take if all weights were in memory: timed on a few layers, counted for all.

The whole model need not fit, so layers are timed as the difference between models that have more and
fewer of them, with the engine that offloaded passes go through.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sequoia.bench.forward.passes import Pass, PassTimer
from sequoia.bench.peers.with_transformers import set_up_transformers
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import choose_dtype

SAMPLE_LAYERS = 3
MEASUREMENTS = 5


@dataclass(frozen=True, slots=True)
class MakeComputeTimer:
    """How to make the timer in its process; `folder` is the target's."""

    folder: Path
    dtype: str
    threads: int

    def __call__(self) -> ComputeTimer:
        """Load the layers that are timed."""
        return ComputeTimer(self)


class ComputeTimer:
    """Models with one and with some of a target's layers."""

    def __init__(self, settings: MakeComputeTimer) -> None:
        from transformers import AutoConfig

        set_up_transformers(settings.threads)
        config = AutoConfig.from_pretrained(settings.folder, trust_remote_code=False)
        self._layer_count: int = config.get_text_config(decoder=True).num_hidden_layers
        self._timers = {
            count: PassTimer(str(settings.folder), _shortened(settings, count))
            for count in {1, min(SAMPLE_LAYERS, self._layer_count)}
        }

    def seconds(self, nodes: int, prefix: int) -> float:
        """Of a pass over a tree of so many nodes behind so many cached tokens.

        Both models are timed in turns.
        """
        kind = Pass(nodes, 1, prefix)
        times: dict[int, list[float]] = {count: [] for count in self._timers}
        for _ in range(MEASUREMENTS):
            for count, timer in self._timers.items():
                times[count].append(timer.seconds(kind))
        return for_all_layers(
            {count: median(mine) for count, mine in times.items()}, self._layer_count
        )


def for_all_layers(seconds: dict[int, float], layer_count: int) -> float:
    """Seconds with `layer_count` layers, on the line through those with fewest and with most."""
    few, many = min(seconds), max(seconds)
    if few == many:
        return seconds[few] * layer_count / few
    a_layer = (seconds[many] - seconds[few]) / (many - few)
    return seconds[few] + (layer_count - few) * a_layer


def _shortened(settings: MakeComputeTimer, layer_count: int) -> TreeModel:
    """The target's first layers, with its embedding and output layer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(settings.folder, trust_remote_code=False)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = layer_count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layer_count]
    model = AutoModelForCausalLM.from_pretrained(
        settings.folder,
        config=config,
        dtype=choose_dtype(settings.dtype, torch.device("cpu")),
        trust_remote_code=False,
    )
    return TreeModel(model)
