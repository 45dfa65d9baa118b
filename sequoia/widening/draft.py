"""The target's draft, for the wide target: as small as before.

A borrowed draft stays one (`sequoia.runtime.loading`): its embedding and head are the first columns of
the wide ones. What is new in its folder is the hash of these, and a fusion that reads wide features and
gives no weight to what is zero in them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.loading import (
    BORROWED_DRAFT_FILE,
    BROKEN_FILES,
    FUSION,
    BorrowedDraft,
    borrowed_embedding,
    tensor_sha256,
)
from sequoia.widening.placement import padded_columns
from sequoia.widening.shapes import Shape
from sequoia.widening.source import Source


def widen_draft(
    draft: Path, source: Source, wide: Shape, dtype: torch.dtype, folder: Path, target: str
) -> bool:
    """Write the folder of a draft for the wide target.

    Args:
        draft: the folder of a draft for the source.
        source: the target that is widened.
        wide: its new shape.
        dtype: the wide target's element type, which is also that of what is borrowed.
        folder: to be made.
        target: what the draft's description calls the wide target.

    Returns:
        Whether there was anything to write: a model of its own goes with the wide target as it is.

    Raises:
        ModelError: the draft was made for another target, or its files are broken.
    """
    borrowed = BorrowedDraft.read(draft)
    if borrowed is None:
        return False
    try:
        config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
        width = int(config["hidden_size"])
        embedding = borrowed_embedding(draft, borrowed, source.folder, width).to(dtype)
        tensors = load_file(draft / "model.safetensors")
        if FUSION in tensors:
            read = tensors[FUSION].shape[1] - width
            if read != source.shape.hidden:
                raise ModelError(
                    f"{draft}: reads features of {read} elements, {source.folder} gives "
                    f"{source.shape.hidden}"
                )
            tensors[FUSION] = padded_columns(tensors[FUSION], width + wide.hidden)
        description = json.loads((draft / BORROWED_DRAFT_FILE).read_text(encoding="utf-8"))
    except BROKEN_FILES as error:
        raise ModelError(f"{draft}: {error}") from error
    description |= {"target": target, "embedding_sha256": tensor_sha256(embedding)}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    text = json.dumps(description, indent=2) + "\n"
    (folder / BORROWED_DRAFT_FILE).write_text(text, encoding="utf-8")
    return True
