"""What memory there is, and what this process holds of it, in bytes.

Linux tells both in files. On other systems memory counts as unlimited, and models stay on their devices.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sequoia.proc import read_field

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USE = Path("/sys/fs/cgroup/memory.current")
CGROUP_STATISTICS = Path("/sys/fs/cgroup/memory.stat")
UNLIMITED = 2**60


def host_total() -> int:
    """All memory that this process could have: the machine's, or less in a container."""
    return min(_field("meminfo", "MemTotal", UNLIMITED), _number(CGROUP_LIMIT))


def host_free() -> int:
    """What can be taken without anybody being pushed out."""
    in_container = _number(CGROUP_LIMIT) - _number(CGROUP_USE, 0) + _cached_in_container()
    return min(_field("meminfo", "MemAvailable", UNLIMITED), in_container)


def _cached_in_container() -> int:
    """Of what a container uses, the files that it can forget."""
    if not CGROUP_STATISTICS.is_file():
        return 0
    lines = CGROUP_STATISTICS.read_text(encoding="ascii").splitlines()
    fields = dict(line.split() for line in lines)
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


def process_resident() -> int:
    """What this process holds now."""
    return _field("self/status", "VmRSS", 0)


def device_total(device: torch.device) -> int:
    """All memory of the device that a model runs on; for a CPU the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return host_total()


def device_free(device: torch.device) -> int:
    """What is free of it, and of a CPU's what this process holds already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_free() + process_resident()


def _field(file: str, name: str, otherwise: int) -> int:
    value = read_field(Path("/proc") / file, name)
    return otherwise if value is None else value


def _number(path: Path, otherwise: int = UNLIMITED) -> int:
    """A cgroup's number; `otherwise` where there is no limit, or no such group."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return otherwise
