"""One pass over the trees of several sessions: any transformers decoder, with a tree mask.

A draft may also be *feature-conditioned* (Li et al., "EAGLE", arXiv 2401.15077): beside the token at a
position it reads the target's feature of the position before, that is the hidden state from which the
target's output layer made its distribution.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sequoia.messages import PREFILL_CHUNK
from sequoia.runtime.cache import KVCache
from sequoia.runtime.native.decoder import NativeDecoder
from sequoia.runtime.pass_cache import Homes, OnDevice, PassCache, cache_argument
from sequoia.runtime.segment import Segment


class PassOutput(NamedTuple):
    """What a pass says of some rows."""

    logits: Tensor  # fp32 [rows, output rows]
    features: Tensor  # [rows, hidden], what the output layer reads


class TreeModel:
    """A decoder that runs segments; the only place that knows how transformers wants its inputs.

    `token_ids` maps the rows of a reduced output layer to the vocabulary; None for a full one.
    `fusion` makes the input of a feature-conditioned draft's first layer from the token's embedding
    and the feature, end to end; None for a model that reads tokens alone. `feature_size` counts the
    elements of the features that the model reads, or else of those that it makes; `hidden_size` those
    of the ones that it makes. A draft for a widened target reads wider ones than it makes, and takes
    its own with zeros behind them, as that target's are. `placement` says where the weights are,
    `on-chip` or `offload`, `shard_count` how many processes share them, `homes` where keys and values are,
    and `pass_seconds` what a pass over a few tokens took when that was tried.
    """

    def __init__(
        self, model: Any, token_ids: Tensor | None = None, fusion: nn.Linear | None = None
    ) -> None:
        self.model = model.eval()
        self.placement = "on-chip"
        self.shard_count = 1
        self.homes: Homes = OnDevice()
        self.pass_seconds = 0.0
        self.token_ids = token_ids
        self.reads_features = fusion is not None
        self.hidden_size = int(model.get_output_embeddings().weight.shape[1])
        self.feature_size = (
            self.hidden_size
            if fusion is None
            else int(fusion.in_features - model.get_input_embeddings().weight.shape[1])
        )
        if fusion is not None:
            model.add_module("fusion", fusion)  # to be moved and packed with the rest
        text_config = model.config.get_text_config(decoder=True)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.context_length = int(getattr(text_config, "max_position_embeddings", 0) or 2**31 - 1)
        self.embedding_size = int(model.get_input_embeddings().weight.shape[0])
        self.vocabulary_size = (
            int(model.get_output_embeddings().weight.shape[0])
            if token_ids is None
            else int(token_ids.max()) + 1
        )
        self._window: int | None = getattr(text_config, "sliding_window", None)
        if getattr(text_config, "use_sliding_window", True) is False:
            self._window = None
        self.layer_types = frozenset(
            (
                *(getattr(text_config, "layer_types", None) or ()),
                *(getattr(text_config, "attention_layers", None) or ()),  # GPT-Neo's word
            )
        )
        parameters = inspect.signature(model.forward).parameters
        self._trims_logits = "logits_to_keep" in parameters
        self._cache_argument = cache_argument(model)
        self._native: NativeDecoder | None = None
        self._features: Tensor | None = None  # of the last pass, [segments, width, hidden]
        model.get_decoder().register_forward_hook(self._take_features)

    @property
    def engine(self) -> str:
        """What runs the passes: `native` or `transformers`."""
        return "transformers" if self._native is None else "native"

    def compile(self, threads: int) -> None:
        """Hand the weights to the compiled engine; from now on that runs every pass.

        Raises:
            NativeUnavailableError: there is none for this machine or this model.
        """
        fusion = self.model.fusion if self.reads_features else None
        self._native = NativeDecoder(self.model, fusion, threads)

    def end(self) -> None:
        """Let other processes that share the model end; here there are none."""

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], with_logits: bool = True) -> list[PassOutput]:
        """Run one pass; the caches' new rows become valid.

        Returns:
            Per segment, what the pass says of its new rows; the logits are empty without logits.
        """
        if self._native is not None:
            return self._run_native(self._native, segments, with_logits)
        counts = [len(segment.token_ids) for segment in segments]
        width = max(counts)
        token_ids = torch.zeros(len(segments), width, dtype=torch.long)
        positions = torch.zeros(len(segments), width, dtype=torch.long)
        for row, segment in enumerate(segments):
            token_ids[row, : counts[row]] = torch.as_tensor(segment.token_ids)
            positions[row, : counts[row]] = torch.as_tensor(segment.positions)
        # Ids beyond a smaller embedding cannot be read; a draft then guesses from another token.
        token_ids.clamp_(max=self.embedding_size - 1)
        arguments: dict[str, Any] = {"logits_to_keep": 1} if self._trims_logits else {}
        caches = [segment.cache for segment in segments]
        with self.homes.serving(caches, counts):
            output = self.model(
                **self._inputs(token_ids, [segment.features for segment in segments]),
                position_ids=positions.to(self.device),
                attention_mask=self._masks(segments, width),
                use_cache=True,
                **{self._cache_argument: PassCache(caches, counts, self.homes)},
                **({} if with_logits else arguments),
            )
        features = self._taken()
        for segment, count in zip(segments, counts, strict=True):
            segment.cache.length += count
        logits = output.logits if with_logits else output.logits[:, :0]
        return [
            PassOutput(logits[row, :count].float(), features[row, :count])
            for row, count in enumerate(counts)
        ]

    def _run_native(
        self, native: NativeDecoder, segments: Sequence[Segment], with_logits: bool
    ) -> list[PassOutput]:
        if any(max(segment.token_ids) >= self.embedding_size for segment in segments):
            segments = [self._readable(segment) for segment in segments]
        logits, features = native.run(segments, with_logits)
        outputs, start = [], 0
        for segment in segments:
            rows = slice(start, start := start + len(segment.token_ids))
            outputs.append(PassOutput(logits[rows], features[rows]))
        return outputs

    def _readable(self, segment: Segment) -> Segment:
        """Ids beyond a smaller embedding cannot be read; a draft then guesses from another token."""
        last = self.embedding_size - 1
        return replace(segment, token_ids=[min(token_id, last) for token_id in segment.token_ids])

    def prefill(
        self, cache: KVCache, token_ids: Sequence[int], features: Tensor | None = None
    ) -> Tensor:
        """Append tokens to a cache, in chunks that bound the memory of a pass.

        Args:
            cache: to append to.
            token_ids: the tokens.
            features: as in `Segment`, `[tokens, hidden]`.

        Returns:
            The tokens' own features, `[tokens, hidden]`.
        """
        made = [torch.empty(0, self.hidden_size, dtype=self.dtype, device=self.device)]
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            part = slice(start, start + PREFILL_CHUNK)
            read = None if features is None else features[part]
            (output,) = self.forward(
                [Segment.chain(cache, token_ids[part], read)], with_logits=False
            )
            made.append(output.features)
        return torch.cat(made)

    @torch.inference_mode()
    def plain_ends(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind the last token of each of several sequences, fp32 `[sequences, output rows]`.

        One pass, which runs as transformers has it. Shorter sequences are filled up behind their
        ends, where a causal model does not look. Features count as zeros.
        """
        ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
        token_ids = torch.zeros(len(sequences), int(ends.max()) + 1, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            token_ids[row, : len(sequence)] = torch.tensor(sequence)
        logits: Tensor = self.model(**self._inputs(token_ids, []), use_cache=False).logits
        self._taken()
        return logits[torch.arange(len(sequences)), ends].float()

    @torch.inference_mode()
    def plain(self, token_ids: Sequence[int], features: Tensor | None = None) -> PassOutput:
        """One whole sequence, arguments as `prefill`'s.

        It runs as transformers has it, without our cache and mask, until `compile`.
        """
        if self._native is not None:
            (output,) = self.forward([Segment.chain(KVCache(), token_ids, features)])
            return output
        inputs = self._inputs(torch.tensor([token_ids]), [features])
        logits: Tensor = self.model(**inputs, use_cache=False).logits[0].float()
        return PassOutput(logits, self._taken()[0])

    def _inputs(self, token_ids: Tensor, features: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """What the model reads: ids `[segments, width]`, or their embeddings fused with features."""
        token_ids = token_ids.to(self.device)
        if not self.reads_features:
            return {"input_ids": token_ids}
        embedded = self.model.get_input_embeddings()(token_ids)
        read = embedded.new_zeros(*token_ids.shape, self.feature_size)
        for row, some in enumerate(features):
            if some is not None:
                read[row, : len(some), : some.shape[-1]] = some
        return {"inputs_embeds": self.model.fusion(torch.cat([embedded, read], -1))}

    def _take_features(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        self._features = output.last_hidden_state

    def _taken(self) -> Tensor:
        """The features of the pass that has just run, not held any longer than they are needed."""
        features, self._features = self._features, None
        if features is None:
            raise TypeError("the model's decoder hands out no last hidden state")
        return features

    def _masks(self, segments: Sequence[Segment], width: int) -> Tensor | dict[str, Tensor]:
        full = self._mask(segments, width, None)
        if self._window is None or self.layer_types == {"full_attention"}:
            return full
        sliding = self._mask(segments, width, self._window)
        if len(self.layer_types) > 1:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding

    def _mask(self, segments: Sequence[Segment], width: int, window: int | None) -> Tensor:
        """Additive mask `[segments, 1, width, keys]`: 0 where a row may look, else the least."""
        keys = max(segment.visible.shape[1] for segment in segments)
        allowed = np.zeros((len(segments), 1, width, keys), dtype=np.bool_)
        for row, segment in enumerate(segments):
            visible = segment.visible
            if window is not None:
                distance = np.asarray(segment.positions)[:, None] - segment.key_positions[None, :]
                visible = visible & (distance < window)
            allowed[row, 0, : visible.shape[0], : visible.shape[1]] = visible
        least = torch.finfo(self.dtype).min
        mask = torch.zeros(allowed.shape, dtype=self.dtype)
        mask.masked_fill_(torch.from_numpy(~allowed), least)
        return mask.to(self.device)
