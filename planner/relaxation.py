"""An upper bound on every tree one level deeper, and the child sizes which that bound rules out.

One level of the dynamic programme shares a budget of m nodes among children 1..b, child i receiving
j_i >= 1 of them, to maximise the sum of a_i V(j_i); V(j) is the worth of the best subtree of at
most j nodes with one level less. Let C be the concave hull of V. For every price p >= 0 per node

    sum a_i V(j_i)  <=  p m + max over b of the sum over i <= b of s_i,
    s_i = max over j >= 1 of (a_i C(j) - p j)

(Lagrangian duality). A choice that departs from the maximisers on the right falls short of the
bound by at least what the departure costs there. Once some tree is known that comes within a gap of
the bound, every choice that costs more than the gap is provably not optimal and need not be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PRICE_COUNT = 64
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The bound for one level, at a grid of prices from the dearest node to the cheapest.

    Attributes:
        prices: worth that one more node must bring, `[prices]`.
        vector: acceptance probabilities, `[ranks, 1]`.
        hull: concave hull of the subtree worths by size, `[sizes + 1]`.
        sizes: best size of each child at each price, at least 1, `[ranks, prices]`.
        surplus: its worth minus its price, s_i above, `[ranks, prices]`.
        shortfall: what insisting on at least this many children costs, `[ranks, prices]`.
        bounds: upper bound on the children's worth for a budget of 1, 2, ... nodes, `[budgets]`.
        owners: index of the price that gives each bound, `[budgets]`.
    """

    prices: Floats
    vector: Floats
    hull: Floats
    sizes: Integers
    surplus: Floats
    shortfall: Floats
    bounds: Floats
    owners: Integers

    @property
    def tolerance(self) -> float:
        """Rounding error to allow for in comparisons with the bound."""
        return ROUNDING * (1.0 + float(self.bounds[-1]))

    def gaps(self, found: Floats) -> Floats:
        """Distance from worths found, by budget from 1 up, to the bound; worst case per price."""
        budgets = np.minimum(np.arange(len(self.bounds)), len(found) - 1)
        gaps = np.zeros_like(self.prices)
        np.maximum.at(gaps, self.owners, self.bounds - found[budgets])
        return gaps + self.tolerance

    def caps(self, gaps: Floats) -> Integers:
        """Largest size of each child in any optimum within `gaps` of the bound; 0 where none."""
        room = gaps - self.shortfall
        floor = self.surplus - room
        low = np.where(room >= 0, self.sizes, 0)
        high = np.where(room >= 0, len(self.hull) - 1, 0)
        for _ in range(len(self.hull).bit_length()):  # a_i C(j) - p j falls beyond its maximum
            middle = (low + high + 1) >> 1
            inside = self.vector * self.hull[middle] - self.prices * middle >= floor
            low = np.where(inside, middle, low)
            high = np.maximum(low, np.where(inside, high, middle - 1))
        return np.asarray(low.max(axis=1), dtype=np.int64)


def relax(vector: Floats, values: Floats, max_budget: int) -> Relaxation:
    """Bound the worth of children 1..k for every budget from 1 to `max_budget` nodes.

    Args:
        vector: acceptance probabilities a_1..a_k.
        values: worth of the best subtree of at most 0, 1, 2, ... nodes.
        max_budget: largest number of nodes to share.
    """
    slopes = hull_slopes(values)
    hull = np.concatenate(([0.0], np.cumsum(slopes)))
    prices = _prices(vector, slopes, max_budget)
    column = vector[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        thresholds = np.where(column > 0, prices / column, np.inf)
    sizes = np.maximum(np.searchsorted(-slopes, -thresholds, side="left"), 1)
    surplus = column * hull[sizes] - prices * sizes
    totals = np.cumsum(surplus, axis=0)
    best = np.maximum(totals.max(axis=0), 0.0)
    deeper = np.maximum.accumulate(totals[::-1], axis=0)[::-1]
    duals = prices * np.arange(1, max_budget + 1)[:, None] + best  # [budgets, prices]
    owners = duals.argmin(axis=1)
    bounds = duals[np.arange(max_budget), owners]
    return Relaxation(prices, column, hull, sizes, surplus, best - deeper, bounds, owners)


def hull_slopes(values: Floats) -> Floats:
    """Increments of the least concave function above `values`, one per step of the index."""
    points = np.arange(len(values))
    while True:
        runs = np.diff(points)
        slopes = np.diff(values[points]) / runs
        below = np.flatnonzero(slopes[1:] > slopes[:-1])
        if not below.size:
            return np.repeat(slopes, runs)
        points = np.delete(points, below + 1)


def _prices(vector: Floats, slopes: Floats, max_budget: int) -> Floats:
    """Prices at which about 1, 2, ... `max_budget` nodes pay, spaced geometrically, falling."""
    descending = np.sort(vector)[::-1]
    increments = np.concatenate(
        [a * slopes[: max(1, max_budget // rank)] for rank, a in enumerate(descending, start=1)]
    )
    increments = np.sort(increments)[::-1][:max_budget]
    picks = np.unique(np.geomspace(1, len(increments), PRICE_COUNT).round().astype(np.int64))
    prices = increments[picks - 1]
    return prices if len(increments) == max_budget else np.append(prices, 0.0)
