"""What the figures are made of: shapes, predictions, fits, regret, and the page that shows them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from planner.solver import solve
from sequoia.acceptance.rules import RuleName
from sequoia.acceptance.simulation import Text
from sequoia.bench.environment import Environment
from sequoia.bench.errors import BenchmarkError, OptionError
from sequoia.bench.figures.estimates import PowerLaw, Tokens
from sequoia.bench.figures.held import Stretch
from sequoia.bench.figures.on_chip import Row
from sequoia.bench.figures.page import make_section, picture_link, read_page, rewritten
from sequoia.bench.figures.regret import Candidate, find_best, measure_regret
from sequoia.bench.figures.rejection import Curve, largest_excess, lowest_at
from sequoia.bench.figures.robustness import Cell, largest_gain
from sequoia.bench.figures.shapes import (
    best_branches,
    best_tree,
    binary,
    branches,
    chain,
    expected_tokens,
)
from sequoia.bench.report import Result, Table
from sequoia.tree import Topology

VECTOR = (0.5, 0.2, 0.1)
TREE = Topology((-1, 0, 0))
OTHER_TREE = Topology((-1, 0, 1))


def stretch(milliseconds: float, tokens: int = 10) -> Stretch:
    """Five steps."""
    return Stretch(tokens, 5, milliseconds / 1000)


def test_shapes_are_what_they_are_called() -> None:
    """Chains, binary trees and branches of any size, in level order."""
    assert chain(1).parents == (-1,)
    assert chain(4).parents == (-1, 0, 1, 2)
    assert binary(6).parents == (-1, 0, 0, 1, 1, 2)
    assert branches(2, 3).parents == (-1, 0, 0, 1, 2, 3, 4)
    assert branches(2, 3).level_count == 4
    assert branches(3, 1).parents == (-1, 0, 0, 0)


def test_a_trees_worth_is_the_sum_over_its_paths() -> None:
    """With one vector for every level, with one for each, and for children beyond a vector's end."""
    tree = Topology((-1, 0, 0, 1, 1))
    assert expected_tokens(tree, [VECTOR]) == pytest.approx(1 + 0.5 + 0.2 + 0.25 + 0.1)
    by_level = [VECTOR, (0.4, 0.1)]
    assert expected_tokens(tree, by_level) == pytest.approx(1 + 0.5 + 0.2 + 0.2 + 0.05)
    assert expected_tokens(branches(5, 1), [VECTOR]) == pytest.approx(1.8)


def test_predictions_agree_with_the_solver() -> None:
    """What is promised for the solver's tree is what the solver says."""
    solved = solve(VECTOR, 40, 8)
    found = expected_tokens(Topology(solved.parents), [VECTOR])
    assert found == pytest.approx(solved.expected_tokens)


def test_the_best_branches_are_no_longer_than_pays() -> None:
    """Every other length in the same number of nodes promises less."""
    best = best_branches([VECTOR], 13)
    rivals = [branches(12 // length, length) for length in (1, 2, 3, 4, 6, 12)]
    assert expected_tokens(best, [VECTOR]) == max(expected_tokens(t, [VECTOR]) for t in rivals)
    assert best_branches([VECTOR], 1) == chain(1)


def test_the_best_tree_is_judged_by_all_levels() -> None:
    """A draft that is lost below the first level gets a flat tree, though its first vector wants depth."""

    def solved(vector: object, nodes: int) -> Topology:
        return chain(nodes) if vector == (0.9, 0.05) else branches(nodes - 1, 1)

    assert best_tree([(0.9, 0.05), (0.0, 0.0)], 3, solved) == branches(2, 1)
    assert best_tree([(0.9, 0.05), (0.9, 0.0)], 3, solved) == chain(3)


def test_tokens_per_step_come_with_their_error() -> None:
    """Texts that agree have none; the error of others is that of a ratio of sums."""
    same = Tokens.of([Text((1,) * 20, 10)] * 4)
    assert same == Tokens(2.0, 0.0)
    found = Tokens.of([Text((1,) * 10, 10), Text((1,) * 30, 10)])
    assert found.per_step == 2.0
    assert found.error == pytest.approx(np.sqrt(2 * (100 + 100)) / 20)
    assert Tokens.of([Text((1,) * 3, 2)]).error == 0.0


def test_a_power_law_is_found_again() -> None:
    """Exactly where there is one; and it is said how much of other curves it explains."""
    law = PowerLaw.fitted([0.6 * k**-0.4 for k in range(1, 65)])
    assert (law.first, law.exponent, law.r2) == pytest.approx((0.6, 0.4, 1.0))
    assert law.at(16) == pytest.approx(0.6 * 16**-0.4)
    assert PowerLaw.fitted([0.5, 0.4, 0.39, 0.01]).r2 < 0.9
    assert PowerLaw.fitted([0.6, 0.3, 0.0]).at(2) == pytest.approx(0.3)
    assert PowerLaw.fitted([0.6, 0.0]) == PowerLaw(0.6, 0.0, 1.0)


def test_it_is_told_where_our_rule_is_the_lowest_and_by_how_much_it_is_not() -> None:
    """Ties count as lowest."""
    ours = Curve(0.6, RuleName.SEQUOIA, (0.5, 0.4, 0.3), 7)
    worse = Curve(0.6, RuleName.TOPK, (0.6, 0.4, 0.3), 7)
    mixed = Curve(0.6, RuleName.SPECTR, (0.6, 0.38, 0.31), 7)
    assert lowest_at([worse, ours]) == [1, 2, 3]
    assert largest_excess([worse, ours]) == 0.0
    assert lowest_at([ours, worse, mixed]) == [1, 3]
    assert largest_excess([ours, worse, mixed]) == pytest.approx(0.02)


def test_the_largest_gain_compares_cells_of_the_same_sampling() -> None:
    """Ours at one temperature never stands against another rule's at another."""
    cells = [
        Cell(rule, temperature, 1.0, Tokens(tokens, 0.0))
        for rule, temperature, tokens in (
            (RuleName.SEQUOIA, 0.0, 3.0),
            (RuleName.SEQUOIA, 1.0, 2.0),
            (RuleName.TOPK, 0.0, 2.9),
            (RuleName.TOPK, 1.0, 1.6),
        )
    ]
    assert largest_gain(cells, RuleName.TOPK) == pytest.approx(1.25)


def test_stretches_add_up() -> None:
    """Seconds, steps and tokens of several texts; nothing to time is an error."""
    total = Stretch.total([stretch(10.0), stretch(30.0, tokens=30)])
    assert total.seconds_per_token == pytest.approx(0.001)
    assert total.seconds_per_step == pytest.approx(0.004)
    assert total.tokens_per_step == 4.0
    with pytest.raises(BenchmarkError, match="nothing to time"):
        Stretch.total([Stretch(0, 0, 0.0)])


def test_a_row_of_another_rule_takes_its_own_tokens() -> None:
    """Its time per token is the step's over the tokens counted; speed-up is turn by turn."""
    turns, plain = [stretch(50.0), stretch(100.0)], [stretch(40.0, 5), stretch(80.0, 5)]
    ours = Row.of("sequoia", 0.0, TREE, turns, plain)
    assert ours.tokens_per_step == 2.0
    assert ours.speedup.median == pytest.approx(1.6)
    theirs = Row.of("specinfer", 0.0, TREE, turns, plain, tokens_per_step=4.0)
    assert theirs.speedup.median == pytest.approx(3.2)
    assert theirs.seconds_per_token.median == pytest.approx(0.015 / 4)


def test_no_regret_where_the_choice_is_the_best() -> None:
    """The choice is a candidate itself."""
    best = Candidate(TREE, [[stretch(10.0), stretch(12.0)]] * 3)
    worse = Candidate(OTHER_TREE, [[stretch(11.0), stretch(14.0)]] * 3)
    found = measure_regret(best, [worse, best])
    assert (found.share, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.held_out == pytest.approx(0.0)


def test_regret_is_relative_to_the_best_and_has_an_interval() -> None:
    """Medians over repetitions shrug off one disturbed turn; the interval holds the share."""
    generator = np.random.default_rng(3)

    def turns(base: float) -> list[list[Stretch]]:
        return [[stretch(base + generator.normal(0, 0.2)) for _ in range(6)] for _ in range(5)]

    choice, best = Candidate(TREE, turns(11.0)), Candidate(OTHER_TREE, turns(10.0))
    disturbed = Candidate(OTHER_TREE, [*best.turns[:4], [stretch(900.0)] * 6])
    found = measure_regret(choice, [choice, disturbed])
    assert found.low < found.share < found.high
    assert found.share == pytest.approx(0.1, abs=0.02)


def test_luck_does_not_pick_the_tree_that_regret_is_held_against() -> None:
    """Of equally fast trees the luckiest looks faster; with its own repetition left out it does not."""
    generator = np.random.default_rng(5)
    candidates = [
        Candidate(TREE, [[stretch(generator.uniform(9, 11))] for _ in range(4)]) for _ in range(30)
    ]
    found = measure_regret(candidates[0], candidates)
    assert found.held_out is not None
    assert found.share > 0.02
    assert abs(found.held_out) < found.share


def test_a_tree_that_was_lucky_once_is_not_the_best() -> None:
    """Only trees that were timed most often can be."""
    often = Candidate(TREE, [[stretch(10.0)]] * 3)
    once = Candidate(OTHER_TREE, [[stretch(9.0)]])
    assert find_best([once, often]) is often


def result(tmp_path: Path) -> Result:
    """A small one."""

    def draw(figure: Figure) -> None:
        figure.add_subplot().plot([1, 2])

    names = ("target", "draft", "dtype", "threads", "prompt_count", "prompts", "max_new_tokens")
    settings = dict(zip(names, itertools.count(), strict=False))
    table = Table("Times", ("what", "ms"), [("a", "1.0")])
    environment = Environment.gather("cpu")
    return Result("figures", "figure-2-x", environment, settings, {}, [table], draw, ["A note."])


def test_the_page_keeps_what_is_not_asked_for(tmp_path: Path) -> None:
    """One figure's part is replaced, however often; words around it and other figures stay."""
    page = tmp_path / "docs" / "figures.md"
    page.parent.mkdir()
    parts = "".join(f"<!-- figure {n} -->\nold {n}\n<!-- end of figure {n} -->\n" for n in "12")
    page.write_text(f"# Mine\n{parts}the end\n")
    found = result(tmp_path)
    link = picture_link(found, tmp_path / "results", page)
    assert link == "../results/figure-2-x.png"
    section = make_section("2", found, link)
    once = rewritten(read_page(page, ["2"]), {"2": section})
    assert rewritten(once, {"2": section}) == once
    assert once.startswith("# Mine\n<!-- figure 1 -->\nold 1\n")
    assert once.endswith("<!-- end of figure 2 -->\nthe end\n")
    assert "old 2" not in once
    for words in ("## 2. Rejection rate", f"]({link})", "### Times", "| a | 1.0 |", "A note."):
        assert words in once


@pytest.mark.parametrize(
    "text", ["", "<!-- figure 2 -->", "<!-- end of figure 2 --><!-- figure 2 -->"]
)
def test_a_page_without_markers_is_refused(text: str, tmp_path: Path) -> None:
    """Before anything is measured, with the page and the markers."""
    page = tmp_path / "figures.md"
    page.write_text(text)
    with pytest.raises(OptionError, match=r"--page: .*figures.md: <!-- figure 2 -->"):
        read_page(page, ["2"])
    with pytest.raises(OptionError, match=r"--page: .*cannot be read"):
        read_page(tmp_path / "absent.md", ["2"])
