"""From a model reference to a model that runs: safetensors or GGUF, any transformers decoder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.tokenization import gguf_arguments

BORROWED_DRAFT_FILE = "sequoia_draft.json"
BORROWED_DRAFT_FORMAT = 1
FUSION = "fusion.weight"
# What broken files make safetensors, transformers and torch raise.
BROKEN_FILES = (
    *(OSError, ValueError, KeyError, IndexError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class BorrowedDraft:
    """What a draft without an embedding of its own says of the target that it borrows from."""

    target: str
    embedding: str
    head: str
    embedding_sha256: str

    @classmethod
    def read(cls, folder: Path) -> BorrowedDraft | None:
        """The description in a draft's folder; None for an ordinary model.

        Raises:
            ModelError: the description is not valid.
        """
        path = folder / BORROWED_DRAFT_FILE
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["format"] != BORROWED_DRAFT_FORMAT:
                raise ModelError(
                    f"{path}: format {fields['format']} is not {BORROWED_DRAFT_FORMAT}"
                )
            return cls(**{name: str(fields[name]) for name in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: not a draft description: {error!r}") from error


def choose_device(device: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ModelError: cuda was asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but no CUDA device is present")
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The element type for `auto` (bfloat16 on a GPU, float32 on a CPU) or a name."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> TreeModel:
    """Load an ordinary model folder, ready for tree passes.

    Raises:
        ModelError: the folder holds no decoder, or its weights are broken or not complete.
    """
    transformers_logging.disable_progress_bar()  # stderr holds log lines only
    options: dict[str, Any] = {"output_loading_info": True, **gguf_arguments(folder)}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except BROKEN_FILES as error:
        if "trust_remote_code" in str(error):  # its advice is none that we take
            raise ModelError(f"{folder}: needs code of its own, which is never run") from error
        raise ModelError(f"{folder}: {error}") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers fills them with noise.
        raise ModelError(f"{folder}: no weights for {len(missing)} tensors, {missing[0]} first")
    return TreeModel(model.to(device))


def load_draft(
    folder: Path, target_folder: Path | None, dtype: torch.dtype, device: torch.device
) -> TreeModel:
    """Load a draft, with the embedding and head of its target where it has none of its own.

    Raises:
        ModelError: the draft was made for another target, or its files are not as described.
    """
    borrowed = BorrowedDraft.read(folder)
    if borrowed is None:
        return load_model(folder, dtype, device)
    if target_folder is None:
        raise ModelError(f"{folder}: this draft borrows from {borrowed.target}: name its target")
    try:
        model, token_ids, fusion = _assemble(folder, borrowed, target_folder, dtype)
    except BROKEN_FILES as error:
        raise ModelError(f"{folder}: {error}") from error
    if fusion is not None:
        fusion.to(device)
    return TreeModel(model.to(device), token_ids.to(device), fusion)


def _assemble(
    folder: Path, borrowed: BorrowedDraft, target_folder: Path, dtype: torch.dtype
) -> tuple[Any, Tensor, torch.nn.Linear | None]:
    """A draft's layers between its target's embedding and head, the ids of the head's rows, its fusion."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.tie_word_embeddings = False
    # Made in its type rather than cast: the tables of rotary positions stay in fp32.
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    width = model.get_input_embeddings().weight.shape[1]
    embedding = borrowed_embedding(folder, borrowed, target_folder, width)
    weights = _read_tensors(folder / "model.safetensors")
    token_ids = weights.pop("head_token_ids").long()
    head = weights.pop("lm_head.weight", None)
    if head is None:
        width = model.get_output_embeddings().weight.shape[1]
        head = _read_tensor(target_folder, borrowed.head)[token_ids, :width]
    fusion = None
    if (fusion_weight := weights.pop(FUSION, None)) is not None:
        size, read = fusion_weight.shape
        fusion = torch.nn.Linear(read, size, bias=False, dtype=dtype)
        fusion.load_state_dict({"weight": fusion_weight})
    output = torch.nn.Linear(head.shape[1], head.shape[0], bias=False, dtype=dtype)
    model.set_output_embeddings(output)
    weights[_name_of(model, model.get_input_embeddings().weight)] = embedding
    weights[_name_of(model, output.weight)] = head
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ModelError(f"{folder}: weights missing {missing}, unexpected {unexpected}")
    return model, token_ids, fusion


def borrowed_embedding(
    folder: Path, borrowed: BorrowedDraft, target_folder: Path, width: int
) -> Tensor:
    """What a draft borrows of its target's embedding, `[vocabulary, width]`.

    The draft of a widened target is narrower than this: beyond its own width there are zeros only.

    Raises:
        ModelError: the draft was made for another target.
    """
    embedding = _read_tensor(target_folder, borrowed.embedding)[:, :width]
    if tensor_sha256(embedding) != borrowed.embedding_sha256:
        raise ModelError(
            f"{folder}: made for {borrowed.target}; the embedding of {target_folder} is another"
        )
    return embedding


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of a tensor's values as little-endian fp32."""
    return hashlib.sha256(tensor.float().contiguous().numpy().tobytes()).hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping


def _read_tensor(folder: Path, name: str) -> Tensor:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 not a mapping
                tensor: Tensor = file.get_tensor(name)
                return tensor
    raise ModelError(f"{folder}: no tensor {name} in its safetensors files")


def _name_of(model: Any, parameter: Tensor) -> str:
    return next(str(name) for name, value in model.named_parameters() if value is parameter)
