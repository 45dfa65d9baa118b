"""This rank's shards of a model: transformers cuts and loads them, by the plan of the model's class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.loading import BROKEN_FILES
from sequoia.runtime.sharding.ranks import FLAG, Ranks
from sequoia.runtime.tokenization import gguf_arguments

HEADS = ("num_attention_heads", "num_key_value_heads")


def device_of(device: torch.device, ranks: Ranks) -> torch.device:
    """This rank's own device.

    Raises:
        ModelError: there are more ranks than GPUs, or transformers would take a GPU all the same.
    """
    if device.type != "cuda":
        if torch.accelerator.is_available():
            raise ModelError(
                f"{FLAG} with --device cpu: transformers takes the GPUs that it sees; hide them "
                "with CUDA_VISIBLE_DEVICES="
            )
        return device
    if ranks.local_size > torch.cuda.device_count():
        raise ModelError(
            f"{ranks.local_size} processes on this machine (--nproc-per-node) need a GPU each, "
            f"and it has {torch.cuda.device_count()}"
        )
    return torch.device("cuda", ranks.local_rank)


def check_shardable(folder: Path, size: int) -> None:
    """Check that a model can be shared by so many ranks.

    Raises:
        ModelError: it cannot, and why.
    """
    if gguf_arguments(folder):
        raise ModelError(f"{folder}: {FLAG} needs safetensors; this model is a GGUF file")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except BROKEN_FILES as error:
        raise ModelError(f"{folder}: {error}") from error
    text_config = config.get_text_config(decoder=True)
    if not getattr(text_config, "base_model_tp_plan", None):
        raise ModelError(
            f"{folder}: transformers has no plan to share models of type {config.model_type} "
            f"({FLAG})"
        )
    for name in HEADS:
        count = getattr(text_config, name, None)
        if isinstance(count, int) and count % size:
            raise ModelError(
                f"{folder}: {name} is {count}, which {size} processes cannot share evenly"
            )


def load_shards(folder: Path, dtype: torch.dtype, size: int) -> Any:
    """Load what this rank holds of a model; its group is there already.

    Raises:
        ModelError: the model cannot be shared, or its weights are broken or not complete.
    """
    transformers_logging.disable_progress_bar()  # stderr holds log lines only
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        plan = DistributedConfig(tp_size=size, tp_plan="auto")
    except (ImportError, TypeError) as error:
        raise ModelError(f"{FLAG} needs a later version of transformers: {error}") from error
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            distributed_config=plan,
        )
    except BROKEN_FILES as error:
        raise ModelError(f"{folder}: {error}") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"{folder}: no weights for {len(missing)} tensors, {missing[0]} first")
    return model
