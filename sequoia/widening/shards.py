"""Safetensors files, written tensor by tensor: no more than one is held, however large the model.

The format is that of https://github.com/huggingface/safetensors#format: the length of a JSON header, the
header with the place of every tensor, and the tensors' bytes, one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"
TYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
HEADER_MULTIPLE = 8  # keeps the tensors aligned

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file, and the sizes of its tensors in their order."""

    file_name: str
    sizes: Sizes
    dtype: torch.dtype

    @property
    def byte_count(self) -> int:
        """Of all its tensors."""
        return sum(prod(size) for size in self.sizes.values()) * self.dtype.itemsize

    def write(
        self, folder: Path, read: Callable[[str], Tensor], report: Callable[[int], None]
    ) -> None:
        """Write the file.

        Args:
            folder: where.
            read: hands out a tensor of the right size and element type by its name.
            report: told the bytes that are written, after each tensor.
        """
        done = 0
        with (folder / self.file_name).open("wb") as file:
            file.write(self._header())
            for name, size in self.sizes.items():
                tensor = read(name)
                if tensor.shape != size or tensor.dtype != self.dtype:
                    raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, not {size}")
                # Zeros are written like all other numbers: no file has holes.
                done += file.write(tensor.contiguous().view(torch.uint8).numpy().data)
                report(done)
            file.flush()
            os.fsync(file.fileno())

    def _header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, size in self.sizes.items():
            end = start + prod(size) * self.dtype.itemsize
            entries[name] = {
                "dtype": TYPE_NAMES[self.dtype],
                "shape": size,
                "data_offsets": (start, end),
            }
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % HEADER_MULTIPLE)
        return len(text).to_bytes(8, "little") + text


def divide(sizes: Sizes, dtype: torch.dtype, limit_bytes: int) -> list[Shard]:
    """Shards of at most so many bytes, but for a tensor that is larger than that by itself."""
    parts: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for name, size in sizes.items():
        byte_count = prod(size) * dtype.itemsize
        if not parts or byte_count > room:
            parts.append({})
            room = limit_bytes
        parts[-1][name] = size
        room -= byte_count
    if len(parts) == 1:
        return [Shard("model.safetensors", parts[0], dtype)]
    return [
        Shard(f"model-{number:05}-of-{len(parts):05}.safetensors", part, dtype)
        for number, part in enumerate(parts, start=1)
    ]


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Say which file has which tensor, where there are several."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(shard.byte_count for shard in shards)},
        "weight_map": {name: shard.file_name for shard in shards for name in shard.sizes},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
