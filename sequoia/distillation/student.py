"""The student: a few layers cut out of the target, its embedding borrowed, its head reduced."""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

EMBEDDING = "model.embed_tokens.weight"


class Student(nn.Module):
    """Layers `layers` of a target, its frozen embedding, and a head over `head_token_ids`.

    The head is rows of the target's own head and stays frozen too: only the layers and the final
    norm are learned, so only they need to be shipped.
    """

    def __init__(
        self,
        config: LlamaConfig,
        target: Mapping[str, Tensor],
        layers: Sequence[int],
        head_token_ids: Tensor,
    ) -> None:
        """Cut a student from `target` (its checkpoint, tensors by name).

        `head_token_ids` is int [head], ascending. ValueError for a layer the target does not have.
        """
        super().__init__()
        if not layers or not all(0 <= x < config.num_hidden_layers for x in layers):
            raise ValueError(f"layers {list(layers)}: the target has {config.num_hidden_layers}")
        self.layers = list(layers)
        self.config = copy.deepcopy(config)
        self.config.num_hidden_layers = len(layers)
        self.model = LlamaModel(self.config)
        state = {
            "embed_tokens.weight": target[EMBEDDING],
            "norm.weight": target["model.norm.weight"],
        }
        for new, old in enumerate(layers):
            prefix = f"model.layers.{old}."
            for name, tensor in target.items():
                if name.startswith(prefix):
                    state[f"layers.{new}.{name.removeprefix(prefix)}"] = tensor
        self.model.load_state_dict(state)
        self.model.embed_tokens.requires_grad_(False)
        self.head_token_ids = head_token_ids.long()
        head = target.get("lm_head.weight", target[EMBEDDING])[self.head_token_ids]
        self.head = head.to(torch.bfloat16)  # [head, hidden]
        self.embedding_sha256 = sha256(target[EMBEDDING])

    def forward(self, token_ids: Tensor) -> Tensor:
        """Normed last hidden states: [rows, tokens] -> [rows, tokens, hidden]."""
        states: Tensor = self.model(token_ids, use_cache=False).last_hidden_state
        return states

    def learned(self) -> dict[str, Tensor]:
        """The learned tensors, named as in a LlamaForCausalLM."""
        return {
            f"model.{name}": tensor.detach()
            for name, tensor in self.model.named_parameters()
            if tensor.requires_grad
        }

    def load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors as `learned` names them; KeyError when one is missing."""
        with torch.no_grad():
            for name, tensor in self.learned().items():
                tensor.copy_(tensors[name])

    def save(self, folder: Path, target_name: str) -> None:
        """Write the draft's folder: config, bf16 weights and what it borrows from its target.

        The weights are swapped in whole, so a reader never meets half a file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        config = copy.deepcopy(self.config)
        config.architectures = ["LlamaForCausalLM"]
        config.dtype = torch.bfloat16
        config.save_pretrained(partial)
        tensors = {
            name: tensor.to(torch.bfloat16).contiguous() for name, tensor in self.learned().items()
        }
        tensors["head_token_ids"] = self.head_token_ids.to(torch.int32)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        manifest = {
            "format": 1,
            "target": target_name,
            "embedding": EMBEDDING,
            "head": EMBEDDING if self.config.tie_word_embeddings else "lm_head.weight",
            "embedding_sha256": self.embedding_sha256,
            "layers": self.layers,
        }
        (partial / "sequoia_draft.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for path in partial.iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)
        partial.rmdir()

    @classmethod
    def load(cls, folder: Path, config: LlamaConfig, target: Mapping[str, Tensor]) -> "Student":
        """A saved draft, on top of the target it was made for; ValueError for another target."""
        manifest = json.loads((folder / "sequoia_draft.json").read_text())
        if manifest["embedding_sha256"] != sha256(target[EMBEDDING]):
            raise ValueError(f"{folder} was made for another target than the one given")
        tensors = load_file(folder / "model.safetensors")
        student = cls(config, target, manifest["layers"], tensors["head_token_ids"])
        student.load_learned(tensors)
        return student


def sha256(tensor: Tensor) -> str:
    """Hash of a tensor's values as contiguous little-endian float32."""
    return hashlib.sha256(tensor.float().contiguous().numpy().astype("<f4").tobytes()).hexdigest()


@torch.no_grad()
def frequent_ids(
    hidden: Iterable[Tensor], head: Tensor, size: int, always: Iterable[int]
) -> Tensor:
    """The `size` token ids to which the target gives most mass, those in `always` included.

    Probabilities rather than counts of what was written: they tell rare tokens apart sooner.
    `hidden` are the target's states [positions, hidden]; `head` is its head [vocab, hidden].
    Returns int64 [size], ascending.
    """
    head = head.to(torch.bfloat16)
    mass = torch.zeros(len(head))
    for states in hidden:
        mass += torch.softmax((states.to(head.dtype) @ head.T).float(), -1).sum(0)
    mass[list(always)] = torch.inf
    return mass.argsort(descending=True, stable=True)[:size].sort().values
