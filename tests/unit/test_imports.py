import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = ("draft_service", "target_service", "coordinator", "planner")
PACKAGES = ("sequoia", *ROLES)
PURE_MODULES = (
    "sequoia.tree",
    "sequoia.sampling",
    "sequoia.verification",
    "planner.solver",
)
HEAVY_PACKAGES = ("grpc", "redis", "transformers")


def _source_files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def _imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, relative imports made absolute.

    `from a import b` yields both `a` and `a.b`, because b may be a module.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", PURE_MODULES)
def test_the_mathematics_does_no_input_or_output(module: str) -> None:
    """Algorithm modules import neither gRPC nor Redis nor transformers, even indirectly."""
    program = (
        f"import sys, {module}\n"
        f"print(*[name for name in {HEAVY_PACKAGES!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_protobuf_messages_stop_at_the_codec() -> None:
    """Outside sequoia/rpc no module imports the generated code."""
    allowed = (ROOT / "sequoia" / "rpc", ROOT / "sequoia" / "v1")
    offenders = {
        str(path.relative_to(ROOT))
        for path in _source_files(*PACKAGES)
        if not any(path.is_relative_to(folder) for folder in allowed)
        and any(_is_within(module, "sequoia.v1") for module in _imported_modules(path))
    }
    assert offenders == set()


@pytest.mark.parametrize("role", ROLES)
def test_no_role_imports_another_role(role: str) -> None:
    """What two roles need lives in sequoia; each role can be deployed without the others."""
    others = [other for other in ROLES if other != role]
    offenders = {
        (str(path.relative_to(ROOT)), module)
        for path in _source_files(role)
        for module in _imported_modules(path)
        if any(_is_within(module, other) for other in others)
    }
    assert offenders == set()


def test_shared_code_imports_no_role() -> None:
    """Dependencies point from the roles to sequoia; only the command line knows both."""
    offenders = {
        (str(path.relative_to(ROOT)), module)
        for path in _source_files("sequoia")
        if not path.is_relative_to(ROOT / "sequoia" / "cli")
        for module in _imported_modules(path)
        if any(_is_within(module, role) for role in ROLES)
    }
    assert offenders == set()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import sequoia.v1.tree_pb2", "sequoia.v1.tree_pb2"),
        ("from sequoia import v1", "sequoia.v1"),
        ("from sequoia.v1 import tree_pb2", "sequoia.v1.tree_pb2"),
        ("from .. import v1", "sequoia.v1"),
        ("from ..v1.tree_pb2 import Tree", "sequoia.v1.tree_pb2"),
        ("def late():\n    import sequoia.v1", "sequoia.v1"),
    ],
)
def test_every_form_of_import_is_seen(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks above cannot be passed by writing an import in another way."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "sequoia" / "runtime").mkdir(parents=True)
    path = tmp_path / "sequoia" / "runtime" / "module.py"
    path.write_text(line)
    assert expected in set(_imported_modules(path))
