"""A token tree as a picture: the root on top, siblings from left to right in the order of their draw."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from sequoia.tree import Topology

INCHES_PER_COLUMN, INCHES_PER_LEVEL = 0.22, 0.6
LEAST_WIDTH, MOST_WIDTH, MOST_HEIGHT = 5.0, 60.0, 40.0
MARGIN = 1.2  # inches, for the title and the scale


def columns(topology: Topology) -> list[float]:
    """Where every node stands, in columns: leaves one beside the other, parents over their children."""
    places = [0.0] * topology.node_count
    leaf_count = 0
    for node in _depth_first(topology):
        children = topology.children[node]
        if children:
            places[node] = (places[children[0]] + places[children[-1]]) / 2
        else:
            places[node] = float(leaf_count)
            leaf_count += 1
    return places


def save_picture(path: Path, topology: Topology, title: str) -> None:
    """Draw a tree into a file, in the format of its suffix; the same tree gives the same file.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "sequoia", "svg.fonttype": "none"}):
        _figure(topology, title).savefig(path, metadata=metadata.get(path.suffix))


def _figure(topology: Topology, title: str) -> Figure:
    x = columns(topology)
    y = [-depth for depth in topology.depths]
    ranks = [1] * topology.node_count
    for children in topology.children:
        for rank, child in enumerate(children, start=1):
            ranks[child] = rank
    width = min(max(INCHES_PER_COLUMN * max(x) + MARGIN, LEAST_WIDTH), MOST_WIDTH)
    height = min(INCHES_PER_LEVEL * topology.level_count + MARGIN, MOST_HEIGHT)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = [
        [(x[parent], y[parent]), (x[node], y[node])]
        for node, parent in enumerate(topology.parents)
        if node
    ]
    axes.add_collection(LineCollection(edges, colors="tab:gray", linewidths=0.8, zorder=1))
    marks = axes.scatter(
        x, y, c=ranks, cmap="viridis_r", s=36, edgecolors="black", linewidths=0.5, zorder=2
    )
    if max(ranks) > 1:
        figure.colorbar(marks, ax=axes, label="rank among its siblings", shrink=0.8)
    levels = range(topology.level_count)
    axes.set_yticks([-level for level in levels], labels=[str(level + 1) for level in levels])
    axes.set_ylabel("level")
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_title(title)
    return figure


def _depth_first(topology: Topology) -> list[int]:
    """Every node after its children, these in their order."""
    order, waiting = [], [0]
    while waiting:
        order.append(waiting.pop())
        waiting.extend(topology.children[order[-1]])
    return order[::-1]
