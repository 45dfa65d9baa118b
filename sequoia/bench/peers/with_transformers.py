"""`transformers.generate`, alone, assisted by a draft, and with prompt lookup."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sequoia.bench.errors import UnavailableError
from sequoia.bench.peers.assistant import load_assistant
from sequoia.bench.peers.runs import Prompt, Run
from sequoia.runtime.catalogue import ModelError, resolve
from sequoia.runtime.loading import choose_device, choose_dtype
from sequoia.runtime.tokenization import gguf_arguments

PROMPT_LOOKUP_TOKENS = 10  # what the documentation of transformers shows


@dataclass(frozen=True, slots=True)
class MakeTransformersPeer:
    """How to make the peer in its process."""

    target: str
    dtype: str
    device: str
    threads: int
    temperature: float
    stop_token_ids: tuple[int, ...]

    def __call__(self) -> TransformersPeer:
        """Load the target."""
        return TransformersPeer(self)


class TransformersPeer:
    """One target that generates in several ways."""

    def __init__(self, settings: MakeTransformersPeer) -> None:
        from transformers import AutoModelForCausalLM

        set_up_transformers(settings.threads)
        folder = resolve(settings.target)
        self._settings = settings
        self._device = choose_device(settings.device)
        self._dtype = choose_dtype(settings.dtype, self._device)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=self._dtype, trust_remote_code=False, **gguf_arguments(folder)
        )
        self._model = loaded.to(self._device).eval()
        self._steps = 0
        self._model.register_forward_pre_hook(self._count)
        self._extra: dict[str, dict[str, Any]] = {
            "plain": {},
            "prompt-lookup": {"prompt_lookup_num_tokens": PROMPT_LOOKUP_TOKENS},
        }

    def add_assistant(self, way: str, reference: str) -> None:
        """Make another way of generating available, assisted by this draft.

        Raises:
            UnavailableError: transformers cannot take the draft.
        """
        vocabulary_size = self._model.get_output_embeddings().weight.shape[0]
        try:
            assistant = load_assistant(
                reference, self._settings.target, vocabulary_size, self._dtype, self._device
            )
        except ModelError as error:
            raise UnavailableError(str(error)) from error
        self._extra[way] = {"assistant_model": assistant}

    def generate(self, way: str, prompt: Prompt) -> Run:
        """Continue a prompt; `way` is `plain`, `prompt-lookup`, or one that was added."""
        self._steps = 0
        started = time.perf_counter()
        token_ids = continue_prompt(
            self._model,
            prompt,
            self._settings.temperature,
            self._settings.stop_token_ids,
            **self._extra[way],
        )
        return Run(token_ids, time.perf_counter() - started, self._steps)

    @torch.inference_mode()
    def leads(self, token_ids: Sequence[int], other: int) -> tuple[float, float]:
        """After `token_ids`, how far the first token's logit is ahead of the second's and of `other`'s."""
        logits = self._model(torch.tensor([token_ids], device=self._device)).logits[0, -1].float()
        first, second = logits.topk(2).values.tolist()
        return first - second, first - float(logits[other])

    def _count(self, _module: Any, _arguments: Any) -> None:
        self._steps += 1


def set_up_transformers(threads: int) -> None:
    """Have a process compute with so many threads, and say nothing while it loads a model."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(threads)


def continue_prompt(
    model: Any, prompt: Prompt, temperature: float, stop_token_ids: Sequence[int], **extra: Any
) -> tuple[int, ...]:
    """What `generate` adds to a prompt; `extra` are more of its arguments."""
    ids = torch.tensor([prompt.token_ids], device=model.device)
    drawing: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=prompt.max_new_tokens,
        eos_token_id=list(stop_token_ids),
        pad_token_id=stop_token_ids[0],
        **drawing,
        **extra,
    )
    return tuple(output[0, ids.shape[1] :].tolist())
