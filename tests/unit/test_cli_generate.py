"""`sequoia generate`: requests that nobody could answer are refused before anything is started."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from sequoia.cli.generate import generate

app = typer.Typer()
app.command()(generate)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1", "hi"], ["--seed", "greater than or equal to 0"]),
        (["--seed", str(2**64), "hi"], ["--seed", "18446744073709551615"]),
        (["--max-new-tokens", "0", "hi"], ["--max-new-tokens", "greater than or equal to 1"]),
        (["--max-new-tokens", str(2**32), "hi"], ["--max-new-tokens", "4294967295"]),
        (["--max-new-tokens", "4097", "hi"], ["max_new_tokens: 4097 is outside [1, 4096]"]),
        (["--top-k", str(2**31), "hi"], ["--top-k", "2147483647"]),
        (["--stop", "", "hi"], ["stop_strings[0]: 0 bytes are outside [1, 256]"]),
        (["--stop", "\udcff", "hi"], ["stop_strings[0]: 'utf-8' codec"]),
        ([""], ["chat.messages: the conversation is empty"]),
        (["--raw", ""], ["text: the prompt is empty"]),
    ],
    ids=str,
)
def test_a_request_out_of_its_limits_starts_nothing(arguments: list[str], words: list[str]) -> None:
    """The option or the field is named with its limit; the target, which is none, was never looked for."""
    env = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    outcome = CliRunner().invoke(app, ["--target", "/no/such/model", *arguments], env=env)
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stdout == ""
    for word in words:
        assert word in outcome.stderr
    assert "no/such/model" not in outcome.stderr
