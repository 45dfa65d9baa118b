"""What one level of a draft's tree costs, against one token of the target."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from sequoia.runtime.cache import KVCache
from sequoia.runtime.device import finish
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment

PREFIX_LENGTH = 256
LEVEL_NODES = 8
WARM_UPS = 3
REPETITIONS = 21


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Median milliseconds of one pass of each model behind the same number of tokens.

    Attributes:
        draft_level_ms: the draft over one level of 8 nodes.
        target_token_ms: the target over one token.
    """

    draft_level_ms: float
    target_token_ms: float

    @property
    def ratio(self) -> float:
        """The level's time in tokens of the target."""
        return self.draft_level_ms / self.target_token_ms


def time_passes(target: TreeModel, draft: TreeModel, repetitions: int = REPETITIONS) -> PassTimes:
    """Time both models in turns, so that whatever else the machine does meets both alike."""
    prefix = min(PREFIX_LENGTH, target.context_length - 1, draft.context_length - 1)
    level = _repeatable(draft, prefix, LEVEL_NODES)
    token = _repeatable(target, prefix, 1)
    for _ in range(WARM_UPS):
        level()
        token()
    times = [(level(), token()) for _ in range(repetitions)]
    draft_seconds, target_seconds = (median(seconds) for seconds in zip(*times, strict=True))
    return PassTimes(1000 * draft_seconds, 1000 * target_seconds)


def _repeatable(model: TreeModel, prefix: int, nodes: int) -> Callable[[], float]:
    """The same pass again and again, over siblings behind `prefix` tokens; it returns its seconds."""
    first = KVCache()
    model.prefill(first, [1])
    cache = first.repeated(prefix)
    visible = np.concatenate([np.ones((nodes, prefix), np.bool_), np.eye(nodes, dtype=np.bool_)], 1)
    positions = [prefix] * nodes
    key_positions = np.concatenate([np.arange(prefix), positions])

    def run() -> float:
        cache.keep(prefix, ())
        finish(model.device)
        started = time.perf_counter()
        model.forward([Segment(cache, [1] * nodes, positions, visible, key_positions)])
        finish(model.device)
        return time.perf_counter() - started

    return run
