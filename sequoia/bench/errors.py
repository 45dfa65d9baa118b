"""What can go wrong in a benchmark; every message is one line."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The benchmark cannot go on."""


class OutputError(BenchmarkError):
    """The folder for the results cannot be written; the message names it."""


class HostError(BenchmarkError):
    """What runs in a process of its own failed, or the process ended."""


class UnavailableError(BenchmarkError):
    """Something that cannot take part here; the message says why."""


class OptionError(BenchmarkError):
    """An option that does not fit the models or the other options; the message names it and its limit."""
