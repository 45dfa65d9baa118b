"""One request's state on a worker: soft, since it can be rebuilt anywhere from its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from sequoia.errors import MalformedTreeError, StaleStepError
from sequoia.messages import Features, SessionSettings, StepHeader
from sequoia.runtime.cache import KVCache
from sequoia.tree import ROOT_ONLY, Tree, TreeError

Reply = TypeVar("Reply")


@dataclass(slots=True, eq=False)
class Session(Generic[Reply]):
    """One request's state on a worker.

    `token_ids` are the committed tokens. The cache holds rows for a prefix of them and, behind
    that, the rows of the last tree: node i in row `node_rows[i]`, where it was forwarded at all.
    """

    session_id: str
    settings: SessionSettings
    token_ids: list[int]
    next_step: int
    # What a feature-conditioned draft reads at the committed tokens that are not cached yet.
    features: Tensor | None = None  # [uncached tokens, hidden]
    # The model's own features of the cached tokens, in parts, for whoever shares them later.
    features_given: list[Features] | None = None  # each [tokens, hidden]; None: not kept
    tree_features: Features | None = None  # of the last tree's nodes, [nodes, hidden]
    cache: KVCache = field(default_factory=KVCache)
    tree: Tree | None = None
    node_rows: dict[int, int] = field(default_factory=dict)
    last_reply: Reply | None = None
    step_count: int = 0
    largest_batch: int = 0
    is_prefilling: bool = False  # not all of the prompt has been read
    reused_count: int = 0  # tokens of the prompt that another session had read
    # The table's notes; nobody else writes them.
    user_count: int = 0
    is_closing: bool = False  # to be freed as soon as nobody uses it
    is_finished: bool = False  # closed by whoever opened it: what it has read may serve others
    last_used: float = 0.0
    counted_bytes: int = 0

    def repeated(self, header: StepHeader) -> Reply | None:
        """The reply of the last step if this call repeats it.

        Raises:
            StaleStepError: the step is neither the last one nor the next, or comes before the end
                of the prefill.
        """
        if self.is_prefilling:
            raise StaleStepError(
                f"step {header.step} of session {self.session_id}: its prefill is not over",
                field="header.step",
            )
        if header.step == self.next_step - 1 and self.last_reply is not None:
            return self.last_reply
        if header.step != self.next_step:
            raise StaleStepError(
                f"step {header.step} of session {self.session_id}: expected {self.next_step}",
                field="header.step",
                limit=self.next_step,
                value=header.step,
            )
        return None

    def advance(self, header: StepHeader, root_token_id: int) -> None:
        """Commit what the last step accepted and the new root; keep only the rows of what stays.

        Raises:
            StaleStepError: the base length contradicts what the session holds.
            MalformedTreeError: the accepted nodes are not a path of the last tree.
        """
        expected = len(self.token_ids) + (len(header.accepted_nodes) + 1 if self.tree else 0)
        if header.base_length != expected:
            raise StaleStepError(
                f"base length {header.base_length} of session {self.session_id}: "
                f"the session is at {expected}",
                field="header.base_length",
                limit=expected,
                value=header.base_length,
            )
        topology = self.tree.topology if self.tree else ROOT_ONLY
        try:
            topology.require_path(header.accepted_nodes)
        except TreeError as error:
            raise MalformedTreeError(str(error), field="header.accepted_node_indices") from error
        if self.tree is None:
            if self.token_ids[-1] != root_token_id:
                raise StaleStepError(
                    f"root token {root_token_id}: the session ends with {self.token_ids[-1]}",
                    field="root_token_id",
                    limit=self.token_ids[-1],
                )
            return
        path = [self.tree.token_ids[node] for node in header.accepted_nodes]
        self._keep_path(header.accepted_nodes)
        self.token_ids += [*path, root_token_id]

    def drop_tree(self) -> None:
        """Keep what is committed alone: nobody has said what the last step accepted."""
        if self.tree is not None:
            self._keep_path(())

    def _keep_path(self, accepted: tuple[int, ...]) -> None:
        """Keep rows and features of the last tree's root and of the accepted nodes, no others."""
        # Roots of trees that had no other node may not have been read by a draft.
        start = min(len(self.token_ids) - 1, self.cache.length)
        path = [0, *accepted]
        self.cache.keep(start, [self.node_rows[node] for node in path if node in self.node_rows])
        if self.features_given is not None and self.tree_features is not None:
            self.features_given.append(self.tree_features[path])
        self.tree, self.node_rows, self.tree_features = None, {}, None

    def finish_step(self, header: StepHeader, tree: Tree, reply: Reply, batch_size: int) -> None:
        """Remember the tree and the reply until the next step; `batch_size` sessions shared it."""
        self.step_count += 1
        self.largest_batch = max(self.largest_batch, batch_size)
        self.tree = tree
        self.last_reply = reply
        self.next_step = header.step + 1
