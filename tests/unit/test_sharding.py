from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config
from typer.testing import CliRunner, Result

from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.segment import Segment
from sequoia.runtime.sharding.loading import check_shardable, device_of
from sequoia.runtime.sharding.orders import Copy, End, Move, Order, Pass, Share, decode, encode
from sequoia.runtime.sharding.ranks import VARIABLES, Ranks, chosen_ranks
from sequoia.tree import Topology
from target_service.__main__ import app
from tests.tiny import save_model, tiny_llama, word_tokenizer

TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
TREE = Topology((-1, 0, 0, 1, 2, 2, 4))


def start(*arguments: str, **environment: str) -> Result:
    """Start a target worker as far as its options reach."""
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, arguments, env=wide | environment)


def test_torchrun_says_which_rank_this_is() -> None:
    """With the flag; without torchrun and the flag there are no ranks."""
    assert chosen_ranks(TORCHRUN, True, {}) == Ranks(1, 4, 1, 2)
    assert chosen_ranks({}, False, {}) is None


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--tensor-parallel"], {}, ["--tensor-parallel needs torchrun", *VARIABLES]),
        ([], TORCHRUN, ["torchrun started 4 processes", "--tensor-parallel"]),
        (["--tensor-parallel"], TORCHRUN | {"RANK": "one"}, ["RANK", "'one'"]),
        (["--tensor-parallel"], TORCHRUN | {"WORLD_SIZE": "1"}, ["WORLD_SIZE is 1"]),
        (["--tensor-parallel", "--placement", "offload"], TORCHRUN, ["--placement offload"]),
        (["--tensor-parallel", "--device-memory", "1GiB"], TORCHRUN, ["--device-memory"]),
        (["--host-memory", "1GiB"], TORCHRUN | {"SEQUOIA_TENSOR_PARALLEL": "1"}, ["--host-memory"]),
    ],
)
def test_contradictory_options_are_named(
    arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    """Before anything is loaded, with status 2."""
    result = start(*arguments, **environment)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output


def test_a_rank_names_itself_when_its_model_cannot_be_shared(tmp_path: Path) -> None:
    """It does not join the others first, who could wait for it."""
    config = {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}
    folder = save_model(tmp_path, tiny_llama(12, 1, **config), word_tokenizer(12))
    result = start("--tensor-parallel", "--target", str(folder), "--device", "cpu", **TORCHRUN)
    assert result.exit_code == 1
    assert "error: rank 1: " in result.output
    assert "num_attention_heads is 3, which 4 processes cannot share evenly" in result.output


def test_key_value_heads_must_be_shared_evenly_too(tmp_path: Path) -> None:
    """Each rank has whole heads of both."""
    save_model(tmp_path, tiny_llama(12, 1), word_tokenizer(12))
    check_shardable(tmp_path, 2)
    with pytest.raises(ModelError, match="num_key_value_heads is 2, which 4 processes"):
        check_shardable(tmp_path, 4)


def test_a_model_without_a_plan_is_named(tmp_path: Path) -> None:
    """Nothing is sharded by a plan of our own."""
    config = GPT2Config(vocab_size=12, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no plan to share models of type gpt2"):
        check_shardable(tmp_path, 2)


def test_gguf_files_are_not_shared(tmp_path: Path) -> None:
    """transformers would load all of one on every rank."""
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="--tensor-parallel needs safetensors"):
        check_shardable(tmp_path, 2)


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of its number on the machine; more ranks than GPUs are refused."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(torch.device("cuda"), Ranks(3, 4, 1, 2)) == torch.device("cuda", 1)
    with pytest.raises(ModelError, match=r"4 processes on this machine .* it has 2"):
        device_of(torch.device("cuda"), Ranks(3, 4, 3, 4))


def test_a_cpu_is_not_chosen_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would put the shards on the GPU."""
    assert device_of(torch.device("cpu"), Ranks(0, 2, 0, 2)) == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES"):
        device_of(torch.device("cpu"), Ranks(0, 2, 0, 2))


@pytest.mark.parametrize("length", [0, 5])
def test_a_segment_arrives_as_it_was(length: int) -> None:
    """Trees and chains, behind any number of rows."""
    cache, other = KVCache(), KVCache()
    cache.length = other.length = length
    for segment in (
        Segment.tree(cache, TREE, (1, 2, 3, 4, 5, 6, 7)),
        Segment.chain(cache, [1, 2, 3]),
    ):
        order, freed = decode(encode(Pass([Share.of(segment, 7)], True), [3, 4]))
        assert isinstance(order, Pass)
        assert (order.shares[0].cache, order.with_logits, freed) == (7, True, [3, 4])
        arrived = order.shares[0].segment(other)
        assert arrived.cache is other
        assert list(arrived.token_ids) == list(segment.token_ids)
        assert list(arrived.positions) == list(segment.positions)
        assert np.array_equal(arrived.visible, segment.visible)
        assert np.array_equal(arrived.key_positions, segment.key_positions)


def test_a_segment_that_does_not_see_its_whole_cache_is_refused() -> None:
    """An order has no room for that, and no target's pass needs it."""
    cache = KVCache()
    cache.length = 2
    segment = Segment.chain(cache, [1])
    visible = segment.visible.copy()
    visible[0, 0] = False
    with pytest.raises(ValueError, match="trees and chains"):
        Share.of(dataclasses.replace(segment, visible=visible), 1)


@pytest.mark.parametrize("order", [Move(1, 5, [7, 9]), Copy(2, 1, 300), End()])
def test_an_order_arrives_as_it_was(order: Order) -> None:
    """Those without segments."""
    assert decode(encode(order, [])) == (order, [])
