"""Times passes of a target that processes share against those of the same target in one process, on a CPU.

    OMP_WAIT_POLICY=passive python -m torch.distributed.run --nproc-per-node 2 benchmarks/sharded_passes.py

Rank 0 holds a random Llama twice, sharded and whole; the other rank waits without computing while the
whole one runs. The ways take turns, pass by pass, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

from sequoia.runtime.cache import KVCache
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import load_model
from sequoia.runtime.segment import Segment
from sequoia.runtime.sharding.following import Follower
from sequoia.runtime.sharding.group import Group
from sequoia.runtime.sharding.leading import Lead, LeadingModel
from sequoia.runtime.sharding.loading import load_shards
from sequoia.runtime.sharding.orders import Move, Pass, Share, encode
from sequoia.runtime.sharding.ranks import Ranks

CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
DTYPE, CPU = torch.float32, torch.device("cpu")
PREFIX, REPETITIONS = 128, 30
NODE_COUNTS = (1, 64)


def main() -> None:
    """Time passes of every way, and print a line for each number of nodes."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    group = Group(Ranks(rank, size, rank, size), CPU)
    folder = Path(tempfile.gettempdir()) / "sequoia-sharded-passes"
    if rank == 0:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIG, dtype=DTYPE).save_pretrained(folder)
    dist.barrier()
    shards = load_shards(folder, DTYPE, size)
    if rank:
        Follower(TreeModel(shards), group).follow()
        return
    lead = Lead(group)
    sharded, whole = LeadingModel(shards, lead, size), load_model(folder, DTYPE, CPU)
    ways: dict[str, tuple[TreeModel, int]] = {
        f"{size} processes, 1 thread each": (sharded, 1),
        "1 process, 1 thread": (whole, 1),
        "1 process, 2 threads": (whole, 2),
    }
    for nodes in NODE_COUNTS:
        seconds = _interleaved({name: _pass(*way, nodes) for name, way in ways.items()})
        for name, values in seconds.items():
            least, usual = 1e3 * min(values), 1e3 * median(values)
            print(f"{nodes:3} nodes  {name:30} least {least:7.1f} ms, median {usual:7.1f} ms")
    _time_orders(sharded, group)
    sharded.end()


def _pass(model: TreeModel, threads: int, nodes: int) -> Callable[[], None]:
    cache = KVCache()
    model.prefill(cache, [1] * PREFIX)

    def run() -> None:
        torch.set_num_threads(threads)
        model.forward([Segment.chain(cache, [1] * nodes)])
        cache.length = PREFIX

    return run


def _interleaved(ways: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPETITIONS):
        for name, run in ways.items():
            run()  # a warm-up, since another way has just swept the caches
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _time_orders(sharded: LeadingModel, group: Group) -> None:
    """What it costs rank 0 to write and send an order; the others are sent one that does nothing."""
    cache, rows = KVCache(), sharded.lead.new_rows()
    cache.rows = rows
    sharded.prefill(cache, [1] * PREFIX)
    for nodes in NODE_COUNTS:
        segment, seconds = Segment.chain(cache, [1] * nodes), []
        for _ in range(200):
            started = time.perf_counter()
            size = len(encode(Pass([Share.of(segment, 1)], True), []))
            group.send(encode(Move(rows.number, PREFIX, []), [10**9] * (size // 11)))
            seconds.append(time.perf_counter() - started)
        least, usual = 1e6 * min(seconds), 1e6 * median(seconds)
        print(
            f"{nodes:3} nodes  an order of {size} bytes: least {least:.0f} us, median {usual:.0f} us"
        )


if __name__ == "__main__":
    main()
