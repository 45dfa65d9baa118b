"""Streamed models say what resident ones say; whatever is wrong with their files is said at once."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, Qwen3Config

from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.loading import load_model
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.offload.disk import Disk
from sequoia.runtime.offload.skeleton import Skeleton
from sequoia.runtime.segment import Segment
from sequoia.runtime.selfcheck import check_tree_attention
from sequoia.tree import Topology
from tests.offloading import CPU, offloaded, tree_logits
from tests.tiny import save_model, tiny_llama, word_tokenizer

WORDS = 12
LAYERS = 5
WEIGHTS = "model.safetensors"


def other_model(config: Any) -> Any:
    """A random model of another architecture."""
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(config)


MODELS = {
    "llama": lambda: tiny_llama(WORDS, seed=1, layers=LAYERS),
    "llama-tied": lambda: tiny_llama(WORDS, seed=1, layers=LAYERS, tie_word_embeddings=True),
    "gpt2": lambda: other_model(
        GPT2Config(vocab_size=WORDS, n_positions=512, n_embd=32, n_layer=LAYERS, n_head=4)
    ),
    "opt": lambda: other_model(
        OPTConfig(
            vocab_size=WORDS,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=512,
            word_embed_proj_dim=32,
        )
    ),
    "qwen3-sliding": lambda: other_model(
        Qwen3Config(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            sliding_window=64,
            use_sliding_window=True,
            max_window_layers=2,
        )
    ),
}


def saved(folder: Path, name: str = "llama") -> Path:
    """A tiny model's folder."""
    return save_model(folder / name, MODELS[name](), word_tokenizer(WORDS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama's folder, to be written to."""
    return saved(tmp_path)


@pytest.mark.parametrize("resident_count", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_streamed_model_says_bit_for_bit_what_a_resident_one_says(
    name: str, resident_count: int, tmp_path: Path
) -> None:
    """Over a tree and its prefix, pass after pass, whatever the architecture."""
    folder = saved(tmp_path, name)
    expected = tree_logits(load_model(folder, torch.float32, CPU))

    streamed = offloaded(folder, resident_count).model

    for _ in range(3):
        assert torch.equal(tree_logits(streamed), expected)


@pytest.mark.parametrize(
    ("stored", "wanted"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_weights_of_another_type_are_converted_on_the_way(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    """As transformers converts them when it loads."""
    model = tiny_llama(WORDS, seed=1, layers=LAYERS).to(stored)
    folder = save_model(tmp_path / "model", model, word_tokenizer(WORDS))
    expected = tree_logits(load_model(folder, wanted, CPU))

    streamed = offloaded(folder, 1, wanted).model

    assert streamed.dtype is wanted
    assert torch.equal(tree_logits(streamed), expected)


def test_the_check_of_tree_attention_passes(folder: Path) -> None:
    """A streamed model is checked as any other before it serves, and its pass is timed."""
    assert check_tree_attention(offloaded(folder).model) > 0


def test_features_are_those_of_a_resident_model(folder: Path) -> None:
    """A draft that reads them can be used with a streamed target."""
    resident, streamed = load_model(folder, torch.float32, CPU), offloaded(folder).model
    assert torch.equal(
        streamed.prefill(KVCache(), [1, 2, 3]), resident.prefill(KVCache(), [1, 2, 3])
    )


def test_every_pass_reads_what_does_not_stay_and_nothing_else(folder: Path) -> None:
    """Layers that stay are read once; the others once a pass, and no whole model is ever there."""
    streamed = offloaded(folder, resident_count=2)
    layouts = Skeleton.of(folder, Checkpoint(folder), torch.float32).layer_layouts
    ring = streamed.ring
    assert ring is not None
    tree_logits(streamed.model)
    read_once = settled(streamed.disk)
    tree_logits(streamed.model)
    a_pass = (settled(streamed.disk) - read_once) / 2  # a prefill and a tree

    within = sum(layouts[number].byte_count for number in (0, 1, 3))
    assert a_pass == pytest.approx(within, rel=0.02)  # the file's last block is cut short
    absent = [p for p in streamed.model.model.parameters() if p.device.type == "meta"]
    assert len(absent) == 3 * len(layouts[0].tensors)


def settled(disk: Disk) -> int:
    """Bytes read once the reader waits for a free buffer."""
    before = -1
    while before != disk.read_bytes:
        before = disk.read_bytes
        time.sleep(0.05)
    return before


def test_the_next_pass_is_on_its_way_between_passes(folder: Path) -> None:
    """After a pass the first layers of the next are read, though nobody has asked for them."""
    streamed = offloaded(folder)
    settled(streamed.disk)
    at_first = streamed.disk.read_bytes
    layouts = Skeleton.of(folder, Checkpoint(folder), torch.float32).layer_layouts
    streamed.model.prefill(KVCache(), [1])
    ahead = settled(streamed.disk) - at_first
    assert ahead == pytest.approx(sum(layout.byte_count for layout in layouts.values()), rel=0.02)


def test_a_read_that_fails_fails_its_pass_and_the_next_one_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file; nothing of the failed pass is left behind."""
    expected = tree_logits(load_model(folder, torch.float32, CPU))
    streamed = offloaded(folder).model
    read = os.preadv
    broken = threading.Event()

    def failing(descriptor: int, buffers: Any, offset: int) -> int:
        if broken.is_set():
            raise OSError(5, "Input/output error")
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    broken.set()
    with pytest.raises(OSError, match=WEIGHTS):
        tree_logits(streamed)
    broken.clear()
    assert torch.equal(tree_logits(streamed), expected)


def test_a_pass_that_fails_halfway_leaves_no_trace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in a layer, the next pass begins with the first one."""
    expected = tree_logits(load_model(folder, torch.float32, CPU))
    streamed = offloaded(folder).model
    layer = streamed.model.model.layers[2]
    with monkeypatch.context() as patched:
        patched.setattr(layer.mlp, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tree_logits(streamed)
    assert torch.equal(tree_logits(streamed), expected)


def test_the_reader_ends_with_its_model(folder: Path) -> None:
    """No thread goes on reading for a model that is gone."""
    before = set(threading.enumerate())
    streamed = offloaded(folder)
    (reader,) = set(threading.enumerate()) - before
    del streamed
    gc.collect()
    reader.join(10)
    assert not reader.is_alive()


def test_without_direct_reads_the_page_cache_is_told_to_forget(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems take none; the text is the same."""
    expected = tree_logits(load_model(folder, torch.float32, CPU))
    opened = os.open

    def refusing(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *more)

    forgotten = []
    advise = os.posix_fadvise

    def noting(*arguments: int) -> None:
        forgotten.append(arguments)
        advise(*arguments)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "posix_fadvise", noting)
    streamed = offloaded(folder)
    assert not streamed.disk.is_direct
    assert torch.equal(tree_logits(streamed.model), expected)
    assert sum(count for *_, count, _ in forgotten) == streamed.disk.read_bytes


def test_a_large_tree_can_be_run(folder: Path) -> None:
    """As many nodes as a plan may have, each with the logits of a small tree's."""
    streamed = offloaded(folder).model
    cache = KVCache()
    streamed.prefill(cache, [3, 1, 4])
    parents = (-1, *(node // 3 for node in range(1023)))
    tokens = tuple(node % WORDS for node in range(1024))
    (output,) = streamed.forward([Segment.tree(cache, Topology(parents), tokens)])
    cache.keep(3, [])
    (chain,) = streamed.forward([Segment.chain(cache, [0, 1, 4])])
    torch.testing.assert_close(output.logits[[0, 1, 4]], chain.logits, rtol=1e-4, atol=1e-4)


def cut(folder: Path) -> None:
    """Take the end off the weights."""
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(folder: Path) -> None:
    """Leave one out."""
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS)


def rename(folder: Path) -> None:
    """Give all tensors other names."""
    weights = {f"other.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)


def reshape(folder: Path) -> None:
    """Give one another shape."""
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, folder / WEIGHTS)


def quantise(folder: Path) -> None:
    """Store one as integers."""
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    save_file(weights, folder / WEIGHTS)


def garble(folder: Path) -> None:
    """Something else altogether."""
    (folder / WEIGHTS).write_bytes(b"\x10" + bytes(7) + b"not a header at all")


def nest(folder: Path) -> None:
    """A header of brackets in brackets, deeper than JSON is read."""
    header = b"[" * 100_000
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def nest_the_index(folder: Path) -> None:
    """The same in the index."""
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)


def lose_a_shard(folder: Path) -> None:
    """An index that names a file which is not there."""
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cut short: .* ends at byte"),
        (drop_a_tensor, r"no weights for 1 tensors, model\.layers\.3\.mlp\.up_proj\.weight first"),
        (rename, "tensors that are renamed or joined"),
        (reshape, r"model\.norm\.weight has shape \(31,\), not \(32,\)"),
        (quantise, "is of type I8; streamed are F32, BF16, F16"),
        (garble, "not a safetensors header"),
        (nest, "not a safetensors header: RecursionError"),
        (nest_the_index, "not an index of safetensors files: RecursionError"),
        (lose_a_shard, r"gone\.safetensors: No such file"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no safetensors"),
    ],
    ids=[
        *("cut short", "missing", "renamed", "reshaped", "quantised", "garbled", "nested"),
        *("nested index", "no shard", "none"),
    ],
)
def test_files_that_cannot_be_streamed_are_refused_at_the_start(
    damage: Any, message: str, folder: Path
) -> None:
    """In one line that names the file or the tensor."""
    damage(folder)
    with pytest.raises(ModelError, match=message):
        offloaded(folder)


def test_a_checkpoint_of_the_decoder_alone_is_found(tmp_path: Path) -> None:
    """GPT-2's names on the hub lack the decoder's own; transformers takes them, and so do we."""
    folder = saved(tmp_path, "gpt2")
    weights = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    expected = tree_logits(load_model(folder, torch.float32, CPU))
    assert torch.equal(tree_logits(offloaded(folder).model), expected)
