"""Which model a folder holds, whatever the folder is called."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sequoia.runtime.loading import BORROWED_DRAFT_FILE

DESCRIPTIONS = ("config.json", BORROWED_DRAFT_FILE)
# What the library that wrote a config.json notes of itself and of its own paths.
NOTES = ("transformers_version", "_name_or_path")
HEAD_BYTES = 64 * 2**10
BLOCK_BYTES = 4 * 2**10
BLOCK_COUNT = 64  # of each file


def model_sha256(folder: Path, *lenders: Path) -> str:
    """Fingerprint of a model: equal for copies in other folders, in milliseconds for any size.

    It covers the description and, of each weight file, the size, the beginning (where safetensors and
    GGUF list tensors, types and shapes) and 64 blocks of 4 KiB spread over all of it. Other training,
    another element type, another architecture, a torn or exchanged file are noticed. What is not: a change
    that leaves sizes and all of those blocks as they are, such as of a few tensors of a large file, or one
    that somebody made to go unnoticed. The same weights in other files (other shards, GGUF instead of
    safetensors) count as another model.

    Args:
        folder: of the model.
        lenders: folders of models that it borrows weights from.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for one in (folder, *lenders):
        digest.update(_folder_digest(one))
    return digest.hexdigest()


def _folder_digest(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for name in DESCRIPTIONS:
        path = folder / name
        digest.update(_description(path) if path.is_file() else b"")
        digest.update(b"\0")
    # As they are chosen for loading: a GGUF file beside safetensors is not read.
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf"))
    for path in weights:
        digest.update(_samples_digest(path))
    return digest.digest()


def _description(path: Path) -> bytes:
    """What a description says, the order of its fields and the notes left out."""
    content = path.read_bytes()
    try:
        fields = json.loads(content)
    except ValueError:  # what reads it next says so
        return content
    if isinstance(fields, dict):
        fields = {name: value for name, value in fields.items() if name not in NOTES}
    return json.dumps(fields, sort_keys=True).encode()


def _samples_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    last = max(size - BLOCK_BYTES, 0)
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(HEAD_BYTES))
        for index in range(BLOCK_COUNT):
            file.seek(last * index // (BLOCK_COUNT - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.digest()
