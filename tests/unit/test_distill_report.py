"""What a run shows and leaves: progress, card, pictures, history."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

from sequoia.acceptance.measure import TOPS, Agreement
from sequoia.acceptance.timing import PassTimes
from sequoia.distillation.card import Making, write_card
from sequoia.distillation.display import Lines, Moment, Rate
from sequoia.distillation.history import History, read_history
from sequoia.distillation.judging import Judgement, hold_out, prompt_of, write_acceptance
from sequoia.distillation.loss import Example
from sequoia.distillation.plots import plot_learning, plot_rejection
from sequoia.distillation.student import Shape
from sequoia.distillation.train import Progress

MAKING = Making(
    target="some/target",
    licence=None,
    command="sequoia distill --target some/target",
    shape=Shape((0, 29), 512, reads_features=True),
    head_tokens=4096,
    corpus_tokens=123_456,
    corpus_seconds=90.0,
    learned_tokens=654_321,
    learned_seconds=120.0,
    part=1.0,
)
PNG = b"\x89PNG"


def agreement(rate: float) -> Agreement:
    """An agreement whose first child is accepted at a rate, and whose others are not."""
    vector = (0.0, rate, *[0.0] * 31, 1 - rate)
    return Agreement(1000, 0.7, 0.95, dict.fromkeys(TOPS, rate), vector)


def step(number: int, overlaps: tuple[float, ...] = (0.4,)) -> Progress:
    """A step of learning."""
    return Progress(number, 100 * number, 0.1, 1 / number, overlaps)


def test_lines_come_at_each_further_twentieth_of_a_stage() -> None:
    """The first report of a stage, and those that bring it 5 % on."""
    stream = io.StringIO()
    lines = Lines(stream)
    for hundredth in range(101):
        lines.show(Moment("writing", hundredth / 100, f"{hundredth} tokens"))
    lines.show(Moment("learning", 0.0))
    printed = stream.getvalue().splitlines()
    assert len(printed) == 22
    assert printed[0] == "==> writing: 0%, 0 tokens"
    assert printed[-2] == "==> writing: 100%, 100 tokens"
    assert printed[-1] == "==> learning: 0%"
    assert all(line.endswith(" left") for line in printed[1:-2])


def test_a_rate_needs_two_reports() -> None:
    """Before that there is only the count."""
    rate = Rate()
    assert rate(1234) == "1,234 tokens"
    assert rate(2000).startswith("2,000 tokens, ")


def test_history_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    """A run goes on from a checkpoint that is older than its last lines, the last one torn."""
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    for number in (1, 2, 3, 4):
        history.add(step(number))
    with path.open("a") as file:
        file.write('{"step": 5, "tok')
    resumed = History(path, 2)
    resumed.add(step(3, (0.5, 0.3)))
    points = read_history(path)
    assert [point.step for point in points] == [1, 2, 3]
    assert points[-1].overlaps == (0.5, 0.3)
    assert points[-1].tokens == 300


def test_a_card_names_command_figures_and_agreement(tmp_path: Path) -> None:
    """What somebody who finds the folder wants to know."""
    path = tmp_path / "README.md"
    judgements = [Judgement(t, (agreement(0.6), agreement(0.5))) for t in (0.0, 1.0)]
    write_card(path, MAKING, judgements, PassTimes(0.5, 2.0))
    card = path.read_text()
    for words in (
        "some/target",
        "sequoia distill --target some/target",
        "layers 0, 29",
        "512 feed-forward units",
        "hidden states",
        "4,096",
        "123,456",
        "654,321",
        "0.250",
        "| 1 | 2 | 0.700 | 0.500 / 0.500 / 0.500 / 0.500 | 0.950 | 1,000 |",
        "that of the target",
    ):
        assert words in card
    assert "Unfinished" not in card
    assert "Not measured" not in card


@pytest.mark.parametrize(
    ("part", "words"), [(0.25, "**Unfinished:** stopped after 25%"), (1.0, "**Not measured:**")]
)
def test_a_card_says_what_is_missing(part: float, words: str, tmp_path: Path) -> None:
    """Of a draft that was stopped, and of one that was not measured."""
    path = tmp_path / "README.md"
    write_card(path, dataclasses.replace(MAKING, part=part))
    assert words in path.read_text()


def test_acceptance_is_kept_by_temperature(tmp_path: Path) -> None:
    """A vector that `sequoia plan` takes, the rejection by k, and the levels."""
    path = tmp_path / "acceptance.json"
    write_acceptance(path, [Judgement(t, (agreement(0.6), agreement(0.5))) for t in (0.0, 0.6)])
    found = json.loads(path.read_text())
    assert list(found) == ["0", "0.6"]
    assert found["0.6"]["vector"][:3] == [0.0, 0.6, 0.0]
    assert found["0.6"]["rejection"]["1"] == pytest.approx(0.4)
    assert [level["vector"][1] for level in found["0"]["levels"]] == [0.6, 0.5]


@pytest.mark.parametrize("rate", [0.6, 1.0])
def test_pictures_are_drawn(rate: float, tmp_path: Path) -> None:
    """Also of a draft that is never rejected, of a single step, and of levels that come later."""
    plot_rejection(tmp_path / "r.png", [Judgement(0.0, (agreement(rate),))])
    history = History(tmp_path / "history.jsonl", 0)
    history.add(step(1))
    plot_learning(tmp_path / "one.png", read_history(tmp_path / "history.jsonl"))
    for number in range(2, 500):
        history.add(step(number, (0.4, 0.2)))
    plot_learning(tmp_path / "many.png", read_history(tmp_path / "history.jsonl"))
    for name in ("r.png", "one.png", "many.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def example(*token_ids: int, answer_start: int) -> Example:
    """A text of the corpus."""
    ids = torch.tensor(token_ids, dtype=torch.int32)
    return Example(ids, torch.zeros(len(ids), 2), answer_start)


def test_held_out_prompts_are_learned_nowhere() -> None:
    """About every 50th prompt is judged by, and no answer to it is learned from."""
    examples = [
        example(1, number % 1000, 7, 7, answer_start=2) for number in range(2000)
    ]  # every prompt twice
    learned, unseen = hold_out(examples)
    assert 5 <= len(unseen) <= 50
    assert len(learned) == len(examples) - 2 * len(unseen)
    assert not {prompt_of(one) for one in learned} & set(unseen)


def test_prompts_stay_held_out_as_the_corpus_grows() -> None:
    """What was judged by is not learned from later, nor the other way round."""
    examples = [example(1, number, 7, 7, answer_start=2) for number in range(1000)]
    few, many = hold_out(examples[:300]), hold_out(examples)
    assert set(few[1]) <= set(many[1])
    assert {prompt_of(one) for one in few[0]} <= {prompt_of(one) for one in many[0]}


def test_few_prompts_with_many_answers_are_learned_from() -> None:
    """Holding out goes by prompts, not by answers: given ones come again and again."""
    examples = [example(1, number % 7, 7, 7, answer_start=2) for number in range(400)]
    learned, unseen = hold_out(examples)
    assert len(unseen) <= 2
    assert len(learned) > 250


def test_the_first_half_of_foreign_text_is_its_prompt() -> None:
    """Nobody asked anything there."""
    assert prompt_of(example(5, 6, 7, 8, answer_start=1)) == (5, 6)
