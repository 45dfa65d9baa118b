import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "sequoia" / "v1"


def _generated_files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.glob("*_pb2*") if path.suffix in {".py", ".pyi"}]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def _versions_in(pattern: str, expression: str) -> set[Version]:
    texts = (path.read_text(encoding="utf-8") for path in GENERATED.glob(pattern))
    return {Version(found) for text in texts for found in re.findall(expression, text)}


def _floor(name: str) -> Version:
    """The lowest version of a dependency that pyproject.toml admits."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        if requirement.name == name:
            return max(
                Version(item.version)
                for item in requirement.specifier
                if item.operator in {">=", "=="}
            )
    raise AssertionError(f"{name} is not a dependency")


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    """sequoia/v1 is what grpcio-tools makes of protos/ today; `make protos` mends it."""
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    assert protos
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iprotos"),
            *(f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")),
            *(str(path.relative_to(ROOT)) for path in protos),
        ],
        cwd=ROOT,
        check=True,
    )
    fresh = _generated_files(tmp_path / "sequoia" / "v1")
    checked_in = _generated_files(GENERATED)
    assert sorted(checked_in) == sorted(fresh)
    stale = [name for name, text in fresh.items() if checked_in[name] != text]
    assert stale == []


@pytest.mark.parametrize(
    "package", ["grpcio", "grpcio-status", "grpcio-health-checking", "grpcio-reflection"]
)
def test_grpc_floors_admit_nothing_older_than_the_stubs(package: str) -> None:
    """The stubs refuse to load with an older gRPC, so an installation must not bring one."""
    (generator,) = _versions_in("*_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '([\d.]+)'")
    assert _floor(package) >= generator


def test_the_protobuf_floor_admits_nothing_older_than_the_messages() -> None:
    """The message classes refuse to load with an older protobuf runtime."""
    (generator,) = _versions_in("*_pb2.py", r"# Protobuf Python Version: ([\d.]+)")
    assert _floor("protobuf") >= generator


def test_the_generator_is_the_pinned_one() -> None:
    """Freshness means something only with the generator that pyproject.toml pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dev = project["optional-dependencies"]["dev"]
    (pin,) = (Requirement(line) for line in dev if line.startswith("grpcio-tools"))
    assert version("grpcio-tools") in pin.specifier
