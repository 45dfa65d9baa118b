"""Benchmarks that `sequoia bench` runs: each compares what it times within one run."""
