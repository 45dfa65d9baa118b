"""The acceptance rule that keeps speculation lossless, and other rules to compare it with.

A rule turns what is known at one node into a `Ladder`: probabilities, no draws. Production samples
a ladder with `choose`; tests sum it over every possible draw.
"""

from sequoia.verification.acceptance import Choice, Evidence, Ladder, choose, sequoia_ladder
from sequoia.verification.comparison import (
    RULES,
    Draw,
    Rule,
    match_ladder,
    ordered_draws,
    specinfer_ladder,
    spectr_ladder,
)

__all__ = [
    "RULES",
    "Choice",
    "Draw",
    "Evidence",
    "Ladder",
    "Rule",
    "choose",
    "match_ladder",
    "ordered_draws",
    "sequoia_ladder",
    "specinfer_ladder",
    "spectr_ladder",
]
