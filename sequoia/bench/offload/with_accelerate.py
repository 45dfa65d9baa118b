"""accelerate's offloading: `from_pretrained(device_map="auto", max_memory=...)` and `generate`.

It keeps the layers that fit the budget and has each of the others read before it runs. Reads go through
the page cache; `page_cache.py` says why and how it is kept from growing beyond the budget.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sequoia.bench.errors import UnavailableError
from sequoia.bench.offload.page_cache import cached_bytes, drop_cached, drop_range
from sequoia.bench.offload.streamed import Streamed, count_bytes
from sequoia.bench.peers.runs import Decode, Prompt
from sequoia.bench.peers.with_transformers import continue_prompt, set_up_transformers
from sequoia.bench.process import peak_memory
from sequoia.runtime.loading import choose_dtype
from sequoia.runtime.offload.checkpoint import Checkpoint, Stored
from sequoia.runtime.offload.memory import process_resident

OFFLOADED = "disk"  # where a device map has what does not fit
# The kernel reads some MiB around a page that is missed. What it read around a file's header and ahead of
# a layer is soon wanted, so it stays; handing it back would have it read again and again.
READ_AROUND_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class MakeAcceleratePeer:
    """How to make the peer in its process.

    Attributes:
        folder: of the target.
        files: of its checkpoint.
        offload_folder: for weights that do not stand in the files as the model wants them.
    """

    folder: Path
    files: Sequence[Path]
    offload_folder: Path
    dtype: str
    threads: int
    stop_token_ids: tuple[int, ...]

    def __call__(self) -> AcceleratePeer:
        """The peer, which has loaded nothing yet."""
        return AcceleratePeer(self)


class AcceleratePeer:
    """A target on a CPU, of which the layers beyond the budget are read for every pass."""

    def __init__(self, settings: MakeAcceleratePeer) -> None:
        set_up_transformers(settings.threads)
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        self._settings = settings
        self._model: Any = None
        self._files: list[Path] = []
        self._pass_ends: list[float] = []
        self._keeps_page_cache = True

    def resident_memory(self) -> int:
        """Bytes of this process that are resident now."""
        return process_resident()

    def load(self, weight_bytes: int) -> None:
        """Load the target, of which at most so many bytes of weights may stay in memory.

        Raises:
            UnavailableError: accelerate cannot do with so little.
        """
        from transformers import AutoModelForCausalLM

        settings = self._settings
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                settings.folder,
                dtype=choose_dtype(settings.dtype, torch.device("cpu")),
                trust_remote_code=False,
                device_map="auto",
                max_memory={"cpu": weight_bytes},
                offload_folder=settings.offload_folder,
            )
        except ValueError as error:
            raise UnavailableError(f"{weight_bytes} bytes of weights: {error}") from error
        self._model = loaded.eval()
        self._files = [*settings.files, *settings.offload_folder.glob("*.dat")]
        self._model.register_forward_hook(self._end_pass)
        checkpoint = Checkpoint(settings.folder)
        for name in self.offloaded():
            hook = partial(self._after_layer, layer_starts(checkpoint, name))
            self._model.get_submodule(name).register_forward_hook(hook)

    def offloaded(self) -> list[str]:
        """The layers that are read for every pass; a device map may name what they stand in."""
        places: dict[str, Any] = getattr(self._model, "hf_device_map", {})
        on_disk = [f"{name}." if name else "" for name, at in places.items() if at == OFFLOADED]
        kinds = set(self._model._no_split_modules or ())
        return [
            name
            for name, module in self._model.named_modules()
            if type(module).__name__ in kinds and f"{name}.".startswith(tuple(on_disk))
        ]

    def peak_memory(self) -> int | None:
        """Bytes of this process that were resident at a time, mapped files included."""
        return peak_memory(os.getpid())

    def generate(self, keeps_page_cache: bool, prompt: Prompt) -> Streamed:
        """Continue a prompt greedily; no page of the checkpoint is cached before.

        Args:
            keeps_page_cache: whether what was read may stay in the page cache. If not, it is handed
                back layer by layer.
            prompt: what to continue.
        """
        self._keeps_page_cache = keeps_page_cache
        self._pass_ends.clear()
        drop_cached(self._files)
        before = count_bytes(os.getpid())
        started = time.perf_counter()
        token_ids = continue_prompt(self._model, prompt, 0.0, self._settings.stop_token_ids)
        seconds = time.perf_counter() - started
        first_seconds = self._pass_ends[0] - started
        later = len(self._pass_ends) - 1
        pass_seconds = (self._pass_ends[-1] - self._pass_ends[0]) / later if later else 0.0
        run = Decode(token_ids, seconds, later + 1, first_seconds, 1, pass_seconds)
        read = count_bytes(os.getpid()) - before
        streamed = Streamed(run, read, cached_bytes(self._files))
        drop_cached(self._files)
        return streamed

    def _end_pass(self, *_: Any) -> None:
        self._pass_ends.append(time.perf_counter())

    def _after_layer(self, starts: Mapping[Path, int], *_: Any) -> None:
        """Hand back what lies before a layer that has run: the layers before it, and what is not near."""
        if self._keeps_page_cache:
            return
        for file in self._files:
            end = starts.get(file, file.stat().st_size) - READ_AROUND_BYTES
            if end > READ_AROUND_BYTES:
                drop_range(file, READ_AROUND_BYTES, end - READ_AROUND_BYTES)


def layer_starts(checkpoint: Mapping[str, Stored], layer: str) -> dict[Path, int]:
    """Where in each of its files a layer begins; files that hold nothing of it are left out."""
    starts: dict[Path, int] = {}
    for name, stored in checkpoint.items():
        if name.startswith(f"{layer}."):
            starts[stored.path] = min(starts.get(stored.path, stored.start), stored.start)
    return starts
