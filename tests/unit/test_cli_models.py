from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from sequoia.cli import app
from sequoia.runtime.catalogue import BUILT_INS

DRAFT = "smollm2-135m-instruct-draft"


def test_several_models_are_pulled_in_one_go(tmp_path: Path) -> None:
    """Their folders are printed in the order of the names."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = CliRunner().invoke(app, ["models", "pull", str(tmp_path), DRAFT])
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(tmp_path), str(BUILT_INS[DRAFT].folder)]


def test_the_model_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    """The command ends with status 1 at the first such name."""
    result = CliRunner().invoke(app, ["models", "pull", DRAFT, str(tmp_path / "absent")])
    assert result.exit_code == 1
    assert "absent" in result.stderr


def test_no_name_is_an_error() -> None:
    """Nothing to pull is no success."""
    assert CliRunner().invoke(app, ["models", "pull"]).exit_code == 2
