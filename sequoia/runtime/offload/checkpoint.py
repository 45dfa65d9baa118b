"""A folder's safetensors files as places of bytes, checked against the files before any is read.

Format: https://huggingface.co/docs/safetensors, an 8-byte little-endian length, so many bytes of JSON,
and then the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sequoia.runtime.catalogue import ModelError

INDEX_FILE = "model.safetensors.index.json"
LENGTH_BYTES = 8
HEADER_LIMIT_BYTES = 100_000_000  # the safetensors library's own
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor's bytes are."""

    path: Path
    start: int  # in the file
    byte_count: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def element_count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


class Checkpoint(Mapping[str, Stored]):
    """Every tensor of a model folder by name.

    Raises:
        ModelError: no safetensors, or a file that is missing, cut short or not what it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, Stored] = {}
        for path in _files(folder):
            self._tensors |= _read_header(path)

    def __getitem__(self, name: str) -> Stored:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / name for name in sorted(names)]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{index}: not an index of safetensors files: {error!r}") from error
    if found := sorted(folder.glob("*.safetensors")):
        return found
    raise ModelError(f"{folder}: no safetensors; weights are streamed from these alone")


def _read_header(path: Path) -> dict[str, Stored]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 0 < length <= min(HEADER_LIMIT_BYTES, size - LENGTH_BYTES):
                raise ModelError(f"{path}: not a safetensors file, or cut short in its header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = LENGTH_BYTES + length
        return {name: _stored(path, size, start, name, entry) for name, entry in header.items()}
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: not a safetensors header: {error!r}") from error


def _stored(path: Path, size: int, data_start: int, name: str, entry: Mapping[str, Any]) -> Stored:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        known = ", ".join(DTYPES)
        raise ModelError(f"{path}: {name} is of type {entry['dtype']}; streamed are {known}")
    begin, end = entry["data_offsets"]
    stored = Stored(path, data_start + begin, end - begin, dtype, tuple(entry["shape"]))
    if begin < 0 or stored.byte_count != stored.element_count * dtype.itemsize:
        raise ModelError(f"{path}: {name} of shape {stored.shape} has {stored.byte_count} bytes")
    if data_start + end > size:
        raise ModelError(
            f"{path}: cut short: {name} ends at byte {data_start + end}, the file at {size}"
        )
    return stored
