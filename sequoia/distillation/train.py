"""Teaching the student: full-distribution distillation on the target's stored hidden states."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from sequoia.distillation.loss import Example, loss_of
from sequoia.distillation.student import Student

EARLY = (1.0, 0.0)
"""Weights of KL(p || q) and of total variation at first: TV hardly moves a student far off."""
LATE = (0.3, 1.0)
"""Later on: total variation is one minus the acceptance, and KL keeps the ranking in place."""


@dataclass(frozen=True)
class Settings:
    """How to train; `seconds` and `steps` end the run and its learning-rate schedule."""

    seconds: float = math.inf
    steps: float = math.inf
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    tv_start: float = 0.6
    """The part of the budget after which the loss turns from `EARLY` to `LATE`."""
    checkpoint_seconds: float = 120.0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """What a report hears: means over the last step."""

    step: int
    tokens: int
    seconds: float
    kl: float
    overlap: float
    learning_rate: float


def batches(examples: list[Example], tokens: int, epoch: int, seed: int) -> list[list[Example]]:
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

    def __init__(self, student: Student, settings: Settings, checkpoint: Path | None) -> None:
        """Train `student`; continue from the folder `checkpoint` where it exists."""
        self.student, self.settings, self.checkpoint = student, settings, checkpoint
        parameters = [x for x in student.parameters() if x.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step = self.epoch = self.batch = self.tokens = 0
        self.seconds = 0.0
        if checkpoint and (checkpoint / "trainer.pt").exists():
            self._restore(checkpoint)

    def run(
        self, examples: list[Example], report: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        """Train until the settings' end; a KeyboardInterrupt leaves a checkpoint and passes on."""
        saved = self.seconds
        clock = time.monotonic() - self.seconds
        try:
            for batch in self._from_here(examples):
                if self._done() >= 1:
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
        """Write a checkpoint: the learned tensors in fp32, and the optimiser's state."""
        if self.checkpoint is None:
            return
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "learned": self.student.learned(),
            "position": [self.step, self.epoch, self.batch, self.tokens],
            "seconds": self.seconds,
        }
        partial = self.checkpoint / "trainer.partial"
        torch.save(state, partial)
        partial.replace(self.checkpoint / "trainer.pt")

    def _restore(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "trainer.pt", weights_only=True)
        self.student.load_learned(state["learned"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch, self.batch, self.tokens = state["position"]
        self.seconds = state["seconds"]

    def _done(self) -> float:
        """The part of the budget that is used up, by time or by steps."""
        return max(self.seconds / self.settings.seconds, self.step / self.settings.steps)

    def _from_here(self, examples: list[Example]) -> Iterator[list[Example]]:
        while True:
            order = batches(examples, self.settings.batch_tokens, self.epoch, self.settings.seed)
            while self.batch < len(order):
                yield order[self.batch]  # `run` counts it once it is learned
            self.epoch, self.batch = self.epoch + 1, 0

    def _learn(self, batch: list[Example]) -> Progress:
        settings = self.settings
        warm = min(1.0, (self.step + 1) / settings.warmup_steps)
        rate = settings.learning_rate * warm * (1 + math.cos(math.pi * min(1, self._done()))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = LATE if self._done() >= settings.tv_start else EARLY
        loss, divergence, overlap = loss_of(self.student, batch, *weights)
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_([x for x in self.student.parameters() if x.requires_grad], 1.0)
        self.optimizer.step()
        self.step += 1
        self.tokens += sum(len(example.token_ids) for example in batch)
        return Progress(
            self.step, self.tokens, self.seconds, float(divergence), float(overlap), rate
        )
