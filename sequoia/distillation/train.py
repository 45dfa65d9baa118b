"""Teaching the student: full-distribution distillation on the target's stored features."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from sequoia.distillation.loss import Example, LossWeights, loss_of
from sequoia.distillation.student import Student

EARLY = LossWeights(kl=1.0, tv=0.0)
"""The loss at first: total variation hardly moves a student that is far off."""
LATE = LossWeights(kl=0.3, tv=1.0)
"""Later on: total variation is one minus the acceptance, and KL keeps the ranking in place."""
CHECKPOINT = "trainer.pt"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; `tokens` and `seconds` end the run and its learning-rate schedule.

    A run that `tokens` alone ends is a function of corpus and settings, however often it is stopped
    and resumed; with `seconds` the schedule follows the clock.
    """

    tokens: float = math.inf
    seconds: float = math.inf
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    late_start: float = 0.6
    """The part of the budget after which the loss turns from `EARLY` to `LATE`."""
    levels: int = 2
    """Levels of the tree that a student which reads features is taught."""
    levels_start: float = 0.3
    """The part of the budget before which only the first level is taught, at half the time."""
    checkpoint_seconds: float = 120.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a report hears after a step."""

    step: int
    tokens: int
    """Read so far, by all runs."""
    part: float
    """Of the budget that is used up, 0 to 1."""
    divergence: float
    """KL(p || q) on the step's batch, at the first level."""
    overlaps: tuple[float, ...]
    """Σ min(p, q) on the step's batch, by level."""


def batches(examples: Sequence[Example], tokens: int, epoch: int, seed: int) -> list[list[Example]]:
    """One epoch's batches of about `tokens` tokens, of like length to save padding, shuffled."""
    order = random.Random(f"{seed}:{epoch}")  # noqa: S311 - no secret hangs on it
    left = list(examples)
    order.shuffle(left)
    made: list[list[Example]] = []
    for start in range(0, len(left), 512):
        window = sorted(left[start : start + 512], key=lambda example: len(example.token_ids))
        while window:
            longest = len(window[-1].token_ids)
            take = max(1, tokens // longest)
            window, batch = window[:-take], window[-take:]
            made.append(batch)
    order.shuffle(made)
    return made


class Trainer:
    """A student in training: optimiser, schedule and checkpoints in one resumable state."""

    def __init__(self, student: Student, settings: Settings, folder: Path | None) -> None:
        """Train `student`; continue from the checkpoint in `folder` where there is one."""
        self.student, self.settings, self.folder = student, settings, folder
        self._parameters = [x for x in student.parameters() if x.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step = self.epoch = self.batch = self.tokens = 0
        self.seconds = 0.0
        if folder and (folder / CHECKPOINT).exists():
            self._restore(folder / CHECKPOINT)

    @property
    def part(self) -> float:
        """The part of the budget that is used up, by time or by tokens."""
        used = max(self.seconds / self.settings.seconds, self.tokens / self.settings.tokens)
        return min(1.0, used)

    def run(
        self,
        examples: Sequence[Example],
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Train until the settings' end; whatever interrupts it leaves a checkpoint and passes on."""
        if not examples:
            raise ValueError("no examples to learn from")
        saved = self.seconds
        clock = time.monotonic() - self.seconds
        try:
            for batch in self._from_here(examples):
                if self.part >= 1:
                    break
                progress = self._learn(batch)
                self.batch += 1
                self.seconds = time.monotonic() - clock
                report(progress)
                if self.seconds - saved > self.settings.checkpoint_seconds:
                    self.save()
                    saved = self.seconds
        finally:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all: learned tensors in fp32, the optimiser's state."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "learned": self.student.learned(),
            "position": [self.step, self.epoch, self.batch, self.tokens],
            "seconds": self.seconds,
        }
        partial = self.folder / (CHECKPOINT + ".partial")
        torch.save(state, partial)
        partial.replace(self.folder / CHECKPOINT)

    def _restore(self, checkpoint: Path) -> None:
        state: dict[str, Any] = torch.load(
            checkpoint, weights_only=True, map_location=self.student.head.device
        )
        self.student.load_learned(state["learned"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch, self.batch, self.tokens = state["position"]
        self.seconds = state["seconds"]

    def _from_here(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        while True:
            order = batches(examples, self.settings.batch_tokens, self.epoch, self.settings.seed)
            while self.batch < len(order):
                yield order[self.batch]  # `run` counts it once it is learned
            self.epoch, self.batch = self.epoch + 1, 0

    def _learn(self, batch: list[Example]) -> Progress:
        settings, part = self.settings, self.part
        warm = min(1.0, (self.step + 1) / settings.warmup_steps)
        rate = settings.learning_rate * warm * (1 + math.cos(math.pi * part)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = LATE if part >= settings.late_start else EARLY
        levels = settings.levels if part >= settings.levels_start else 1
        loss = loss_of(self.student, batch, weights, levels)
        self.optimizer.zero_grad()
        loss.total.backward()
        clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        self.tokens += sum(len(example.token_ids) for example in batch)
        return Progress(
            self.step,
            self.tokens,
            part,
            loss.divergences[0],
            tuple(loss.overlaps),
        )
