"""The image's recipe: clean to the linter, and pinned to the last package."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tests.deploy import roles

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "requirements"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def pins(*names: str) -> dict[str, Version]:
    """The packages that these files pin."""
    text = "\n".join((REQUIREMENTS / f"{name}.txt").read_text("utf-8") for name in names)
    return {name: Version(version) for name, version in PIN.findall(text)}


def stages() -> list[str]:
    """The Dockerfile's stages, from their FROM on."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    return re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]


def test_the_linter_has_nothing_to_say() -> None:
    """Exceptions stand in the file, with their reasons."""
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(linter), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_requirement_is_pinned_within_its_range() -> None:
    """For both builds, whatever pyproject.toml asks for; a new requirement wants `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for build in ("cpu", "cuda"):
        pinned = pins("common", build)
        for line in project["project"]["dependencies"]:
            wanted = Requirement(line)
            version = pinned[wanted.name.replace("_", "-")]
            assert wanted.specifier.contains(version), (build, line, version)


def test_both_builds_have_the_same_pytorch() -> None:
    """The one written by hand follows the one that `make lock` wrote."""
    assert pins("cpu")["torch"].public == pins("cuda")["torch"].public


def test_every_package_from_pypi_has_hashes() -> None:
    """So that nothing else can be installed under its name."""
    for name in ("common", "cuda"):
        packages = re.split(
            r"^(?=\S+==)", (REQUIREMENTS / f"{name}.txt").read_text("utf-8"), flags=re.MULTILINE
        )
        assert len(packages) == len(pins(name)) + 1
        assert all("--hash=sha256:" in package for package in packages[1:])


def test_the_final_stage_has_no_compiler_and_is_not_root() -> None:
    """It installs nothing: what it has comes from the base image and the build stage."""
    build, final = stages()
    assert "g++" in build
    assert not re.search(r"apt-get|pip install|g\+\+", final)
    assert re.findall(r"^USER (\S+)", final, re.MULTILINE) == ["10001:10001"]
    assert "USER" not in build


def test_the_build_takes_the_packages_and_nothing_else() -> None:
    """Every package of the project is let through to the build and copied; results of runs are not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {
        pattern.removesuffix("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert lines[0] == "*"
    assert packages <= {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert packages == set(re.findall(r"^COPY (\w+)/ \1/$", stages()[0], re.MULTILINE))


def test_every_role_reads_what_the_image_sets() -> None:
    """The same environment serves all: a role ends at a variable that none reads."""
    text = stages()[1]
    for role in roles.ROLES:
        assert set(re.findall(r"\b((?:SEQUOIA|HF)_\w+)=", text)) <= roles.variables(role)
