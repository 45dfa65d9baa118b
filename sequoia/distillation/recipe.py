"""Making a draft, from the order to its folder: write, learn, judge."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from sequoia.acceptance.pair import load_pair
from sequoia.acceptance.timing import time_passes
from sequoia.distillation.budget import Budget
from sequoia.distillation.card import Making, write_card
from sequoia.distillation.display import Display, Moment
from sequoia.distillation.failures import DistillError, explained
from sequoia.distillation.history import read_history
from sequoia.distillation.judging import PROMPTS, Judgement, judge, write_acceptance
from sequoia.distillation.learning import Lessons, cut, learn, lessons_of, trainer_of
from sequoia.distillation.order import Order, keep_order
from sequoia.distillation.place import Place
from sequoia.distillation.plots import plot_learning, plot_rejection
from sequoia.distillation.preparation import Ready, prepare, rehearse
from sequoia.distillation.shards import extent_of
from sequoia.distillation.student import Student
from sequoia.distillation.train import Trainer
from sequoia.distillation.writing import make_corpus
from sequoia.runtime.catalogue import BUILT_INS

ACCEPTANCE = "acceptance.json"
REJECTION = "rejection.png"
LEARNING = "learning.png"
CARD = "README.md"


def distill(
    order: Order,
    budget: Budget,
    place: Place,
    device: torch.device,
    command: str,
    display: Display,
) -> list[Judgement]:
    """Make a draft, or go on making it.

    Args:
        order: what is to be made.
        budget: what may be spent, all runs together.
        place: folders, prepared.
        device: where to compute.
        command: for the card.
        display: shown the progress.

    Raises:
        DistillError: something is wrong that the user can mend.
        KeyboardInterrupt: the user wants to stop. What there is by then is in the folder, as a draft
            that works once the target has answered anything.
    """
    with place.claimed(), explained(place.out, None):
        making, unseen = _make(order, budget, place, device, command, display)
        gc.collect()  # the target is loaded anew, as a worker does
        return _judge(making, unseen, place, str(device), order.seed, display)


def _make(
    order: Order,
    budget: Budget,
    place: Place,
    device: torch.device,
    command: str,
    display: Display,
) -> tuple[Making, list[tuple[int, ...]]]:
    """Write, learn and save: how the draft was made, and the prompts to judge it by."""
    display.say(f"loading {order.target}")
    ready = prepare(order, device, display.say)
    more_bytes = rehearse(ready, place.work)
    keep_order(place.order, order, budget)
    trainer: Trainer | None = None
    try:
        make_corpus(ready, order, budget, place, display, more_bytes)
        with explained(place.work, "--batch-tokens"):
            lessons = lessons_of(ready, place)
            trainer = _trainer(ready, lessons, order, budget, place, keeps_head=True)
            learn(trainer, lessons, place, display)
    except KeyboardInterrupt:
        if trainer := trainer or _trainer_so_far(ready, order, budget, place):
            _save(trainer.student, _making(order, trainer, place, command), place)
            display.say(f"stopped: {place.out} holds the draft as it is, --resume goes on")
        raise
    making = _making(order, trainer, place, command)
    display.show(Moment("learning", 1.0, f"{making.learned_tokens:,} tokens"))
    _save(trainer.student, making, place)
    return making, lessons.unseen


def _trainer(
    ready: Ready, lessons: Lessons, order: Order, budget: Budget, place: Place, keeps_head: bool
) -> Trainer:
    limit = budget.learning(extent_of(place.corpus).seconds, lessons.tokens)
    student = cut(ready, lessons, place.head, keeps_head)
    return trainer_of(student, order, limit, place)


def _trainer_so_far(ready: Ready, order: Order, budget: Budget, place: Place) -> Trainer | None:
    """The training as earlier runs left it; None before there is anything to cut a draft by."""
    try:
        lessons = lessons_of(ready, place)
    except DistillError:
        return None
    # More may be written before the learning begins, so the head is not settled yet.
    return _trainer(ready, lessons, order, budget, place, keeps_head=False)


def _making(order: Order, trainer: Trainer, place: Place, command: str) -> Making:
    corpus = extent_of(place.corpus)
    built_in = BUILT_INS.get(order.target)
    return Making(
        target=order.target,
        licence=None if built_in is None else built_in.licence,
        command=command,
        shape=trainer.student.shape,
        head_tokens=len(trainer.student.head_token_ids),
        corpus_tokens=corpus.tokens,
        corpus_seconds=corpus.seconds,
        learned_tokens=trainer.tokens,
        learned_seconds=trainer.seconds,
        part=trainer.part,
    )


def _save(student: Student, making: Making, place: Place) -> None:
    """Write a draft that is not measured; what was measured of an earlier one goes."""
    student.save(place.out)
    for name in (ACCEPTANCE, REJECTION):
        (place.out / name).unlink(missing_ok=True)
    if points := read_history(place.history):
        plot_learning(place.out / LEARNING, points)
    write_card(place.out / CARD, making)


def _judge(
    making: Making,
    unseen: Sequence[tuple[int, ...]],
    place: Place,
    device: str,
    seed: int,
    display: Display,
) -> list[Judgement]:
    pair = load_pair(making.target, str(place.out), "auto", device)
    count = min(PROMPTS, len(unseen))
    asked = [unseen[index * len(unseen) // count] for index in range(count)]
    judgements = judge(pair, asked, seed, lambda part: display.show(Moment("measuring", part)))
    times = time_passes(pair.target, pair.draft)
    write_acceptance(place.out / ACCEPTANCE, judgements)
    plot_rejection(place.out / REJECTION, judgements)
    write_card(place.out / CARD, making, judgements, times)
    return judgements
