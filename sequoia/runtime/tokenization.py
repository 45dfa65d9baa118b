"""Tokenizers, loaded without their models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sequoia.runtime.catalogue import ModelError


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **gguf_arguments(folder)
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no tokenizer: {error}") from error


def tokenizer_sha256(tokenizer: Any) -> str:
    """Fingerprint of a vocabulary: equal for tokenizers that give every id the same token."""
    entries = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def end_of_text_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, as the model's generation settings and tokenizer say."""
    from transformers import GenerationConfig

    ids: set[int | None] = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
        ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(index for index in ids if index is not None)


def gguf_arguments(folder: Path) -> dict[str, str]:
    """What transformers must be told to read a folder whose weights are a GGUF file."""
    files = sorted(folder.glob("*.gguf"))
    return {"gguf_file": files[0].name} if files and not any(folder.glob("*.safetensors")) else {}
