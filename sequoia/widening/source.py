"""The target that is widened: a Llama in safetensors, looked over before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.loading import BROKEN_FILES
from sequoia.widening.placement import HEAD, tensor_sizes
from sequoia.widening.shapes import Shape

# Old checkpoints hold what follows from the configuration.
DERIVED = "rotary_emb.inv_freq"


class ReadTensor(Protocol):
    """Hands out a tensor of the target by its name."""

    def __call__(self, name: str) -> Tensor:
        """Read it from its file."""


@dataclass(frozen=True, slots=True)
class Source:
    """A target that can be widened.

    Attributes:
        config: config.json as it is.
        eps: of its norms.
        is_tied: whether the embedding is the output layer as well.
        places: the file of every tensor.
    """

    folder: Path
    config: Mapping[str, Any]
    shape: Shape
    vocabulary: int
    eps: float
    is_tied: bool
    places: Mapping[str, Path]

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Look over a model folder.

        Raises:
            ModelError: no Llama, weights that are quantised or no safetensors, biases, or tensors that are
                missing, unknown, or of another size than the configuration says.
        """
        try:
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            _require_llama(folder, raw)
            config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            shape = Shape(
                int(config.num_hidden_layers),
                int(config.hidden_size),
                int(config.intermediate_size),
                int(config.num_attention_heads),
                int(config.num_key_value_heads),
                int(config.head_dim),
            )
            is_tied = bool(config.tie_word_embeddings)
            vocabulary, eps = int(config.vocab_size), float(config.rms_norm_eps)
            places = _places(folder, tensor_sizes(shape, vocabulary, is_tied))
        except BROKEN_FILES as error:
            raise ModelError(f"{folder}: {error}") from error
        return cls(folder, raw, shape, vocabulary, eps, is_tied, places)

    @contextmanager
    def opened(self) -> Iterator[ReadTensor]:
        """Tensors by name, for the length of the block; only what is asked for is read."""
        with ExitStack() as stack:
            files = {
                path: stack.enter_context(safe_open(path, framework="pt"))
                for path in sorted(set(self.places.values()))
            }

            def read(name: str) -> Tensor:
                tensor: Tensor = files[self.places[name]].get_tensor(name)
                return tensor

            yield read


def _require_llama(folder: Path, config: Any) -> None:
    if not isinstance(config, dict):
        raise ModelError(f"{folder}: config.json holds no object")
    if (kind := config.get("model_type")) != "llama":
        raise ModelError(f"{folder}: only Llama models can be widened, this is {kind!r}")
    if config.get("quantization_config"):
        raise ModelError(f"{folder}: quantised weights cannot be widened")
    for field in ("attention_bias", "mlp_bias"):
        if config.get(field):
            raise ModelError(f"{folder}: {field} is set, and biases cannot be widened")


def _places(folder: Path, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file of every tensor; all must be there and of the right size, and no other."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{folder}: holds no safetensors, only these can be widened")
    places: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 not a mapping
                if name in sizes:
                    _require_tensor(path, name, file.get_slice(name), sizes[name])
                    places[name] = path
                elif name != HEAD and not name.endswith(DERIVED):
                    raise ModelError(f"{path}: the tensor {name} belongs to no plain Llama")
    if missing := [name for name in sizes if name not in places]:
        raise ModelError(f"{folder}: no weights for {len(missing)} tensors, {missing[0]} first")
    return places


def _require_tensor(path: Path, name: str, tensor: Any, size: tuple[int, ...]) -> None:
    if tuple(tensor.get_shape()) != size:
        raise ModelError(
            f"{path}: {name} is {tensor.get_shape()}, {list(size)} by the configuration"
        )
    if tensor.get_dtype() not in {"F64", "F32", "F16", "BF16"}:
        raise ModelError(f"{path}: {name} is {tensor.get_dtype()}; quantised weights are refused")
