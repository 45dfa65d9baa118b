"""A model without weights, and where in the files each of them is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.offload.checkpoint import Checkpoint, Stored
from sequoia.runtime.offload.extents import Layout, layout_of


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A decoder whose parameters have shapes and no memory.

    Attributes:
        model: from transformers; its own buffers, such as tables of positions, are real.
        layers: its decoder layers, by number.
        layer_layouts: where each layer's tensors are, by their names within the layer.
        rest_layout: the same of all others, by their names in the model.
    """

    model: Any
    layers: Mapping[int, nn.Module]
    layer_layouts: Mapping[int, Layout]
    rest_layout: Layout

    @classmethod
    def of(cls, folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> Skeleton:
        """The skeleton of a model folder, in the type that it is to run in.

        Raises:
            ModelError: no decoder, or its weights are not all there under transformers' names.
        """
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with init_empty_weights(include_buffers=False):
                model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder}: {error}") from error
        found = _Finder(checkpoint, model)
        path, layers = _decoder_layers(folder, model)
        of_layers = {
            number: found.tensors(f"{path}.{number}.", layer.state_dict())
            for number, layer in enumerate(layers)
        }
        tied = getattr(model, "all_tied_weights_keys", {})
        others = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith(f"{path}.") and name not in tied
        }
        rest = found.tensors("", others)
        found.require_all()
        return cls(
            model,
            dict(enumerate(layers)),
            {number: layout_of(tensors) for number, tensors in of_layers.items()},
            layout_of(rest),
        )

    @property
    def paths(self) -> Iterable[Path]:
        """The files that hold the weights."""
        layouts = (self.rest_layout, *self.layer_layouts.values())
        return {extent.path for layout in layouts for extent in layout.extents}


class _Finder:
    """Looks tensors up, and keeps what it misses until all have been looked up."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self._checkpoint = checkpoint
        self._base = f"{model.base_model_prefix}."
        self._missing: list[str] = []

    def tensors(self, prefix: str, wanted: Mapping[str, Tensor]) -> dict[str, Stored]:
        """The places of tensors that are called `prefix` + name in the model.

        Raises:
            ModelError: one has another shape than the model wants.
        """
        places = {}
        for name, tensor in wanted.items():
            full = prefix + name
            # Checkpoints of a decoder without its output layer leave the first part out.
            stored = self._checkpoint.get(full) or self._checkpoint.get(
                full.removeprefix(self._base)
            )
            if stored is None:
                self._missing.append(full)
            elif stored.shape != tuple(tensor.shape):
                raise ModelError(
                    f"{stored.path}: {full} has shape {stored.shape}, not {tuple(tensor.shape)}"
                )
            else:
                places[name] = stored
        return places

    def require_all(self) -> None:
        """Raise a `ModelError` if anything was missed."""
        if self._missing:
            raise ModelError(
                f"{self._checkpoint.folder}: no weights for {len(self._missing)} tensors, "
                f"{self._missing[0]} first (tensors that are renamed or joined while they are loaded "
                "cannot be streamed)"
            )


def _decoder_layers(folder: Path, model: Any) -> tuple[str, nn.ModuleList]:
    """Where most of the weights are, and its name."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        raise ModelError(f"{folder}: this model has no list of layers to stream")
    return max(lists, key=lambda one: sum(weight.numel() for weight in one[1].parameters()))
