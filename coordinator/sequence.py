"""One request's truth: its tokens, what was shown of them, and whether it is finished."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from coordinator.acceptance import Acceptance
from coordinator.features import FeatureHistory
from coordinator.prompt import PreparedRequest
from coordinator.step import StepState
from coordinator.text import Decode, TextStream
from sequoia.errors import IncompatibleModelsError
from sequoia.generation import Completion, FinishReason, GeneratedToken, GenerationChunk, Usage
from sequoia.messages import GrownTree, Prefilled, Verdict


class Sequence:
    """Grows step by step until a stop token, a stop string or the length ends it."""

    def __init__(self, request: PreparedRequest, decode: Decode) -> None:
        self.request = request
        self.session_id = uuid.uuid4().hex
        self.token_ids = list(request.prompt_token_ids)
        self.finish_reason: FinishReason | None = None
        self.step = 0
        self.features = FeatureHistory()
        self._reader = ""  # the target that the text is of
        self._unshown: list[GeneratedToken] = []  # committed by the last step
        self._accepted: tuple[int, ...] = ()
        self._text = TextStream(decode, request.stop_strings)
        self._started = time.perf_counter()
        self.queued_seconds = 0.0
        self._seconds_to_first_token = 0.0
        self._drafted = 0
        self._accepted_count = 0
        self._draft_seconds = 0.0
        self._target_seconds = 0.0
        self._largest_node_count = 1

    @property
    def generated_count(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def remaining_count(self) -> int:
        """Tokens that may still be generated."""
        return self.request.max_new_tokens - self.generated_count

    @property
    def root_token_id(self) -> int:
        """The last committed token."""
        return self.token_ids[-1]

    @property
    def root_position(self) -> int:
        """Absolute position of the last committed token."""
        return len(self.token_ids) - 1

    @property
    def state(self) -> StepState:
        """What the target needs to know for the next step."""
        return StepState(self.step, tuple(self.token_ids), self._accepted)

    @property
    def draft_state(self) -> StepState:
        """The same for a draft that reads features."""
        return replace(self.state, features=self.features.rows)

    def begin(self) -> None:
        """The request's turn has come; until now it was queued."""
        self.queued_seconds = time.perf_counter() - self._started

    def prefilled(self, prefilled: Prefilled) -> None:
        """The target has read all tokens but the last, for the first time or again.

        Raises:
            IncompatibleModelsError: it was another one that said the text so far.
        """
        reader = f"model {prefilled.model_sha256[:16]} in {prefilled.dtype}"
        if self._reader not in ("", reader):
            raise IncompatibleModelsError(
                f"the target was replaced in the middle of a text: {self._reader} began it, and "
                f"{reader} is there now; asked again, it says the whole of it",
                model=reader,
            )
        self._reader = reader
        if prefilled.features is not None:
            self.features.restart(prefilled.features)

    def commit(self, grown: GrownTree, verdict: Verdict, acceptance: Acceptance) -> None:
        """Commit a step's tokens, up to the first that ends the sequence; `show` comes next."""
        self.step += 1
        self._accepted = acceptance.nodes
        self._count(grown, verdict)
        if verdict.features is not None:
            self.features.append(verdict.features[[0, *acceptance.nodes]])
        for token in acceptance.tokens:
            self.token_ids.append(token.token_id)
            self._unshown.append(token)
            if token.token_id in self.request.stop_token_ids:
                self.finish_reason = FinishReason.STOP
            elif self.remaining_count <= 0:
                self.finish_reason = FinishReason.LENGTH
            if self.finish_reason is not None:
                break

    def show(self) -> GenerationChunk:
        """What to show of the tokens committed last; a stop string takes back those behind it."""
        tokens, self._unshown = self._unshown, []
        text = ""
        for count, token in enumerate(tokens, start=1):
            if token.token_id not in self.request.stop_token_ids:
                text += self._text.push(token.token_id)
            if self._text.stop_string:
                self.finish_reason = FinishReason.STOP_STRING
                del self.token_ids[len(self.token_ids) - (len(tokens) - count) :]
                tokens = tokens[:count]
                break
        if self.finish_reason is not None:
            text += self._text.flush()
        self._accepted_count += min(len(self._accepted), len(tokens))
        return GenerationChunk(text, tuple(tokens))

    def _count(self, grown: GrownTree, verdict: Verdict) -> None:
        nodes = grown.tree.topology.node_count
        self._drafted += nodes - 1
        self._draft_seconds += grown.device_seconds
        self._target_seconds += verdict.device_seconds
        self._largest_node_count = max(self._largest_node_count, nodes)
        if self.step == 1:
            self._seconds_to_first_token = time.perf_counter() - self._started

    def cancel(self) -> GenerationChunk:
        """End the sequence as it stands; returns the text that was still held back."""
        self.finish_reason = FinishReason.CANCELLED
        return GenerationChunk(self._text.flush())

    def completion(self, waited_seconds: float, plan_version: int) -> Completion:
        """The end of the stream.

        Args:
            waited_seconds: time spent waiting for workers, device time included.
            plan_version: of the plan in force.
        """
        if self.finish_reason is None:
            raise ValueError("the sequence is not finished")
        on_devices = self._draft_seconds + self._target_seconds
        usage = Usage(
            prompt_token_count=len(self.request.prompt_token_ids),
            completion_token_count=self.generated_count,
            step_count=self.step,
            drafted_token_count=self._drafted,
            accepted_token_count=self._accepted_count,
            draft_seconds=self._draft_seconds,
            target_seconds=self._target_seconds,
            transport_seconds=max(waited_seconds - on_devices, 0.0),
            total_seconds=time.perf_counter() - self._started,
            seconds_to_first_token=self._seconds_to_first_token,
            plan_version=plan_version,
            largest_node_count=self._largest_node_count,
            queued_seconds=self.queued_seconds,
        )
        return Completion(self.finish_reason, usage, self._text.stop_string)
