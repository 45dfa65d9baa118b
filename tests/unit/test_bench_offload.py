"""What `sequoia bench offload` is made of: figures, the page cache, the disk, and accelerate."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

from sequoia.bench.environment import Environment
from sequoia.bench.errors import BenchmarkError, OptionError, UnavailableError
from sequoia.bench.interleave import Spread
from sequoia.bench.offload.budgets import require_budgets
from sequoia.bench.offload.compute import MakeComputeTimer, for_all_layers
from sequoia.bench.offload.disk import BLOCK_BYTES, DiskReader
from sequoia.bench.offload.figures import (
    ACCELERATE,
    ACCELERATE_CACHED,
    TIMES_TOKENS,
    PassTime,
    Row,
    Setting,
    make_ratios,
)
from sequoia.bench.offload.models import ModelChoice, checkpoint
from sequoia.bench.offload.page_cache import cached_bytes, drop_cached, drop_range
from sequoia.bench.offload.report import Comparison, make_result
from sequoia.bench.offload.streamed import Streamed, count_bytes
from sequoia.bench.offload.wide import wide_draft, wide_target
from sequoia.bench.offload.with_accelerate import MakeAcceleratePeer, layer_starts
from sequoia.bench.peers.comparison import OURS, OURS_ALONE
from sequoia.bench.peers.runs import Decode, Prompt
from sequoia.bench.process import bytes_read, peak_memory
from sequoia.cli.bench_common import split_sizes
from sequoia.cli.bench_offload import Measurement
from sequoia.plans import PlannedTree
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.progress import silent
from tests.tiny import feature_draft, save_model, tiny_llama, word_tokenizer

GIB = 2**30
PROMPT = Prompt((3, 4, 5), 6)
TREE = PlannedTree("greedy", 1, (-1, 0, 0, 1), 2.0, 0.1, 0.2)
RUNS = {
    # two tokens at first, then two a second
    OURS: [Streamed(Decode((5, 6, 7, 8), 3.0, 2, 2.0, 2, 1.0), 300, 0)],
    OURS_ALONE: [Streamed(Decode((5, 6, 7), 5.0, 3, 3.0, 1, 1.0), 400, 0)],
    ACCELERATE: [Streamed(Decode((5, 6, 7), 9.0, 3, 1.0, 1, 4.0), 400, 50)],
    ACCELERATE_CACHED: [Streamed(Decode((5, 6, 9), 3.0, 3, 1.0, 1, 1.0), 100, 90)],
}


def rows_of(runs: dict[str, list[Streamed]]) -> list[Row]:
    """Rows of all systems, each with a peak of a GiB."""
    return [Row.of(name, mine, GIB, runs[ACCELERATE]) for name, mine in runs.items()]


def test_time_per_token_begins_after_the_first_ones() -> None:
    """Reading the prompt is a figure of its own."""
    ours, alone, *_ = rows_of(RUNS)
    assert ours.seconds_per_token.median == 0.5
    assert ours.seconds_to_first_token.median == 2.0
    assert ours.tokens_per_step == 2.0
    assert alone.seconds_per_token.median == 1.0
    assert alone.bytes_per_second.median == 80.0


def test_texts_match_as_far_as_both_go() -> None:
    """Systems that make one token a pass are stopped sooner."""
    matches = {row.name: row.greedy_match for row in rows_of(RUNS)}
    assert matches == {OURS: 1.0, OURS_ALONE: 1.0, ACCELERATE: 1.0, ACCELERATE_CACHED: 0.0}
    assert Row.of(OURS, RUNS[OURS], None, None).greedy_match is None


def test_texts_of_one_step_have_no_time_per_token() -> None:
    """They are left out; where there are no others the benchmark says so."""
    short = Streamed(Decode((5, 6), 2.0, 1, 2.0, 2, 1.0), 100, 0)
    row = Row.of(OURS, [short, *RUNS[OURS]], None, None)
    assert row.seconds_per_token.median == 0.5
    with pytest.raises(BenchmarkError, match=f"{OURS}: every text ended in its first step"):
        Row.of(OURS, [short], None, None)


def test_ratios_come_from_rows() -> None:
    """The last one is a step with a tree over a step without; who did not take part has none."""
    ratios = make_ratios(rows_of(RUNS))
    assert ratios[f"{OURS_ALONE} / {ACCELERATE}"] == 0.25
    assert ratios[f"{OURS} / {OURS_ALONE}"] == 0.5
    assert ratios[f"{OURS} / {ACCELERATE}"] == 0.125
    assert ratios[f"{OURS} / {ACCELERATE_CACHED}"] == 0.5
    assert ratios[TIMES_TOKENS] == 1.0
    ours_alone = [Row.of(name, RUNS[name], None, None) for name in (OURS, OURS_ALONE)]
    assert set(make_ratios(ours_alone)) == {f"{OURS} / {OURS_ALONE}", TIMES_TOKENS}


def test_the_limit_of_a_pass_is_the_larger_of_reading_and_computing() -> None:
    """Bytes are counted for the steps and for reading the prompt."""
    read = PassTime.of(OURS, RUNS[OURS], 4, bytes_per_second=200.0, compute_seconds=0.1)
    assert (read.byte_count, read.read_seconds, read.times_the_limit) == (100.0, 0.5, 2.0)
    computed = PassTime.of(OURS, RUNS[OURS], 4, bytes_per_second=200.0, compute_seconds=0.8)
    assert computed.times_the_limit == 1.25


def test_layers_are_counted_on_a_line() -> None:
    """What does not depend on the layers is counted once."""
    assert for_all_layers({1: 3.0, 3: 7.0}, 10) == 21.0
    assert for_all_layers({1: 3.0}, 1) == 3.0


def test_computing_is_timed_with_few_layers(word_folders: tuple[Path, Path]) -> None:
    """Of a tree behind a prefix, in the target's precision."""
    timer = MakeComputeTimer(word_folders[0], "float32", 1)()
    assert timer.seconds(nodes=4, prefix=5) > 0.0


def test_the_disk_is_read_block_by_block_and_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call goes on where the last one stopped; a file's rest is a block as well."""
    long, short = tmp_path / "long", tmp_path / "short"
    long.write_bytes(bytes(BLOCK_BYTES + 5000))
    short.write_bytes(bytes(100))
    read = []
    preadv = os.preadv

    def spy(descriptor: int, buffers: Sequence[Any], start: int) -> int:
        count = preadv(descriptor, buffers, start)
        read.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, start, count))
        return count

    monkeypatch.setattr(os, "preadv", spy)
    reader = DiskReader([long, short])
    assert reader.bytes_per_second(2 * BLOCK_BYTES) > 0.0
    assert reader.bytes_per_second(100 * BLOCK_BYTES) > 0.0
    blocks = [("long", 0, BLOCK_BYTES), ("long", BLOCK_BYTES, 5000), ("short", 0, 100)]
    assert read == [*blocks[:2], blocks[2], *blocks[:2]]


def test_files_that_take_no_direct_reads_are_named(tmp_path: Path) -> None:
    """Such as one that is gone meanwhile."""
    (file := tmp_path / "gone").write_bytes(b"1")
    reader = DiskReader([file])
    file.unlink()
    with pytest.raises(UnavailableError, match=r"direct reads of .*gone: No such file"):
        reader.bytes_per_second(1)


def test_cached_pages_are_counted_and_handed_back(tmp_path: Path) -> None:
    """All of a file, or a range."""
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(16 * 2**20))
        os.fsync(file.fileno())  # what is not on the disk yet stays
    place = tmp_path / "file"
    assert place.read_bytes()
    assert cached_bytes([place]) == 16 * 2**20
    drop_range(place, 0, 8 * 2**20)
    # The kernel keeps pages in groups, and a group of which some is kept stays whole.
    assert 8 * 2**20 <= cached_bytes([place]) < 16 * 2**20
    drop_cached([place])
    assert cached_bytes([place]) == 0


def test_the_kernel_tells_of_a_process_while_it_is_there() -> None:
    """Peak memory and bytes read from disks."""
    assert (peak_memory(os.getpid()) or 0) > 2**20
    assert count_bytes(os.getpid()) >= 0
    assert peak_memory(2**30) is bytes_read(2**30) is None
    with pytest.raises(BenchmarkError, match=f"/proc/{2**30}/io"):
        count_bytes(2**30)


@pytest.mark.parametrize(("weight_bytes", "offloaded"), [(40_000, 4), (100_000, 3)])
@pytest.mark.parametrize("keeps_page_cache", [False, True])
def test_accelerate_says_what_transformers_says(
    tmp_path: Path, keeps_page_cache: bool, weight_bytes: int, offloaded: int
) -> None:
    """However many layers are read for every pass."""
    folder = save_model(tmp_path / "target", tiny_llama(12, 1, layers=4), word_tokenizer(12))
    files = checkpoint(folder)
    place = tmp_path / "offload"
    peer = MakeAcceleratePeer(folder, files, place, "float32", 1, (0,))()
    assert peer.resident_memory() > 2**20
    peer.load(weight_bytes)
    assert len(peer.offloaded()) == offloaded

    streamed = peer.generate(keeps_page_cache, PROMPT)

    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = model.generate(torch.tensor([PROMPT.token_ids]), max_new_tokens=6, do_sample=False)
    run = streamed.run
    assert run.token_ids == tuple(expected[0, len(PROMPT.token_ids) :].tolist())
    assert run.step_count == len(run.token_ids)
    assert run.first_count == 1
    assert 0.0 < run.first_seconds < run.seconds
    assert run.pass_seconds > 0.0
    assert (peer.peak_memory() or 0) > 2**20


def test_a_layer_begins_where_its_first_tensor_does(word_folders: tuple[Path, Path]) -> None:
    """In every file that holds some of it, and in no other."""
    weights = Checkpoint(word_folders[0])
    (start,) = layer_starts(weights, "model.layers.1").values()
    mine = [stored.start for name, stored in weights.items() if ".layers.1." in name]
    assert start == min(mine)
    assert layer_starts(weights, "model.layers.11") == {}


def test_wide_models_are_written_once(
    word_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Target and draft are found again; another draft has another folder; a whole model stays as it is."""
    monkeypatch.setenv("SEQUOIA_CACHE", str(tmp_path / "cache"))
    target, plain = map(str, word_folders)
    asked = target, "3x64:128", torch.float32, silent
    wide = wide_target(*asked)
    written = (wide / "model.safetensors").stat().st_mtime_ns
    assert wide_target(*asked) == wide
    assert (wide / "model.safetensors").stat().st_mtime_ns == written
    borrowed = str(feature_draft(tmp_path / "draft", word_folders[0]))
    first = wide_draft(borrowed, *asked)
    assert wide_draft(borrowed, *asked) == first != Path(borrowed)
    assert first.name.startswith("draft-")  # reports show this name
    os.utime(Path(borrowed) / "config.json")
    assert wide_draft(borrowed, *asked) != first
    assert wide_draft(plain, *asked) == Path(plain)


def test_a_target_is_named_or_widened(tmp_path: Path, word_folders: tuple[Path, Path]) -> None:
    """Not both; it has safetensors, and a draft of its own or one that is named."""
    target, draft = map(str, word_folders)
    with pytest.raises(OptionError, match=r"--shape: .*--target"):
        ModelChoice(target, "7b", None, None)
    with pytest.raises(OptionError, match=r"--draft: .*name one"):
        ModelChoice(target, None, None, None).find(torch.float32)
    found = ModelChoice(target, None, draft, draft).find(torch.float32)
    assert (found.name, found.target) == ("target", word_folders[0])
    assert [file.name for file in found.files] == ["model.safetensors"]
    with pytest.raises(ModelError, match="no safetensors"):
        checkpoint(tmp_path)


def test_budgets_are_sizes_in_their_order() -> None:
    """Each once; none where none is named."""
    assert split_sizes("3GiB,1024MiB,3GiB") == (GIB, 3 * GIB)
    assert split_sizes("1GiB, 3GiB") == (GIB, 3 * GIB)
    assert split_sizes("") == ()


def test_budgets_in_which_the_target_cannot_run_are_named(word_folders: tuple[Path, Path]) -> None:
    """With their option and what they must exceed, and without a process being started."""
    target = word_folders[0]
    require_budgets(target, torch.float32, GIB, (2 * GIB, 3 * GIB))
    for device_memory, budgets, option in (
        (100 * 2**20, (), "--device-memory"),
        (GIB, (2 * GIB, 100 * 2**20), "--budgets"),
    ):
        with pytest.raises(OptionError, match=rf"^{option}: 104857600 bytes .*{target}.*\d+MiB"):
            require_budgets(target, torch.float32, device_memory, budgets)


def test_a_budget_that_does_not_start_leaves_the_others() -> None:
    """Minutes were spent on them."""

    def measure(draft: str, budget: int, *_: Any) -> Setting:
        if budget < GIB:
            raise typer.Exit(1)
        return Setting(draft, budget, [], TREE)

    here = SimpleNamespace(
        options=SimpleNamespace(budgets=(GIB // 2, 2 * GIB)), ours=SimpleNamespace(measure=measure)
    )
    skipped: dict[str, str] = {}
    settings = Measurement._budgets(here, Setting("d", GIB, [], TREE), None, skipped)  # type: ignore[arg-type]
    assert [setting.device_memory_bytes for setting in settings] == [GIB, 2 * GIB]
    assert list(skipped) == ["0.5 GiB"]


@pytest.mark.parametrize("has_budgets", [False, True])
def test_the_report_holds_all_figures(tmp_path: Path, has_budgets: bool) -> None:
    """In JSON, tables and a plot."""
    rows = rows_of(RUNS)
    passes = [PassTime.of(OURS, RUNS[OURS], 4, 200.0, 0.1)]
    (draft := tmp_path / "wide" / "draft").mkdir(parents=True)
    setting = Setting(str(draft), 4 * GIB, rows[:2], TREE)
    smaller = Setting("draft", 3 * GIB, rows[:2], None)
    comparison = Comparison(
        rows,
        passes,
        Spread(100.0, 90.0, 110.0),
        4 * GIB,
        TREE,
        [setting, Setting("deeper", 4 * GIB, rows[:1], None)],
        [smaller, setting] if has_budgets else [],
        {"someone": "not here"},
    )
    settings = {"model": "wide", "dtype": "bfloat16", "threads": 2}
    result = make_result(comparison, settings, Environment.gather("cpu"))

    found = json.loads(json.dumps(result.as_json()))
    assert [row["name"] for row in found["rows"]] == list(RUNS)
    assert found["rows"][0]["seconds_per_token"] == 0.5
    assert found["read_bandwidth_ratio"] == 0.8
    assert found["peak_memory_bytes"] == GIB
    assert found["device_memory_bytes"] == 4 * GIB
    assert (found["tree"]["node_count"], found["tree"]["level_count"]) == (4, 3)
    assert found["greedy_match"] == 1.0
    assert found["passes"][0]["times_the_limit"] == 2.0
    assert [draft["draft"] for draft in found["drafts"]] == ["wide/draft", "deeper"]
    assert len(found["budgets"]) == (2 if has_budgets else 0)
    assert found["skipped"] == [{"name": "someone", "reason": "not here"}]
    text = result.as_markdown()
    assert str(tmp_path) not in text + json.dumps(found)
    assert ("## Budgets" in text) == has_budgets
    assert "0.00 GB/s (0.00 to 0.00); without speculation ours reads 80% of that." in text
    result.draw(figure := Figure())
    (axes,) = figure.axes
    if has_budgets:
        assert axes.get_legend_handles_labels()[1] == [OURS, OURS_ALONE]
    else:
        assert [label.get_text() for label in axes.get_yticklabels()] == list(RUNS)
    assert [path.suffix for path in result.write(tmp_path)] == [".json", ".md", ".png"]
