"""Where a run works and where its draft goes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sequoia.distillation.failures import DistillError

LOCK = "lock"
REHEARSAL = "rehearsal"


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a draft, and the one with its corpus and checkpoints."""

    out: Path
    work: Path

    @property
    def order(self) -> Path:
        """What is to be made."""
        return self.work / "settings.json"

    @property
    def corpus(self) -> Path:
        """Folder of the shards."""
        return self.work / "corpus"

    @property
    def head(self) -> Path:
        """The token ids that the draft can say."""
        return self.work / "head.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Folder of the trainer's state."""
        return self.work / "checkpoint"

    @property
    def history(self) -> Path:
        """The learning curve."""
        return self.work / "history.jsonl"

    def prepare(self, resume: bool) -> None:
        """Make both folders, or see that a run can be resumed.

        Raises:
            DistillError: there is something already, or nothing to resume, or a folder cannot be
                made or written to.
        """
        if resume and not self.order.is_file():
            raise DistillError(f"{self.work} holds no run to go on with", "--resume")
        for folder, option in ((self.out, "--out"), (self.work, "--work")):
            try:
                held = [] if resume or not folder.exists() else list(folder.iterdir())
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                why = error.strerror or error
                raise DistillError(f"{folder} cannot be written to: {why}", option) from None
            # What a run that never began may have left.
            leftovers = {LOCK, REHEARSAL, self.order.with_suffix(".partial").name, self.work.name}
            if {path.name for path in held} - leftovers:
                raise DistillError(
                    f"{folder} is not empty: go on with what is there with --resume, or name "
                    "another folder",
                    option,
                )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs away.

        Raises:
            DistillError: another run is at work.
        """
        lock = FileLock(self.work / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DistillError(f"{self.work}: another run is at work here") from None
        try:
            yield
        finally:
            lock.release()
