"""The times of many kinds of passes, taken in turns, beside their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from sequoia.bench.errors import OptionError
from sequoia.bench.forward.passes import MakePassTimer, Pass
from sequoia.bench.forward.roofline import LimitMeter, MachineLimits, ModelSize
from sequoia.bench.host import ProcessHost
from sequoia.bench.interleave import Spread, take_turns

WARM_UPS = 1


class Progress(Protocol):
    """Told after each turn."""

    def __call__(self, done: int, total: int) -> None:
        """Turns done, and all there are."""


@dataclass(frozen=True, slots=True)
class TimedPass:
    """Seconds of one kind of pass, and the least that they could be."""

    model: str
    kind: Pass
    seconds: Spread
    limit_seconds: float

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "model": self.model,
            "nodes": self.kind.nodes,
            "batch": self.kind.batch,
            "prefix": self.kind.prefix,
            "seconds": self.seconds.median,
            "spread": self.seconds.interquartile,
            "limit_seconds": self.limit_seconds,
            "times_the_limit": self.seconds.median / self.limit_seconds,
        }


@dataclass(frozen=True, slots=True)
class MakeLimitMeter:
    """How to make the meter in its process."""

    device: str
    dtype: str
    threads: int

    def __call__(self) -> LimitMeter:
        """The meter; `dtype` and `device` are torch's names."""
        return LimitMeter(torch.device(self.device), getattr(torch, self.dtype), self.threads)


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """All passes of both models, and the machine's limits."""

    passes: Sequence[TimedPass]
    limits: MachineLimits


def time_passes(
    timers: Mapping[str, MakePassTimer],
    meter: MakeLimitMeter,
    kinds: Sequence[Pass],
    repetitions: int,
    progress: Progress,
) -> ForwardTimes:
    """Time every kind of pass of every model, in turns.

    Raises:
        OptionError: a pass does not fit a model's context.
        HostError: a model could not be loaded.
    """
    with ExitStack() as hosts:
        limits: MachineLimits = hosts.enter_context(ProcessHost("limits", meter)).call("measure")
        loaded = {
            name: hosts.enter_context(ProcessHost(name, make)) for name, make in timers.items()
        }
        sizes: dict[str, ModelSize] = {}
        for name, host in loaded.items():
            require_context(name, kinds, host.call("context_length"))
            sizes[name] = host.call("size")
        systems = {
            f"{name} {kind}": partial(_seconds, host, kind)
            for name, host in loaded.items()
            for kind in kinds
        }
        keys = [(name, kind) for name in loaded for kind in kinds]
        take_turns(systems, [None], WARM_UPS)
        times = take_turns(systems, [None], repetitions, progress)
    return ForwardTimes(
        [
            TimedPass(name, kind, Spread.of(seconds), _limit(limits, sizes[name], kind))
            for (name, kind), seconds in zip(keys, times.values(), strict=True)
        ],
        limits,
    )


def require_context(name: str, kinds: Sequence[Pass], context_length: int) -> None:
    """Check that the largest pass fits.

    Raises:
        OptionError: it does not.
    """
    for kind in kinds:
        if kind.prefix + kind.nodes > context_length:
            raise OptionError(
                f"--nodes: {kind.nodes} behind a --prefix of {kind.prefix} exceed the {name}'s "
                f"context of {context_length} tokens"
            )


def _seconds(host: ProcessHost, kind: Pass, _: None) -> float:
    seconds: float = host.call("seconds", kind)
    return seconds


def _limit(limits: MachineLimits, size: ModelSize, kind: Pass) -> float:
    cost = kind.nodes, kind.batch, kind.prefix
    return limits.seconds(size.bytes_moved(*cost), size.operations(*cost))
