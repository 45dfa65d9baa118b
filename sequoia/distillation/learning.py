"""The second stage of a run: the draft learns from the corpus."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sequoia.distillation.display import Display, Moment, Rate
from sequoia.distillation.extent import Limit
from sequoia.distillation.failures import DistillError, is_out_of_memory
from sequoia.distillation.history import History
from sequoia.distillation.judging import hold_out
from sequoia.distillation.loss import Example, examples_of
from sequoia.distillation.order import Order
from sequoia.distillation.place import Place
from sequoia.distillation.preparation import Ready
from sequoia.distillation.shards import load_shards
from sequoia.distillation.stopping import stops_between_steps
from sequoia.distillation.student import Student, frequent_ids
from sequoia.distillation.train import Progress, Settings, Trainer

HEAD_POSITIONS = 32768
"""Positions on which the frequency of token ids is estimated."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """The corpus as it is learned from.

    Attributes:
        examples: to learn from.
        unseen: prompts to judge by, token ids.
    """

    examples: list[Example]
    unseen: list[tuple[int, ...]]

    @property
    def tokens(self) -> int:
        """Tokens of the examples."""
        return sum(len(example.token_ids) for example in self.examples)


def lessons_of(ready: Ready, place: Place) -> Lessons:
    """Read the corpus and set apart what the draft is judged by.

    Raises:
        DistillError: there is too little.
    """
    examples = examples_of(load_shards(place.corpus))
    if ready.unseen is not None:
        lessons = Lessons(examples, list(ready.unseen))
    else:
        lessons = Lessons(*hold_out(examples))
    if not lessons.examples:
        raise DistillError(
            "the budget ended before the target had answered enough to learn from: raise it and go "
            "on with --resume"
        )
    return lessons


def cut(ready: Ready, lessons: Lessons, head: Path, keeps_head: bool) -> Student:
    """The draft before it has learned anything.

    Args:
        ready: the target.
        lessons: what tells which token ids the target uses.
        head: file of the ids that were chosen, which stay the same in a run that is resumed.
        keeps_head: whether to write that file where there is none.
    """
    if ready.beginning:
        student = Student(ready.target, ready.shape, ready.beginning.head_token_ids)
        student.begin_as(ready.beginning)
        return student
    if head.exists():
        try:
            token_ids = load_file(head)["token_ids"]
        except (SafetensorError, KeyError) as error:
            raise DistillError(f"{head}: cannot be read: begin anew in another folder") from error
        return Student(ready.target, ready.shape, token_ids)
    sample = torch.split(_some_features(lessons.examples), 256)
    found = frequent_ids(sample, ready.target.head, ready.head_size, ready.always)
    if keeps_head:
        partial = head.with_suffix(".partial")
        save_file({"token_ids": found}, partial)
        partial.replace(head)
    return Student(ready.target, ready.shape, found)


def trainer_of(student: Student, order: Order, limit: Limit, place: Place) -> Trainer:
    """The student's training, from its checkpoint where there is one.

    Raises:
        DistillError: the checkpoint cannot be read.
    """
    settings = Settings(
        tokens=limit.tokens,
        seconds=limit.seconds,
        batch_tokens=order.batch_tokens,
        learning_rate=order.learning_rate,
        seed=order.seed,
    )
    try:
        return Trainer(student, settings, place.checkpoint)
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise DistillError(
            f"{place.checkpoint}: cannot be read ({error}): delete it to begin the learning anew"
        ) from error


def learn(trainer: Trainer, lessons: Lessons, place: Place, display: Display) -> None:
    """Learn until the budget is spent.

    Raises:
        KeyboardInterrupt: the user wants to stop; the checkpoint is of the last whole step.
    """
    history = History(place.history, trainer.step)
    show = _reporter(display)
    with stops_between_steps() as check:

        def report(progress: Progress) -> None:
            history.add(progress)
            show(progress)
            check()

        try:
            trainer.run(lessons.examples, report)
        finally:
            for partial in place.checkpoint.glob("*.partial"):  # of a checkpoint that failed
                partial.unlink()


def _reporter(display: Display) -> Callable[[Progress], None]:
    rate = Rate()

    def report(progress: Progress) -> None:
        overlaps = " ".join(f"{overlap:.3f}" for overlap in progress.overlaps)
        found = f"loss {progress.divergence:.3f}, Σ min(p, q) {overlaps}"
        figures = f"{rate(progress.tokens)}, {found}"
        display.show(Moment("learning", progress.part, figures))

    return report


def _some_features(examples: Sequence[Example]) -> Tensor:
    """Features of learned positions, evenly spread, `[positions, hidden]`."""
    counts = [len(x.token_ids) - x.answer_start + 1 for x in examples]
    stride = max(1, sum(counts) // HEAD_POSITIONS)
    taken, passed = [], 0
    for example, count in zip(examples, counts, strict=True):
        taken.append(example.hidden[example.answer_start - 1 :][-passed % stride :: stride])
        passed += count
    return torch.cat(taken)
