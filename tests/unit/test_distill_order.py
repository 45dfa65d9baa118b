"""What is ordered, what may be spent, and what is said when something runs out."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors import SafetensorError

from sequoia.distillation.budget import Budget
from sequoia.distillation.extent import Extent, Limit
from sequoia.distillation.failures import DistillError, explained, require_room
from sequoia.distillation.order import Order, check_order, keep_order, read_layers
from sequoia.distillation.place import Place
from sequoia.distillation.shards import Record, extent_of
from sequoia.distillation.shelf import Shelf
from sequoia.distillation.stopping import stops_between_steps
from sequoia.distillation.target import Target

ORDER = Order(
    target="some/target",
    layers="1",
    width=None,
    vocab_size=None,
    reads_features=True,
    beginning=None,
    prompts=(),
    texts=(),
    unseen=None,
    rows=8,
    batch_tokens=512,
    learning_rate=1e-3,
    seed=0,
)


def a_target(layers: int = 30, vocabulary: int = 50_000) -> Target:
    """As much of a target as an order looks at."""
    model = SimpleNamespace(vocabulary_size=vocabulary)
    return cast("Target", SimpleNamespace(layer_count=layers, model=model))


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("1", (0,)),
        ("2", (0, 29)),
        ("3", (0, 14, 29)),
        ("0,29", (0, 29)),
        ("5,", (5,)),
        (" 4 , 7 ", (4, 7)),
    ],
)
def test_layers_are_a_count_or_a_list(text: str, layers: tuple[int, ...]) -> None:
    """A count is spread over the target; a list is taken as it is."""
    shape = replace(ORDER, layers=text).shape_for(a_target())
    assert shape.layers in {layers, tuple(15 if x == 14 else x for x in layers)}


@pytest.mark.parametrize("text", ["", ",", "0", "-1", "one", "1.5", "2,1", "1,1", "-1,3"])
def test_other_layers_are_refused(text: str) -> None:
    """Nothing, no numbers, falling or repeated ones."""
    with pytest.raises(DistillError) as caught:
        read_layers(text)
    assert caught.value.option == "--layers"


def test_layers_that_the_target_lacks_are_refused() -> None:
    """The message names what it has."""
    with pytest.raises(DistillError, match="more than the target's 3"):
        replace(ORDER, layers="4").shape_for(a_target(layers=3))
    with pytest.raises(DistillError, match="0 to 2"):
        replace(ORDER, layers="1,3").shape_for(a_target(layers=3))


@pytest.mark.parametrize(
    ("asked", "vocabulary", "size"), [(None, 50_000, 12288), (None, 300, 300), (300, 300, 300)]
)
def test_the_head_is_as_large_as_the_target_allows(
    asked: int | None, vocabulary: int, size: int
) -> None:
    """The default gives way to a small vocabulary."""
    order = replace(ORDER, vocab_size=asked)
    assert order.head_size_for(a_target(vocabulary=vocabulary), frozenset({0, 1})) == size


@pytest.mark.parametrize("asked", [2, 301])
def test_a_head_outside_the_vocabulary_is_refused(asked: int) -> None:
    """Too small for the special tokens, or larger than the target's; the limits are named."""
    order = replace(ORDER, vocab_size=asked)
    with pytest.raises(DistillError, match=rf"--vocab-size: {asked} is outside 3 .* to 300"):
        order.head_size_for(a_target(vocabulary=300), frozenset({0, 1}))


def test_a_budget_is_divided() -> None:
    """Minutes between writing and learning, tokens into epochs; text is half at most."""
    minutes, tokens = Budget(minutes=10.0), Budget(tokens=1000)
    assert minutes.writing == Limit(seconds=360.0)
    assert minutes.reading == Limit(seconds=180.0)
    assert minutes.learning(370.0, example_tokens=5) == Limit(seconds=230.0)
    assert tokens.writing == Limit(tokens=1000)
    assert tokens.reading == Limit(tokens=500)
    assert tokens.learning(250.0, example_tokens=900) == Limit(tokens=3600)
    assert Budget.read(None, None) is None


def test_a_budget_may_grow() -> None:
    """In what it is counted in, and not shrink."""
    assert Budget(tokens=20).following(Budget(tokens=10)) == Budget(tokens=20)
    with pytest.raises(DistillError, match="less than the 10 of before"):
        Budget(minutes=5.0).following(Budget(minutes=10.0))
    with pytest.raises(DistillError, match="counts --minutes"):
        Budget(tokens=5).following(Budget(minutes=10.0))


def test_a_run_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """The same order passes, also with files that have moved and less memory; another does not."""
    (tmp_path / "a.jsonl").write_text("one")
    (tmp_path / "b.jsonl").write_text("one")
    path = tmp_path / "settings.json"
    order = replace(ORDER, prompts=(tmp_path / "a.jsonl",))
    keep_order(path, order, Budget(tokens=10))
    moved = replace(order, prompts=(tmp_path / "b.jsonl",), rows=4, batch_tokens=256)
    assert check_order(path, moved, None) == Budget(tokens=10)
    assert check_order(path, moved, Budget(tokens=20)) == Budget(tokens=20)
    (tmp_path / "b.jsonl").write_text("two")
    with pytest.raises(DistillError, match="--prompts: not the files of the run"):
        check_order(path, moved, None)
    for changes in ({"layers": "2"}, {"rows": 16}, {"seed": 1}, {"width": 9}):
        (name,) = changes
        with pytest.raises(DistillError, match=f"--{name}: "):
            check_order(path, replace(order, **cast("dict[str, Any]", changes)), None)
    path.write_text("{}")
    with pytest.raises(DistillError, match="cannot be read"):
        check_order(path, order, None)


def test_a_folder_is_used_once(tmp_path: Path) -> None:
    """What a failed start leaves does not count, what a run leaves does."""
    place = Place(tmp_path / "draft", tmp_path / "draft/.work")
    for _ in range(2):
        place.prepare(resume=False)
        with place.claimed():
            pass
    place.order.touch()
    with pytest.raises(DistillError, match="--resume"):
        place.prepare(resume=False)
    place.prepare(resume=True)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_names_what_to_lower(error: Exception, tmp_path: Path) -> None:
    """However Python, torch and the system say it."""
    said = pytest.raises(DistillError, match="lower --rows and go on with --resume")
    with said as caught, explained(tmp_path, "--rows"):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_names_the_folder(error: Exception, tmp_path: Path) -> None:
    """However Python, safetensors and torch say it."""
    said = pytest.raises(DistillError, match=r"the disk is full, .* MB are free")
    with said as caught, explained(tmp_path, "--rows"):
        raise error
    assert str(tmp_path) in str(caught.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    """What is a fault of the program is not explained away."""
    for error in (RuntimeError("shape mismatch"), OSError(errno.EIO, "I/O error")):
        with pytest.raises(type(error)), explained(tmp_path, "--rows"):
            raise error


def test_room_is_looked_for_before_the_start(tmp_path: Path) -> None:
    """In a folder that need not be there yet."""
    require_room(tmp_path / "not" / "yet", 1, "shards")
    with pytest.raises(DistillError, match="shards take about 1,000,000,000,000 MB"):
        require_room(tmp_path / "not" / "yet", 10**18, "shards")


def test_a_shard_that_fails_leaves_the_earlier_ones(tmp_path: Path) -> None:
    """No half file is left, and the corpus is as far as it was."""
    shelf = Shelf(tmp_path, shard_tokens=2)
    shelf.add(Record([1, 2], torch.zeros(2, 4), 1, 0.0))
    before = extent_of(tmp_path)
    (tmp_path / "shard-00001.partial").mkdir()  # cannot be written over
    with pytest.raises((OSError, SafetensorError)):
        shelf.add(Record([1, 2], torch.zeros(2, 4), 1, 0.0))
    (tmp_path / "shard-00001.partial").rmdir()
    assert extent_of(tmp_path) == before != Extent()
    shelf.flush()
    assert extent_of(tmp_path).tokens == 4


def test_a_signal_waits_for_the_end_of_a_step() -> None:
    """The first one is heard when it is asked for, the second one at once."""
    with stops_between_steps() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
