"""The student: a few layers cut out of the target, its embedding borrowed, its head reduced."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from sequoia.distillation.target import Target
from sequoia.runtime.loading import (
    BORROWED_DRAFT_FILE,
    BORROWED_DRAFT_FORMAT,
    FUSION,
    tensor_sha256,
)
from sequoia.runtime.pass_cache import cache_argument

OUTPUTS = frozenset({"o_proj", "down_proj", "c_proj", "out_proj", "dense", "fc2", "w2"})
"""What the last matrices of attention and of the feed-forward part are called, by architecture."""
PROBE_TOKENS = 16


class BeginningError(ValueError):
    """A student cannot begin as another draft."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a student is cut to."""

    layers: tuple[int, ...]
    """The target's layers that it keeps, counted from 0."""
    width: int | None = None
    """Width of the feed-forward part of a layer; None for the target's."""
    reads_features: bool = True

    @classmethod
    def evenly(cls, count: int, of: int, width: int | None, reads_features: bool) -> Shape:
        """`count` layers spread over the target's `of`, the first and the last among them."""
        steps = max(count - 1, 1)
        layers = tuple(round(step * (of - 1) / steps) for step in range(count))
        return cls(layers, width, reads_features)


class Student(nn.Module):
    """Layers of a target, its frozen embedding, and a head over `head_token_ids`.

    The head is rows of the target's own head and stays frozen too: only the layers, the final norm
    and the fusion are learned, so only they need to be shipped. The fusion begins as (1, 0): at first
    features are not read, and the student is the plain one.
    """

    head: Tensor
    """bf16 `[head token ids, hidden]`."""

    def __init__(self, target: Target, shape: Shape, head_token_ids: Tensor) -> None:
        """Cut a student from `target`.

        Args:
            target: whose layers to copy.
            shape: which of them.
            head_token_ids: the token ids that the student can say, int `[head]`, ascending.

        Raises:
            ValueError: a layer or a width that the target does not have.
        """
        super().__init__()
        self.shape = shape
        self.config = _cut_config(target, shape)
        self.model: Any = AutoModelForCausalLM.from_config(self.config).float()
        self.model.load_state_dict(_cut_weights(target, shape), strict=False)
        borrowed = {target.embedding_name, target.head_name}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in borrowed)
        self.decoder: Any = self.model.get_decoder()
        self.fusion: nn.Linear | None = None
        if shape.reads_features:
            hidden, embedded = target.model.feature_size, target.embedding.shape[1]
            self.fusion = nn.Linear(embedded + hidden, embedded, bias=False)
            with torch.no_grad():
                start = [torch.eye(embedded), torch.zeros(embedded, hidden)]
                self.fusion.weight.copy_(torch.cat(start, dim=1))
        self._layer_prefix = target.layer_prefix
        self.head_token_ids = head_token_ids.long()
        self.register_buffer("head", target.head[self.head_token_ids].to(torch.bfloat16), False)
        self.embedding_sha256 = tensor_sha256(target.embedding.cpu())
        self._manifest = {
            "format": BORROWED_DRAFT_FORMAT,
            "target": target.name,
            "embedding": target.embedding_name,
            "head": target.head_name,
            "embedding_sha256": self.embedding_sha256,
            "layers": list(shape.layers),
        }
        self.to(target.model.device)

    def forward(self, token_ids: Tensor, features: Tensor | None, levels: int = 1) -> list[Tensor]:
        """What the head reads at every position, as it is at each of the first levels of a tree.

        At level 1 all positions read the target's features. At level j the position itself and the
        j - 2 before it read the student's own, made at the level before, and what stands further
        back is seen as the levels before saw it: just so a tree is grown (training-time test of
        "EAGLE-3", arXiv 2503.01840, section 3).

        Args:
            token_ids: `[rows, tokens]`.
            features: the target's at the same positions, `[rows, tokens, hidden]`.
            levels: how many.

        Returns:
            Per level, `[rows, tokens, hidden]`. The first level alone for a student that reads none.
        """
        embedded = self.model.get_input_embeddings()(token_ids)
        if self.fusion is None or features is None:
            state: Tensor = self.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
            return [state]
        rows, count = token_ids.shape
        positions = torch.arange(count, device=token_ids.device)[None]
        cache = DynamicCache() if levels > 1 else None  # whole rows: the mask decides
        states: list[Tensor] = []
        for level in range(levels):
            before = F.pad(states[-1] if states else features, (0, 0, 1, 0))[:, :-1]
            mask = _level_mask(level, count, token_ids.device) if cache is not None else None
            states.append(
                self.decoder(
                    inputs_embeds=self.fusion(torch.cat([embedded, before.to(embedded)], dim=-1)),
                    position_ids=positions,
                    **{cache_argument(self.decoder): cache},
                    use_cache=cache is not None,
                    attention_mask=None if mask is None else mask.expand(rows, 1, -1, -1),
                ).last_hidden_state
            )
        return states

    @property
    def head_size(self) -> int:
        """How many token ids it can say."""
        return len(self.head_token_ids)

    @torch.no_grad()
    def begin_as(self, other: Student) -> None:
        """Say what `other` says: its layers come first, and those behind them add nothing yet.

        What further layers would add goes through matrices that are set to 0 and learned from there
        (as new blocks begin in "LLaMA Pro", arXiv 2401.02415).

        Raises:
            BeginningError: `other` has other first layers, another width or other inputs, or this
                architecture names its matrices otherwise.
        """
        count = len(other.shape.layers)
        for name, theirs, ours in (
            ("layers", other.shape.layers, self.shape.layers[:count]),
            ("width", other.shape.width, self.shape.width),
            ("features", other.shape.reads_features, self.shape.reads_features),
        ):
            if theirs != ours:
                raise BeginningError(f"its {name} are {theirs}, those of the new draft {ours}")
        mine = self.learned()
        for name, tensor in other.learned().items():
            mine[name].copy_(tensor)
        for name, tensor in mine.items():
            layer, *path = name.removeprefix(self._layer_prefix).split(".")
            if layer.isdigit() and int(layer) >= count and OUTPUTS.intersection(path):
                tensor.zero_()
        self._check_says_the_same(other)

    def _check_says_the_same(self, other: Student) -> None:
        device = self.head.device
        token_ids = torch.arange(1, PROBE_TOKENS + 1, device=device)[None]
        features = None
        if self.fusion is not None:
            read = self.fusion.in_features - self.fusion.out_features
            features = torch.linspace(-1, 1, PROBE_TOKENS * read, device=device)
            features = features.reshape(1, PROBE_TOKENS, read)
        (mine,), (theirs,) = self(token_ids, features), other(token_ids, features)
        if not torch.allclose(mine, theirs, atol=1e-3, rtol=1e-3):
            raise BeginningError(
                "the further layers of this architecture cannot be made to add nothing"
            )

    def learned(self) -> dict[str, Tensor]:
        """The learned tensors, named as in the folder of a draft."""
        tensors = {
            name: tensor.detach()
            for name, tensor in self.model.named_parameters()
            if tensor.requires_grad
        }
        if self.fusion is not None:
            tensors[FUSION] = self.fusion.weight.detach()
        return tensors

    def load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors as `learned` names them; KeyError when one is missing."""
        with torch.no_grad():
            for name, tensor in self.learned().items():
                tensor.copy_(tensors[name])

    def save(self, folder: Path) -> None:
        """Write the draft's folder: config, bf16 weights and what it borrows from its target.

        The files are swapped in whole, so a reader never meets half a file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self.model).__name__]
        config.dtype = torch.bfloat16
        config.save_pretrained(partial)
        tensors = {
            name: tensor.to("cpu", torch.bfloat16).contiguous()
            for name, tensor in self.learned().items()
        }
        tensors["head_token_ids"] = self.head_token_ids.to(torch.int32)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        manifest = json.dumps(self._manifest, indent=2)
        (partial / BORROWED_DRAFT_FILE).write_text(manifest + "\n")
        for path in partial.iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)
        partial.rmdir()

    @classmethod
    def load(cls, folder: Path, target: Target) -> Student:
        """A saved draft, on top of the target it was made for; ValueError for another target."""
        manifest = json.loads((folder / BORROWED_DRAFT_FILE).read_text())
        if manifest["embedding_sha256"] != tensor_sha256(target.embedding.cpu()):
            raise ValueError(f"{folder} was made for another target than the one given")
        tensors = load_file(folder / "model.safetensors")
        width = json.loads((folder / "config.json").read_text()).get("intermediate_size")
        if width == getattr(target.config, "intermediate_size", None):
            width = None
        shape = Shape(tuple(manifest["layers"]), width, FUSION in tensors)
        student = cls(target, shape, tensors["head_token_ids"])
        student.load_learned(tensors)
        return student


def _level_mask(level: int, count: int, device: torch.device) -> Tensor:
    """Who sees whom at a level, counted from 0, additive, `[1, 1, count, (level + 1) * count]`.

    A query sees of level 0 all but the latest `level` positions, of each level j between one
    position, `level - j` back, and of its own level itself.
    """
    query = torch.arange(count, device=device)[:, None]
    key = torch.arange(count, device=device)[None]
    seen = [key <= query - level, *(key == query - (level - j) for j in range(1, level + 1))]
    mask = torch.zeros(1, 1, count, (level + 1) * count, device=device)
    return mask.masked_fill_(~torch.cat(seen, dim=1), torch.finfo(torch.bfloat16).min)


def _cut_config(target: Target, shape: Shape) -> Any:
    if not shape.layers or not all(0 <= x < target.layer_count for x in shape.layers):
        raise ValueError(f"layers {list(shape.layers)}: the target has {target.layer_count}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(shape.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [target.config.layer_types[layer] for layer in shape.layers]
    if shape.width is not None:
        whole = getattr(config, "intermediate_size", 0)
        if not 0 < shape.width <= whole:
            raise ValueError(f"width {shape.width}: the target's feed-forward width is {whole}")
        config.intermediate_size = shape.width
    return config


def _cut_weights(target: Target, shape: Shape) -> dict[str, Tensor]:
    """The kept layers' weights under their new numbers, and everything that is not a layer's."""
    prefix, weights = target.layer_prefix, target.weights
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for new, old in enumerate(shape.layers):
        within = f"{prefix}{old}."
        layer = {
            name.removeprefix(within): tensor
            for name, tensor in weights.items()
            if name.startswith(within)
        }
        if shape.width is not None:
            layer = _narrowed(layer, target.config.intermediate_size, shape.width)
        kept.update({f"{prefix}{new}.{name}": tensor for name, tensor in layer.items()})
    return kept


def _narrowed(layer: Mapping[str, Tensor], whole: int, width: int) -> dict[str, Tensor]:
    """A layer with the `width` feed-forward units that weigh most: the product of their norms."""
    weight = torch.ones(whole)
    inside = {name: tensor for name, tensor in layer.items() if "mlp" in name}
    for tensor in inside.values():
        for axis, size in enumerate(tensor.shape):
            if size == whole and tensor.dim() == 2:
                weight = weight * tensor.float().norm(dim=1 - axis).cpu()
    best = weight.topk(width).indices.sort().values
    narrow = dict(layer)
    for name, tensor in inside.items():
        for axis, size in enumerate(tensor.shape):
            if size == whole:
                tensor = tensor.index_select(axis, best.to(tensor.device))  # noqa: PLW2901
        narrow[name] = tensor
    return narrow


@torch.no_grad()
def frequent_ids(
    hidden: Iterable[Tensor], head: Tensor, size: int, always: Iterable[int]
) -> Tensor:
    """The `size` token ids to which the target gives most mass, those in `always` included.

    Probabilities rather than counts of what was written: they tell rare tokens apart sooner
    (after "FR-Spec", arXiv 2502.14856, which counts).

    Args:
        hidden: the target's features, `[positions, hidden]` each.
        head: the target's, `[vocab, hidden]`.
        size: how many; all ids where the vocabulary is smaller.
        always: ids that must be among them, such as the end of a turn.

    Returns:
        int64 `[size]`, ascending.
    """
    head = head.to(torch.bfloat16)
    mass = torch.zeros(len(head), device=head.device)
    for states in hidden:
        mass += torch.softmax((states.to(head) @ head.T).float(), -1).sum(0)
    mass[list(always)] = torch.inf
    return mass.argsort(descending=True, stable=True)[:size].sort().values.cpu()
