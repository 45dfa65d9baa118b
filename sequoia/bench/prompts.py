"""The prompts that benchmarks use where none are named."""

from __future__ import annotations

from pathlib import Path

MT_BENCH = Path(__file__).parent / "data" / "mt_bench.jsonl"
