"""llama.cpp through llama-cpp-python, alone and with its own prompt lookup."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sequoia.bench.errors import UnavailableError
from sequoia.bench.peers.runs import Prompt, Run

# "10 is the default and generally good for gpu, 2 performs better for cpu-only machines", says its
# documentation.
PROMPT_LOOKUP_TOKENS = {"cpu": 2, "cuda": 10}


def require_llama_cpp(device: str) -> None:
    """Check that it is installed, and for the device that all others run on.

    Raises:
        UnavailableError: it is not.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise UnavailableError("llama-cpp-python is not installed (pip install 'sequoia[peers]')")
    if device == "cuda":
        import llama_cpp

        if not llama_cpp.llama_supports_gpu_offload():
            raise UnavailableError("this build of llama-cpp-python does not use the GPU")


@dataclass(frozen=True, slots=True)
class MakeLlamaCppPeer:
    """How to make the peer in its process.

    Attributes:
        file: the weights.
        context: tokens of the longest prompt with its continuation.
        device: `cpu` or `cuda`.
        with_extra_buffers: whether weights may be repacked for this CPU, as llama.cpp does by itself.
    """

    file: Path
    context: int
    device: str
    threads: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    with_extra_buffers: bool = True

    def __call__(self) -> LlamaCppPeer:
        """The peer; it loads the weights as they are asked for."""
        return LlamaCppPeer(self)


class LlamaCppPeer:
    """A model that generates with and without prompt lookup."""

    def __init__(self, settings: MakeLlamaCppPeer) -> None:
        if not settings.with_extra_buffers:
            _forbid_extra_buffers()
        self._settings = settings
        self._models: dict[bool, CountingLlama] = {}

    def generate(self, with_lookup: bool, prompt: Prompt) -> Run:
        """Continue a prompt."""
        if with_lookup not in self._models:
            self._models[with_lookup] = CountingLlama(self._settings, with_lookup)
        return self._models[with_lookup].generate(prompt)


def _forbid_extra_buffers() -> None:
    """Have models loaded without repacked weights: llama-cpp-python has no argument for it."""
    from llama_cpp import llama_cpp

    bindings: Any = llama_cpp
    defaults = bindings.llama_model_default_params

    def plain() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    bindings.llama_model_default_params = plain


class CountingLlama:
    """One model of llama.cpp, and the passes that it has made."""

    def __init__(self, settings: MakeLlamaCppPeer, with_lookup: bool) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        make: Any = Llama
        self._settings = settings
        lookup_tokens = PROMPT_LOOKUP_TOKENS[settings.device]
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=lookup_tokens) if with_lookup else None
        self._model = make(
            str(settings.file),
            n_ctx=settings.context + lookup_tokens,
            n_threads=settings.threads,
            n_threads_batch=settings.threads,
            n_gpu_layers=-1 if settings.device == "cuda" else 0,
            draft_model=lookup,
            verbose=False,
        )
        self._steps = 0
        evaluate = self._model.eval

        def counted(tokens: Any) -> None:
            self._steps += 1
            evaluate(tokens)

        self._model.eval = counted

    def generate(self, prompt: Prompt) -> Run:
        """Continue a prompt, reading all of it: what earlier prompts left in the cache is dropped."""
        token_ids: list[int] = []
        self._steps = 0
        self._model.reset()
        started = time.perf_counter()
        for token_id in self._model.generate(
            list(prompt.token_ids),
            temp=self._settings.temperature,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repeat_penalty=1.0,
        ):
            token_ids.append(token_id)
            if token_id in self._settings.stop_token_ids or len(token_ids) == prompt.max_new_tokens:
                break
        return Run(tuple(token_ids), time.perf_counter() - started, self._steps)
