"""Passes are timed on the real model, and their limit follows from its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sequoia.bench.environment import Environment
from sequoia.bench.errors import OptionError
from sequoia.bench.forward.passes import MakePassTimer, Pass
from sequoia.bench.forward.report import make_result
from sequoia.bench.forward.roofline import MachineLimits, ModelSize
from sequoia.bench.forward.times import ForwardTimes, TimedPass, require_context
from sequoia.bench.interleave import Spread
from tests.tiny import feature_draft, tiny_llama


def test_the_limit_is_the_larger_of_reading_and_computing() -> None:
    """Both go on at the same time."""
    limits = MachineLimits(bytes_per_second=10.0, operations_per_second=100.0)
    assert limits.seconds(20.0, 100.0) == 2.0
    assert limits.seconds(20.0, 500.0) == 5.0


def test_a_size_counts_what_a_pass_multiplies_by() -> None:
    """All linear layers and the output rows in use; of the cache what attention reads."""
    model = tiny_llama(40, seed=1, layers=3)
    linear = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)
    )
    size = ModelSize.of(model.config, 4, None, 0)
    assert size.weight_count == linear
    assert size.cache_elements == 2 * 3 * 2 * 8  # keys and values, layers, heads, head size
    assert size.bytes_moved(1, 2, 9) == 4 * (linear + 2 * 10 * size.cache_elements)
    assert size.operations(4, 2, 6) == 2 * (2 * 4 * linear + 4 * 10 * size.score_operations)

    reduced = ModelSize.of(model.config, 4, 10, 32)
    assert linear - reduced.weight_count == 30 * 32 - 32 * 64  # head rows less, fusion more


def test_passes_of_both_models_are_timed(word_folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Again and again on the same sessions, also for a draft that reads features."""
    target = word_folders[0]
    draft = feature_draft(tmp_path / "draft", target)
    timers = [
        MakePassTimer(role, str(target), str(draft), "float32", "cpu", 1)()
        for role in ("target", "draft")
    ]
    kind = Pass(nodes=5, batch=2, prefix=7)
    for timer in timers:
        assert timer.seconds(kind) > 0.0
        assert timer.seconds(kind) > 0.0
        assert timer.context_length() == 512
    assert timers[0].size().weight_count > 0
    assert timers[1].size().element_bytes == 4


def test_a_pass_beyond_the_context_is_refused_by_name() -> None:
    """Option, number and limit."""
    with pytest.raises(OptionError, match=r"--nodes: 8 .* 508 .* draft's context of 512"):
        require_context("draft", [Pass(8, 1, 508)], 512)
    require_context("draft", [Pass(8, 1, 504)], 512)


def test_the_report_sets_times_against_limits() -> None:
    """Every row has its limit and how far it is from it."""
    passes = [
        TimedPass(model, Pass(nodes, 1, 8), Spread.of([0.2, 0.4]), 0.1)
        for model in ("target", "draft")
        for nodes in (1, 2)
    ]
    times = ForwardTimes(passes, MachineLimits(1e9, 1e12))
    found = make_result(times, {"dtype": "float32"}, Environment.gather("cpu"))
    body: Any = found.as_json()
    row = body["rows"][0]
    assert row["times_the_limit"] == pytest.approx(3.0)
    assert found.stem == "forward-float32"
    assert "| 8, 1 | 2 |" in found.as_markdown()
