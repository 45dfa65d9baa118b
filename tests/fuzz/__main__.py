"""`make fuzz`: many inputs of every kind, and what came of them."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog
import torch

from sequoia.embedded_valkey import EmbeddedValkey
from tests.fuzz.calling import call_all
from tests.fuzz.decoding import read_client_files, read_messages, read_plans
from tests.fuzz.remembering import read_memories
from tests.fuzz.storing import store_garbage
from tests.fuzz.tally import SHOWN_FAILURES, Tally, open_file_count, resident_mib
from tests.tiny import byte_pair

SHARES = {
    "messages": 0.7,
    "plans": 0.09,
    "memories": 0.03,
    "clients": 0.03,
    "redis": 0.05,
}  # the rest are calls
GROWTH_LIMIT_MIB = 64.0
# Until then calls make the process larger; three times 3,000 of them added 77, 14 and 2 MiB.
WARM_UP_SHARE = 0.5


def run_all(count: int, seed: int, folders: tuple[Path, Path], redis_url: str) -> list[Tally]:
    """Every campaign's share of so many inputs."""
    counts = {name: round(share * count) for name, share in SHARES.items()}
    return [
        read_messages(counts["messages"], seed),
        read_plans(counts["plans"], seed),
        read_memories(counts["memories"], seed),
        read_client_files(counts["clients"], seed),
        asyncio.run(store_garbage(redis_url, counts["redis"], seed)),
        asyncio.run(call_all(folders, redis_url, count - sum(counts.values()), seed)),
    ]


def main() -> int:
    """Run, print, and end with status 1 when an input broke something or memory was lost."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=quiet)
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey() as valkey:
        folders = byte_pair(Path(folder))
        run_all(round(options.inputs * WARM_UP_SHARE), options.seed + 1, folders, valkey.url)
        gc.collect()
        memory, files = resident_mib(), open_file_count()
        tallies = run_all(options.inputs, options.seed, folders, valkey.url)
        gc.collect()
        grown = resident_mib() - memory
        left = open_file_count() - files
    failures = [failure for tally in tallies for failure in tally.failures]
    total = sum(tally.count for tally in tallies)
    lines = [tally.line() for tally in tallies]
    lines += failures[:SHOWN_FAILURES]
    lines += [
        f"{total} inputs in {time.perf_counter() - started:.0f} s, {len(failures)} broke something",
        f"memory {memory:.1f} MiB before, {memory + grown:.1f} MiB after; files left open: {left}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if failures or grown > GROWTH_LIMIT_MIB or left > 0 else 0


if __name__ == "__main__":
    sys.exit(main())
