"""`sequoia plan`: golden output, both conventions, and one clear line for every bad input."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sequoia.cli.plan import plan
from sequoia.tree import Topology

VECTOR_FILE = Path(__file__).parents[1] / "data" / "acceptance_vector.json"
LATENCY = {
    "draft_level_ms": 0.3,
    "target_ms": {"1": 10, "2": 10, "4": 10, "8": 12, "16": 14, "32": 18},
}
LIMITS = ("--max-nodes", "32", "--max-levels", "10")

app = typer.Typer()
app.command()(plan)


def run(acceptance: Path, *arguments: str) -> Result:
    """The outcome of `sequoia plan --acceptance ACCEPTANCE ARGUMENTS`."""
    return CliRunner().invoke(app, ["--acceptance", str(acceptance), *arguments])


@pytest.fixture
def latency_file(tmp_path: Path) -> Path:
    """The times of the golden plan."""
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(LATENCY))
    return path


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that has all the words."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


def test_json_without_latency_describes_the_best_tree() -> None:
    """The golden 64-node tree comes out as one JSON object with these four keys."""
    result = run(VECTOR_FILE, "--max-nodes", "64", "--max-levels", "10", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert set(report) == {"nodes", "levels", "expected_tokens", "parents"}
    assert (report["nodes"], report["levels"]) == (64, 10)
    assert report["expected_tokens"] == pytest.approx(3.8523, abs=5.1e-5)
    assert Topology(tuple(report["parents"])).node_count == 64


def test_json_with_latency_reproduces_the_golden_plan(latency_file: Path) -> None:
    """4 nodes on 4 levels, 4.8878 ms per token, 2.046 times as fast; one draft pass less beside."""
    report = json.loads(run(VECTOR_FILE, "--latency", str(latency_file), *LIMITS, "--json").stdout)
    assert (report["nodes"], report["levels"]) == (4, 4)
    assert report["parents"] == [-1, 0, 1, 2]
    assert report["expected_tokens"] == pytest.approx(2.2914, abs=5.1e-5)
    assert report["ms_per_token"] == pytest.approx(4.8878, abs=5.1e-5)
    assert report["speedup"] == pytest.approx(2.046, abs=5.1e-4)
    assert report["ms_per_token_by_draft_calls"] == pytest.approx(10.9 / 2.29143, abs=1e-4)
    assert report["speedup_by_draft_calls"] == pytest.approx(2.1022, abs=5.1e-5)


def test_text_output_has_one_line_per_value(latency_file: Path) -> None:
    """Without --json the same values are lines of a name and a value."""
    lines = run(VECTOR_FILE, "--latency", str(latency_file), *LIMITS).stdout.splitlines()
    assert lines == [
        "nodes: 4",
        "levels: 4",
        "expected_tokens: 2.291432",
        "parents: [-1, 0, 1, 2]",
        "ms_per_token: 4.887773",
        "speedup: 2.045921",
        "ms_per_token_by_draft_calls: 4.756851",
        "speedup_by_draft_calls: 2.102231",
    ]


def test_a_slow_draft_gives_no_speculation(tmp_path: Path) -> None:
    """When drafting costs more than it saves the plan is the root, charged no draft pass."""
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(LATENCY | {"draft_level_ms": 50}))
    report = json.loads(run(VECTOR_FILE, "--latency", str(path), *LIMITS, "--json").stdout)
    assert (report["nodes"], report["levels"], report["parents"]) == (1, 1, [-1])
    assert report["ms_per_token"] == report["ms_per_token_by_draft_calls"] == 10.0
    assert report["speedup"] == report["speedup_by_draft_calls"] == 1.0


@pytest.mark.parametrize("flag", ["--max-nodes", "--max-levels"])
@pytest.mark.parametrize("value", ["0", "-3", "4097"])
def test_limits_out_of_range_name_the_flag(flag: str, value: str) -> None:
    """A bad limit is refused by the name of its flag, with the range."""
    assert_refused(run(VECTOR_FILE, *LIMITS, flag, value), f"{flag} is {value}", "1..4096")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is refused, whichever file it is."""
    absent = tmp_path / "absent.json"
    assert_refused(run(absent, *LIMITS), str(absent), "No such file")
    assert_refused(run(VECTOR_FILE, "--latency", str(absent), *LIMITS), str(absent), "No such file")
    assert_refused(run(tmp_path, *LIMITS), str(tmp_path), "Is a directory")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is not JSON"]),
        (b"{", ["is not JSON"]),
        (b"\xff\xfe", ["is not JSON"]),
        (b"[" * 100_000, ["is not JSON"]),
        (b"[0, 0.5, 0.5]", ["must hold a JSON object, not list"]),
        (b"{}", ["vector is missing", "none"]),
        (b'{"vektor": [0, 0.5, 0.5]}', ["vector is missing", "vektor"]),
        (b'{"vector": 1}', ["vector must be a list"]),
        (b'{"vector": []}', ["at least 3 numbers"]),
        (b'{"vector": [0, 1]}', ["at least 3 numbers"]),
        (b'{"vector": [0.1, 0.5, 0.4]}', ["vector[0] is 0.1", "placeholder 0"]),
        (b'{"vector": [0, NaN, 0.4]}', ["vector[1] is nan", "finite number >= 0"]),
        (b'{"vector": [0, 0.5, Infinity]}', ["vector[2] is inf"]),
        (b'{"vector": [0, 0.5, -0.1, 0.1]}', ["vector[2] is -0.1"]),
        (b'{"vector": [0, "0.5", 0.5]}', ["vector[1] is 0.5", "must be a finite number"]),
        (b'{"vector": [0, true, 0]}', ["vector[1] is True"]),
        (b'{"vector": [0, 1' + b"0" * 400 + b", 0]}", ["vector[1]"]),
        (b'{"vector": [0, 0.8, 0.4]}', ["vector sums to 1.2", "must not exceed 1"]),
        (b'{"vector": [0' + b", 0" * 1026 + b"]}", ["1025 children", "1..1024"]),
    ],
)
def test_a_bad_vector_file_is_named(content: bytes, words: list[str], tmp_path: Path) -> None:
    """What is wrong with the acceptance file is said with the file, the field and the limit."""
    path = tmp_path / "vector.json"
    path.write_bytes(content)
    assert_refused(run(path, *LIMITS), str(path), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", ["must hold a JSON object"]),
        ('{"target_ms": {"1": 10}}', ["draft_level_ms is missing"]),
        ('{"draft_level_ms": 0.3}', ["target_ms is missing", "draft_level_ms"]),
        ('{"draft_level_ms": -1, "target_ms": {"1": 10}}', ["draft_level_ms is -1"]),
        ('{"draft_level_ms": null, "target_ms": {"1": 10}}', ["draft_level_ms is None"]),
        ('{"draft_level_ms": 0.3, "target_ms": {}}', ["target_ms", 'key "1"']),
        ('{"draft_level_ms": 0.3, "target_ms": [10]}', ["target_ms must be an object"]),
        ('{"draft_level_ms": 0.3, "target_ms": {"2": 10}}', ["target_ms", 'key "1"']),
        ('{"draft_level_ms": 0.3, "target_ms": {"1": 9, "x": 1}}', ["key 'x'", "whole number"]),
        ('{"draft_level_ms": 0.3, "target_ms": {"1": 9, "01": 1}}', ["key '01'"]),
        ('{"draft_level_ms": 0.3, "target_ms": {"1": 9, "5000": 1}}', ["'5000'", "4096"]),
        ('{"draft_level_ms": 0.3, "target_ms": {"1": NaN}}', ['target_ms["1"] is nan']),
        ('{"draft_level_ms": 0.3, "target_ms": {"1": 0}}', ['target_ms["1"] is 0', "above 0"]),
    ],
)
def test_a_bad_latency_file_is_named(content: str, words: list[str], tmp_path: Path) -> None:
    """What is wrong with the latency file is said with the file, the field and the limit."""
    path = tmp_path / "latency.json"
    path.write_text(content)
    assert_refused(run(VECTOR_FILE, "--latency", str(path), *LIMITS), str(path), *words)


def test_other_keys_are_comments(tmp_path: Path) -> None:
    """Keys beside the ones that matter do not disturb."""
    path = tmp_path / "vector.json"
    path.write_text('{"source": "by hand", "vector": [0, 0.5, 0.5]}')
    assert run(path, *LIMITS).exit_code == 0
