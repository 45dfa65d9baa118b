"""Which models take part: a target with its checkpoint, and one draft or two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sequoia.bench.errors import OptionError
from sequoia.bench.offload.wide import wide_draft, wide_target
from sequoia.config import DEFAULT_TARGET
from sequoia.runtime.catalogue import ModelError, default_draft, resolve
from sequoia.runtime.progress import stderr_progress

DEFAULT_SHAPE = "7b"


@dataclass(frozen=True, slots=True)
class Models:
    """What was found.

    Attributes:
        name: of the target, short enough for a file's name.
        target: its folder.
        files: its checkpoint, in the order of the weights.
        draft: a reference.
        other_draft: another one; None for none.
    """

    name: str
    target: Path
    files: tuple[Path, ...]
    draft: str
    other_draft: str | None

    @property
    def byte_count(self) -> int:
        """Of the checkpoint."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the command's options say: a target, or the shape that the built-in one is widened to."""

    target: str | None
    shape: str | None
    draft: str | None
    other_draft: str | None

    def __post_init__(self) -> None:
        if self.target is not None and self.shape is not None:
            raise OptionError(
                "--shape: widens the built-in target, so it does not go with --target"
            )

    def find(self, dtype: torch.dtype) -> Models:
        """Fetch, convert and widen where it is necessary.

        Raises:
            ModelError: a model cannot be had, or the target's weights are no safetensors.
            WidenError: the shape is wrong, or the disk has no room for it.
            OptionError: the target has no draft of its own, and none is named.
        """
        with stderr_progress() as progress:
            if self.target is None:
                return self._widened(dtype)
            folder = resolve(self.target, progress=progress)
            draft = self.draft or default_draft(self.target)
            if draft is None:
                raise OptionError(f"--draft: {self.target} has no draft of its own: name one")
            for reference in filter(None, (draft, self.other_draft)):
                resolve(reference, progress=progress)
        return Models(folder.name, folder, checkpoint(folder), draft, self.other_draft)

    def _widened(self, dtype: torch.dtype) -> Models:
        shape = self.shape or DEFAULT_SHAPE
        with stderr_progress() as progress:
            folder = wide_target(DEFAULT_TARGET, shape, dtype, progress)
            fit = partial(
                wide_draft, target=DEFAULT_TARGET, shape=shape, dtype=dtype, progress=progress
            )
            draft = fit(self.draft or default_draft(DEFAULT_TARGET) or "")
            other = None if self.other_draft is None else str(fit(self.other_draft))
        name = f"{DEFAULT_TARGET}-as-{shape.replace(':', '-')}"
        return Models(name, folder, checkpoint(folder), str(draft), other)


def checkpoint(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model.

    Raises:
        ModelError: it has none.
    """
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        raise ModelError(f"{folder}: has no safetensors files, which offloading reads")
    return files
