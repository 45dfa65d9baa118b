"""A result is written as JSON, Markdown and a picture, with the machine it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sequoia.bench.environment import Environment, commit
from sequoia.bench.errors import OutputError
from sequoia.bench.report import Result, Table, require_writable


def result(environment: Environment) -> Result:
    """A small one."""

    def draw(figure: Figure) -> None:
        figure.add_subplot().plot([1, 2])

    table = Table("Times", ("what", "ms"), [("a|b", "1.0")])
    return Result(
        "peers", "peers-x", environment, {"dtype": "x"}, {"rows": [1]}, [table], draw, ["A note."]
    )


@pytest.fixture(scope="module")
def environment() -> Environment:
    """This machine."""
    return Environment.gather("cpu")


def test_three_files_are_written(environment: Environment, tmp_path: Path) -> None:
    """All under one stem; JSON holds settings, environment and rows, Markdown links the picture."""
    paths = result(environment).write(tmp_path)

    assert [path.name for path in paths] == ["peers-x.json", "peers-x.md", "peers-x.png"]
    found = json.loads(paths[0].read_text())
    assert found["benchmark"] == "peers"
    assert found["settings"] == {"dtype": "x"}
    assert found["rows"] == [1]
    assert {"cpu", "versions", "commit", "load_average", "load_average_after"} <= set(
        found["environment"]
    )
    assert "torch" in found["environment"]["versions"]
    text = paths[1].read_text()
    assert "| a\\|b | 1.0 |" in text
    assert "![peers-x](peers-x.png)" in text
    assert "A note." in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_a_file_in_the_way_of_the_folder_is_named(environment: Environment, tmp_path: Path) -> None:
    """Before anything is measured, and again if the folder is lost meanwhile."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match=str(blocked)):
        require_writable(blocked)
    with pytest.raises(OutputError, match="gone"):
        result(environment).write(tmp_path / "gone")


def test_outside_of_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    """An installed package has none."""
    assert commit(tmp_path) == "unknown"
