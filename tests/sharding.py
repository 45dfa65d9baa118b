"""Ranks that share a target, forked from a process that has imported everything: they start in a moment.

That process is `python -m tests.sharding`. It reads a scenario of `tests.shard_scenarios` a line, runs it on
two ranks, and tells their process ids, and of each that has ended its rank and exit status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

ROOT = Path(__file__).parents[1]
SIZE = 2


@dataclass
class Nursery:
    """The process that ranks are forked from, as a test has it; they write into files in `folder`.

    Like torchrun's, the store in which ranks find each other is kept from one scenario to the next.
    """

    folder: Path
    store: TCPStore = field(init=False)
    process: subprocess.Popen[str] = field(init=False)
    pids: list[int] = field(default_factory=list)
    started_count: int = 0

    def __post_init__(self) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.sharding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def start(self, scenario: str, *arguments: str) -> Path:
        """Run a scenario; where its ranks write."""
        assert self.process.stdin
        assert self.process.stdout
        self.started_count += 1
        output = self.folder / f"scenario-{self.started_count}"
        variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(self.started_count),
        }
        line = json.dumps([scenario, str(output), variables, *arguments])
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.pids = json.loads(self.process.stdout.readline())
        return output

    def statuses(self) -> list[int]:
        """Wait for both ranks to end; their exit statuses, negative for signals."""
        assert self.process.stdout
        ended = [json.loads(self.process.stdout.readline()) for _ in self.pids]
        return [status for _, status in sorted(ended)]

    def close(self) -> None:
        """No more scenarios."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def until_written(path: Path, text: str, seconds: float = 60.0) -> str:
    """Wait until a file holds a text; everything that it holds."""
    deadline = time.monotonic() + seconds
    while text not in (written := path.read_text(encoding="utf-8") if path.exists() else ""):
        assert time.monotonic() < deadline, written
        time.sleep(0.01)
    return written


def main() -> None:
    """Run scenarios until there are no more."""
    from tests import shard_scenarios

    for line in sys.stdin:
        scenario, output, variables, *arguments = json.loads(line)
        pids = []
        for rank in range(SIZE):
            if not (pid := os.fork()):
                os.environ.update(variables)
                _become_rank(rank, output)
                getattr(shard_scenarios, scenario)(*arguments)
                return
            pids.append(pid)
        _say(pids)
        for _ in pids:
            pid, status = os.wait()
            _say([pids.index(pid), os.waitstatus_to_exitcode(status)])


def _become_rank(rank: int, output: str) -> None:
    """Learn which rank this is, as from torchrun, and write into a file."""
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    numbers = zip(names, (rank, rank, SIZE, SIZE), strict=True)
    os.environ.update({name: str(number) for name, number in numbers})


def _say(what: Sequence[int]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
