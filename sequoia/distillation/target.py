"""The target as distillation needs it: its weights by name, and what its output layer reads."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import load_model
from sequoia.runtime.tokenization import load_tokenizer

PROBE_TOKENS = 8
PROBE_TOLERANCE = 1e-2
"""Largest difference between the model's logits and head times feature, in fp32."""
LAYER_NUMBER = re.compile(r"^(.+\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Target:
    """A loaded target."""

    name: str
    model: TreeModel
    tokenizer: PreTrainedTokenizerBase
    embedding_name: str
    head_name: str
    layer_prefix: str
    """What the names of a layer's tensors begin with, before the layer's number."""

    @classmethod
    def load(cls, name: str, folder: Path, device: torch.device) -> Target:
        """Load a target in fp32.

        Raises:
            ModelError: it cannot be loaded, or its output layer is more than one matrix product.
        """
        model = load_model(folder, torch.float32, device)
        whole: Any = model.model
        if whole.config.get_text_config(decoder=True) is not whole.config:
            raise ModelError(f"{folder}: a draft can be cut from text models only")
        names: dict[int, str] = {}
        for tensor_name, tensor in whole.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), tensor_name)  # of tied tensors files hold the first
        embedding = names[id(whole.get_input_embeddings().weight)]
        head = names[id(whole.get_output_embeddings().weight)]
        prefix = _layer_prefix(list(whole.state_dict()), folder)
        target = cls(name, model, load_tokenizer(folder), embedding, head, prefix)
        target._check_head(folder)
        return target

    @property
    def config(self) -> Any:
        """The decoder's configuration."""
        return self.model.model.config

    @property
    def layer_count(self) -> int:
        """How many layers it has."""
        return int(self.config.num_hidden_layers)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every tensor of the checkpoint, by name."""
        tensors: dict[str, Tensor] = self.model.model.state_dict()
        return tensors

    @property
    def embedding(self) -> Tensor:
        """[vocabulary, hidden]."""
        return self.weights[self.embedding_name]

    @property
    def head(self) -> Tensor:
        """[vocabulary, hidden]."""
        return self.weights[self.head_name]

    def _check_head(self, folder: Path) -> None:
        """Distillation takes the target's distribution for softmax(head · feature)."""
        logits, features = self.model.plain(list(range(1, PROBE_TOKENS + 1)))
        difference = float((F.linear(features.float(), self.head) - logits).abs().max())
        if not difference <= PROBE_TOLERANCE:
            raise ModelError(
                f"{folder}: this target's logits are not its output layer's product (they differ "
                f"by {difference:.3g}), so a draft cannot borrow it; distillation needs one that does"
            )


def _layer_prefix(names: list[str], folder: Path) -> str:
    found = Counter(match[1] for name in names if (match := LAYER_NUMBER.match(name)))
    if not found:
        raise ModelError(f"{folder}: no layers that a draft could be cut from")
    return found.most_common(1)[0][0]
