from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sequoia import cli, config
from sequoia.certificates import write_certificates
from sequoia.launcher import LaunchError, LaunchOptions
from sequoia.rpc import role as role_module

ROOT = Path(__file__).parents[2]
ROLES = ("draft_service", "target_service", "coordinator", "planner")
WORKERS = ("draft_service", "target_service")
FLAGS = {
    "draft_service": [
        *("--draft", "--target", "--kv-cache-limit-bytes", "--batch-limit"),
        *("--prefix-cache", "--no-prefix-cache", "SEQUOIA_PREFIX_CACHE"),
    ],
    "target_service": [
        *("--target", "--device", "--session-limit", "--node-limit"),
        *("--prefix-cache", "--no-prefix-cache", "SEQUOIA_PREFIX_CACHE"),
        *("--placement", "--device-memory", "--host-memory", "SEQUOIA_DEVICE_MEMORY"),
        "--tensor-parallel",
    ],
    "coordinator": [
        *("--target-address", "--draft-address", "--redis", "--max-new-tokens-limit"),
        *("--queue-limit", "--queue-seconds", "--clients", "--client-authority"),
    ],
    "planner": ["--target-address", "--draft-address", "--redis", "--max-nodes"],
}
ALL_FLAGS = (
    *("--host", "--port", "--log-level", "SEQUOIA_PORT"),
    *("--tls-certificate", "--tls-key", "--tls-authority", "SEQUOIA_TLS_KEY", "--reflection"),
    *("--metrics-port", "SEQUOIA_METRICS_PORT", "--otlp-endpoint", "--trace-steps"),
)


def run(role: str, *arguments: str, **environment: str) -> Result:
    """Start a role as `python -m` would, as far as its options reach."""
    app = importlib.import_module(f"{role}.__main__").app
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, arguments, env=wide | environment)


def assert_refused(result: Result, *names: str) -> None:
    """The process ended with status 2, and said why in words that name the culprit."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for name in names:
        assert name in result.output


@pytest.mark.parametrize("role", ROLES)
def test_every_role_explains_itself(role: str) -> None:
    """`--help` lists the flags with their environment variables."""
    result = run(role, "--help")
    assert result.exit_code == 0, result.output
    for flag in (*FLAGS[role], *ALL_FLAGS):
        assert flag in result.output


@pytest.mark.parametrize("role", ROLES)
def test_help_needs_neither_torch_nor_transformers(role: str) -> None:
    """`python -m ROLE --help` answers at once."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{role!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({role!r}, run_name='__main__')\n"
        "finally:\n"
        "    print(*{'torch', 'transformers'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stderr.split() == []


@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_flag_is_named(role: str) -> None:
    """Typing errors do not start a role with its defaults."""
    assert_refused(run(role, "--prot", "1"), "--prot")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "65536"),
        ("--port", "x"),
        ("--log-level", "loud"),
        ("--metrics-port", "65536"),
        ("--metrics-port", "-1"),
        ("--otlp-endpoint", "localhost:4317"),
        ("--otlp-endpoint", "http://user:secret@localhost:4317"),
        ("--trace-steps", "-1"),
    ],
)
def test_a_wrong_flag_is_named(role: str, flag: str, value: str) -> None:
    """Not the usage alone."""
    assert_refused(run(role, flag, value), flag)


@pytest.mark.parametrize("role", WORKERS)
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--dtype", "float64"),
        ("--device", "tpu"),
        ("--threads", "-1"),
        ("--session-limit", "0"),
        ("--kv-cache-limit-bytes", "1024"),
        ("--batch-limit", "1025"),
        ("--node-limit", "4097"),
    ],
)
def test_a_wrong_flag_of_a_worker_is_named(role: str, flag: str, value: str) -> None:
    """Every limit has a range of its own."""
    assert_refused(run(role, flag, value), flag)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--placement", "disk"),
        ("--device-memory", "4GB"),
        ("--device-memory", "0"),
        ("--host-memory", "-1"),
    ],
)
def test_a_wrong_placement_is_named(flag: str, value: str) -> None:
    """Sizes have binary units."""
    assert_refused(run("target_service", flag, value), flag)


@pytest.mark.parametrize("flag", ["--max-nodes", "--max-levels", "--max-batch-size"])
def test_a_wrong_limit_of_the_planner_is_named(flag: str) -> None:
    """None of them may be nothing."""
    assert_refused(run("planner", flag, "0"), flag)


def test_a_system_hands_the_placement_to_its_target() -> None:
    """What is not chosen is left to the target's own default."""
    assert LaunchOptions("t").placing() == []
    chosen = LaunchOptions("t", placement=config.Placement.OFFLOAD, device_memory=2**30)
    assert chosen.placing() == ["--placement", "offload", "--device-memory", "1073741824"]


def test_a_system_hands_threads_and_the_prefix_cache_to_its_workers() -> None:
    """Whatever was chosen, since their variables count otherwise, as where nothing was."""
    assert LaunchOptions("t").working() == []
    assert LaunchOptions("t", prefix_cache=False).working() == ["--no-prefix-cache"]
    chosen = LaunchOptions("t", threads=0, prefix_cache=True)
    assert chosen.working() == ["--threads", "0", "--prefix-cache"]


def test_flags_of_a_system_come_before_its_workers_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sequoia up` says both, whether they were given or not; it has read the variables itself."""
    up = importlib.import_module("sequoia.cli.up")
    chosen: list[LaunchOptions] = []

    def start(options: LaunchOptions) -> None:
        chosen.append(options)
        raise LaunchError("that is enough")

    monkeypatch.setattr(up, "LocalSystem", start)
    monkeypatch.setattr(up, "fetch_models", lambda _: None)
    environment = {"SEQUOIA_PREFIX_CACHE": "false", "SEQUOIA_THREADS": "3"}
    for arguments in (["--port", "0"], ["--port", "0", "--prefix-cache", "--threads", "0"]):
        result = CliRunner().invoke(cli.app, ["up", *arguments], env=environment)
        assert "that is enough" in result.output
    assert [options.working() for options in chosen] == [
        ["--threads", "3", "--no-prefix-cache"],
        ["--threads", "0", "--prefix-cache"],
    ]


def test_a_system_hands_its_limits_to_the_planner() -> None:
    """A system for one request need not be measured at other loads."""
    assert LaunchOptions("t").planning() == []
    assert LaunchOptions("t", max_batch_size=1).planning() == ["--max-batch-size", "1"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--target-address", "localhost"),
        ("--target-address", "localhost:0"),
        ("--target-address", "localhost:65536"),
        ("--target-address", "local host:1"),
        ("--target-address", "localhost:1\n"),
        ("--draft-address", "::1:50052"),
        ("--draft-address", "[:::::]:1"),
        ("--target-address", "a..b:1"),
        ("--target-address", f"{'a' * 64}:1"),
        ("--target-address", "a:1,"),
        ("--target-address", "a:1,,b:2"),
        ("--target-address", "a:1,A:01"),
        ("--draft-address", ""),
        ("--redis", "localhost:6379"),
        ("--request-limit", "0"),
        ("--max-new-tokens-limit", "0"),
        ("--call-timeout", "0"),
        ("--call-timeout", "nan"),
        ("--target-patience", "-1"),
        ("--target-patience", "nan"),
    ],
)
def test_a_wrong_flag_of_the_coordinator_is_named(flag: str, value: str) -> None:
    """Addresses, URLs and times are checked before anything is started."""
    assert_refused(run("coordinator", flag, value), flag)


@pytest.mark.parametrize(
    ("role", "variable", "value"),
    [
        *((role, "SEQUOIA_PORT", "many") for role in ROLES),
        *((role, "SEQUOIA_LOG_LEVEL", "loud") for role in ROLES),
        *((role, "SEQUOIA_METRICS_PORT", "many") for role in ROLES),
        *((role, "OTEL_EXPORTER_OTLP_ENDPOINT", "nowhere") for role in ROLES),
        *((role, "SEQUOIA_DTYPE", "int8") for role in WORKERS),
        *((role, "SEQUOIA_KV_CACHE_LIMIT_BYTES", "1GB") for role in WORKERS),
        *((role, "SEQUOIA_PREFIX_CACHE", "maybe") for role in WORKERS),
        ("coordinator", "SEQUOIA_TARGET_ADDRESS", "nowhere"),
        ("coordinator", "SEQUOIA_REDIS", "http://x"),
        ("coordinator", "SEQUOIA_TARGET_PATIENCE", "long"),
    ],
)
def test_a_wrong_variable_is_named(role: str, variable: str, value: str) -> None:
    """The message names the variable, not only the flag that it stands for."""
    assert_refused(run(role, **{variable: value}), variable)


@pytest.mark.parametrize("role", ROLES)
def test_traces_without_opentelemetry_say_what_to_install(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than run without traces that were asked for."""
    monkeypatch.setitem(sys.modules, "sequoia.tracing.provider", None)
    arguments = ["--otlp-endpoint", "http://localhost:4317"]
    if role == "planner":
        arguments += ["--draft-address", "localhost:1", "--redis", "redis://localhost"]
    assert_refused(run(role, *arguments), "--otlp-endpoint", "pip install 'sequoia[tracing]'")


@pytest.mark.parametrize("role", ["coordinator", "planner"])
def test_a_password_that_cannot_be_read_is_named(role: str, tmp_path: Path) -> None:
    """With the option and the file, before anything is started; what is in a file is not shown."""
    options = ["--redis", "redis://h:1", "--draft-address", "h:2"]
    absent = run(role, *options, "--redis-password-file", str(tmp_path / "absent"))
    assert_refused(absent, "--redis-password-file", "absent")
    (file := tmp_path / "password").write_text("s3cret")
    options[1] = "redis://:other@h:1"
    twice = run(role, *options, SEQUOIA_REDIS_PASSWORD_FILE=str(file))
    assert_refused(twice, "--redis-password-file", "a password as well")
    assert "s3cret" not in twice.output
    assert "other" not in twice.output


@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_variable_is_named(role: str) -> None:
    """A variable that nobody reads is most likely a typing error."""
    result = run(role, SEQUOIA_DRAFT_ADRESS="localhost:1", SEQUOIA_CACHE="/tmp")  # noqa: S108
    assert_refused(result, "unknown environment variable SEQUOIA_DRAFT_ADRESS")
    assert "SEQUOIA_CACHE" not in result.output


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("option", ["--tls-certificate", "--tls-key", "--tls-authority"])
def test_a_role_with_half_of_its_tls_files_does_not_start(
    tmp_path: Path, role: str, option: str
) -> None:
    """Rather than without TLS."""
    write_certificates(tmp_path, [], 30)
    files = {
        "--tls-certificate": tmp_path / "draft.crt",
        "--tls-key": tmp_path / "draft.key",
        "--tls-authority": tmp_path / "authority.crt",
    }
    del files[option]
    arguments = [word for name, path in files.items() for word in (name, str(path))]
    if role == "planner":
        arguments += ["--draft-address", "localhost:1", "--redis", "redis://localhost"]
    assert_refused(run(role, *arguments), f"error: {option}: is missing beside")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--clients", "/no/such"], "error: --clients: /no/such: No such file"),
        (["--client-authority", "/no/such"], "error: --client-authority: needs --tls-certificate"),
        (["--redis-password-file", "/no/such"], "error: --redis-password-file needs --redis"),
        (
            ["--redis", "redis://localhost", "--redis-password-file", "/no/such"],
            "error: --redis-password-file: /no/such: No such file",
        ),
    ],
)
def test_a_wrong_file_of_the_coordinator_is_named(arguments: list[str], problem: str) -> None:
    """In one line, before anything is started."""
    assert_refused(run("coordinator", *arguments), problem)


def test_the_password_of_a_wrong_url_is_not_shown() -> None:
    """By no role, from no flag and no variable."""
    for role in ("coordinator", "planner"):
        for result in (
            run(role, "--redis", ":hunter2@localhost"),
            run(role, SEQUOIA_REDIS="redis://:hunter2/@localhost"),
        ):
            assert_refused(result, "the URL")
            assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("[::1]", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 to be told apart
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_only_loopback_is_this_machines_alone(host: str, is_loopback: bool) -> None:
    """A name could be anyone's."""
    assert role_module.is_loopback(host) == is_loopback


def test_a_flag_comes_before_its_variable() -> None:
    """With the flag given, a wrong variable behind it is not read."""
    result = run("coordinator", "--port", "1", "--redis", "localhost", SEQUOIA_PORT="many")
    assert_refused(result, "--redis")
    assert "SEQUOIA_PORT" not in result.output


@pytest.mark.parametrize(
    "variable",
    ["SEQUOIA_HOST", "SEQUOIA_REDIS", "SEQUOIA_CALL_TIMEOUT", "SEQUOIA_CACHE", "SEQUOIA_TARGET"],
)
def test_variables_that_some_role_reads_are_known(variable: str) -> None:
    """One environment can serve all roles: what another role reads is no typing error."""
    config.check_environment({variable: "x", "PATH": "/bin"})
    assert variable in config.known_variables()


def test_all_unknown_variables_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line on stderr."""
    with pytest.raises(typer.Exit) as caught:
        config.check_environment({"SEQUOIA_B": "", "SEQUOIA_A": "", "OTHER": ""})
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "error: unknown environment variable SEQUOIA_A, SEQUOIA_B\n"


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.1:65535", "[::1]:50052", "a-b.c:80"])
def test_addresses_are_taken_as_they_are(address: str) -> None:
    """Names, IPv4, and IPv6 in brackets."""
    assert config.read_address(address) == address
