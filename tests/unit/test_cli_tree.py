"""`sequoia tree`: a picture of one tree, or of one of a plan's, and one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sequoia.cli.tree import tree
from sequoia.cli.tree_picture import columns
from sequoia.plans import Plan, PlannedTree
from sequoia.tree import Topology

PARENTS = [-1, 0, 0, 1, 1, 2]

app = typer.Typer()
app.command()(tree)


def run(*arguments: str, stdin: str = "") -> Result:
    """The outcome of `sequoia tree ARGUMENTS`."""
    env = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, arguments, input=stdin, env=env)


def planned(request_class: str, load: int, *parents: int) -> PlannedTree:
    """A tree of a plan."""
    return PlannedTree(request_class, load, parents, 1.5, 0.1, 0.2)


@pytest.mark.parametrize(
    ("suffix", "beginning"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_one_tree_becomes_a_picture(suffix: str, beginning: bytes, tmp_path: Path) -> None:
    """In the format of the suffix, the same bytes every time, with its size in words."""
    out = tmp_path / f"tree.{suffix}"
    found = []
    for _ in range(2):
        stdin = json.dumps({"parents": PARENTS, "expected_tokens": 2.0})
        outcome = run("--plan", "-", "--out", str(out), stdin=stdin)
        assert outcome.exit_code == 0, outcome.output
        assert outcome.stdout == f"{out}, 6 nodes, 3 levels, 2.00 tokens per step expected\n"
        found.append(out.read_bytes())
    assert found[0].startswith(beginning)
    assert found[0] == found[1]


def test_the_picture_shows_every_node_and_edge(tmp_path: Path) -> None:
    """A mark for each node, a line to each from its parent."""
    out = tmp_path / "tree.svg"
    run("--plan", "-", "--out", str(out), stdin=json.dumps({"parents": PARENTS}))
    text = out.read_text()
    lines = text.partition('id="LineCollection_1"')[2].partition("</g>")[0]
    marks = text.partition('id="PathCollection_1"')[2].partition('id="matplotlib')[0]
    assert lines.count("<path") == len(PARENTS) - 1
    assert marks.count("<use") == len(PARENTS)


def test_nodes_stand_side_by_side_in_their_order() -> None:
    """Leaves a column each, parents in the middle of their children, however deep the tree."""
    places = columns(Topology((-1, 0, 0, 0, 1, 1, 3)))
    assert places == [1.75, 0.5, 2.0, 3.0, 0.0, 1.0, 3.0]
    assert columns(Topology(tuple(range(-1, 3000)))) == [0.0] * 3001


def test_a_plan_names_its_trees_by_class_and_load(tmp_path: Path) -> None:
    """As the coordinator would choose."""
    plan = Plan(3, 0.0, (planned("greedy", 1, -1, 0, 1), planned("greedy", 4, -1, 0)))
    path, out = tmp_path / "plan.json", str(tmp_path / "tree.svg")
    path.write_text(plan.to_json())
    assert "3 nodes, 3 levels" in run("--plan", str(path), "--out", out).stdout
    assert "2 nodes, 2 levels" in run("--plan", str(path), "--out", out, "--load", "2").stdout
    refused = run("--plan", str(path), "--out", out, "--request-class", "sharp")
    assert refused.exit_code == 2
    assert "no tree for the class sharp" in refused.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not JSON"]),
        ("[" * 100_000, ["is not JSON"]),
        ("[]", ["parents", "trees"]),
        ('{"vector": []}', ["parents", "trees"]),
        ('{"parents": 3}', ["parents must be a list"]),
        ('{"parents": [-1, true]}', ["parents must be a list of whole numbers"]),
        ('{"parents": []}', ["parents: a tree needs"]),
        ('{"parents": [-1, 1]}', ["parents: node 1"]),
        ('{"parents": [-1], "expected_tokens": "x"}', ["expected_tokens is 'x'"]),
        ('{"parents": [-1], "expected_tokens": 1e400}', ["expected_tokens is 'inf'", "finite"]),
        ('{"parents": [-1], "expected_tokens": 1' + "0" * 400 + "}", ["must be a finite number"]),
        ('{"parents": [-1], "expected_tokens": -1}', ["expected_tokens is '-1'"]),
        ('{"trees": []}', ["created_at", "missing"]),
    ],
)
def test_a_bad_plan_is_refused_by_name(content: str, words: list[str], tmp_path: Path) -> None:
    """With the file and what is wrong in it; no picture is left behind."""
    path, out = tmp_path / "plan.json", tmp_path / "tree.svg"
    path.write_text(content)
    outcome = run("--plan", str(path), "--out", str(out))
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stdout == ""
    for word in ["--plan", str(path), *words]:
        assert word in outcome.stderr
    assert not out.exists()


def test_bad_options_are_refused_by_name(tmp_path: Path) -> None:
    """A missing file, a format that is none, a folder that is not there, an unknown class."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"parents": PARENTS}))
    given = ["--plan", str(path), "--out"]
    absent = run("--plan", str(tmp_path / "absent"), "--out", str(tmp_path / "tree.svg"))
    assert absent.exit_code == 2
    assert "No such file" in absent.stderr
    for out, words in (("tree.gif", ".svg, .png, .pdf"), ("no/tree.svg", "cannot be written")):
        outcome = run(*given, str(tmp_path / out))
        assert outcome.exit_code == 2
        assert words in outcome.stderr
    unknown = run(*given, str(tmp_path / "tree.svg"), "--request-class", "mild")
    assert unknown.exit_code == 2
    assert "greedy, sharp, flat" in unknown.stderr
