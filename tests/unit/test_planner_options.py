"""The options of `python -m planner`."""

import pytest
from typer.testing import CliRunner

from planner.__main__ import app

GOOD = ["--draft-address", "127.0.0.1:1", "--redis", "redis://127.0.0.1:1/0"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ("--draft-address", "SEQUOIA_DRAFT_ADDRESS")),
        (GOOD[:2], ("--redis", "SEQUOIA_REDIS")),
        ([*GOOD, "--max-nodes", "0"], ("--max-nodes", "SEQUOIA_MAX_NODES")),
        ([*GOOD, "--replan-interval", "0"], ("--replan-interval",)),
        (["--draft-address", "nowhere", *GOOD[2:]], ("--draft-address", "nowhere")),
        ([*GOOD[:2], "--redis", "127.0.0.1:6379"], ("--redis", "redis://")),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing or wrong option ends the process with status 2 and its name."""
    for variable in ("SEQUOIA_DRAFT_ADDRESS", "SEQUOIA_REDIS"):
        monkeypatch.delenv(variable, raising=False)
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert all(word in result.output for word in named)
