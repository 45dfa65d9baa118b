"""One generation by a system whose weights do not all stay in memory."""

from __future__ import annotations

from dataclasses import dataclass

from sequoia.bench.errors import BenchmarkError
from sequoia.bench.peers.runs import Decode
from sequoia.bench.process import bytes_read


@dataclass(frozen=True, slots=True)
class Streamed:
    """A continuation of a prompt, and what was read for it.

    Attributes:
        run: the tokens and their times.
        read_bytes: that the disk delivered to the process of the target's weights meanwhile.
        page_cache_bytes: of the checkpoint, in the page cache at the end.
    """

    run: Decode
    read_bytes: int
    page_cache_bytes: int

    @property
    def bytes_per_pass(self) -> float:
        """Read for a pass of the target; reading the prompt is one more pass than there are steps."""
        return self.read_bytes / (self.run.step_count + 1)

    @property
    def bytes_per_second(self) -> float:
        """Read from the disk over the whole time, reading the prompt included."""
        return self.read_bytes / self.run.seconds


def count_bytes(pid: int) -> int:
    """Bytes that a process has had read from disks so far.

    Raises:
        BenchmarkError: the process is gone, or the kernel does not tell.
    """
    count = bytes_read(pid)
    if count is None:
        raise BenchmarkError(f"/proc/{pid}/io cannot be read: bytes read from disk are not known")
    return count
