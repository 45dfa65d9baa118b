"""Widened targets of benchmarks, written once and kept in the cache folder, with their drafts beside them."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch

from sequoia.runtime.catalogue import cache_folder, resolve
from sequoia.runtime.progress import Progress
from sequoia.widening.draft import widen_draft
from sequoia.widening.folder import widen
from sequoia.widening.shapes import fit, read_outline
from sequoia.widening.source import Source


def wide_target(target: str, shape: str, dtype: torch.dtype, progress: Progress) -> Path:
    """The folder of a target in a larger shape, without a draft.

    Raises:
        ModelError: the target cannot be had or widened.
        WidenError: there is no such shape, it is too small, or the disk has no room.
    """
    outline = read_outline(shape)
    source = resolve(target, progress=progress)
    folder = _kept(source) / f"{shape.replace(':', '-')}-{str(dtype).removeprefix('torch.')}"
    if not folder.exists():
        widen(source, None, outline, folder, dtype, progress)
    return folder


def wide_draft(draft: str, target: str, shape: str, dtype: torch.dtype, progress: Progress) -> Path:
    """The folder of a target's draft, fit for the target in that shape.

    A draft that borrows nothing from the target goes with the wide one as it is.

    Raises:
        ModelError: target or draft cannot be had, or do not belong together.
        WidenError: there is no such shape, or it is too small.
    """
    given = resolve(draft, progress=progress)
    source = Source.read(resolve(target, progress=progress))
    wide = fit(read_outline(shape), source.shape)
    name = f"{source.folder.name} at {wide.layers}x{wide.hidden}"
    digest = _digest(given, name, str(dtype))
    folder = _kept(source.folder) / "drafts" / f"{given.name}-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / "draft"
        if not widen_draft(given, source, wide, dtype, made, name):
            return given
        made.replace(folder)
    return folder


def _kept(source: Path) -> Path:
    """Where the wide models of a target are."""
    return cache_folder() / "wide" / f"{source.name}-{_digest(source)}"


def _digest(folder: Path, *others: str) -> str:
    """Of which files a folder has, their sizes and dates: another model does not go by the same name."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    files = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    text = "\n".join([str(folder.absolute()), *files, *others])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
