"""What the paper and its authors report, to stand beside what is measured here.

Sources: Sequoia (arXiv 2402.12374) and the acceptance vector that its authors publish with their code.
Their models and hardware are others, so these figures show shapes to expect and no mark to hit.
"""

from __future__ import annotations

from sequoia.bench.report import Table

TREE_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
TREE_TOKENS = (2.2914, 2.7322, 3.1303, 3.5007, 3.8523, 4.208, 4.551, 4.894, 5.227)
"""Expected tokens per step of the best trees for the published acceptance vector.

Up to 64 nodes with at most 10 levels, beyond with at most 32 and the vector sorted.
"""

REJECTED_AFTER_ONE, REJECTED_AFTER_32 = 0.37, 0.0735
"""How often all of so many children are rejected, by the same vector."""

GAIN_OVER_TOPK, GAIN_OVER_SPECINFER = 1.27, 1.65
"""Tokens per step of Sequoia's rule over those of others, at most."""

ON_CHIP = Table(
    "The paper's: on-chip, one A100",
    ("target", "tree (nodes, levels)", "speed-up"),
    [
        ("Llama2-7B", "128, 6 to 10", "up to 4.04"),
        ("Llama2-13B", "64, 6 to 9", "up to 3.73"),
        ("Vicuna-33B", "64, 5 to 6", "up to 2.27"),
    ],
)
