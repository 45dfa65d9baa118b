"""Draws what drafts cost against what they give: `python benchmarks/draft_tradeoff.py --help`.

Reads the objects that `sequoia acceptance --temperature 0 --json` prints, one file a draft; a draft is
labelled with its file's name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

TREE_SIZE = "16"
LABEL_OFFSET = (6, 4)  # points, right and up of the mark


def main(
    results: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("docs/drafts.png"),
) -> None:
    """Plot tokens per step against the cost of a level, and print the same as a Markdown table."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    print(
        "| draft | first / among 4 | Σ min(p, q) | tokens per step, 16 / 64 nodes | level / token |"
    )
    print("|---|---|---|---|---|")
    for path in results:
        found = json.loads(path.read_text(encoding="utf-8"))
        cost, gain = found["draft_level_over_target_token"], found["tokens_per_step"]
        axes.plot(cost, gain[TREE_SIZE], "o")
        axes.annotate(
            f"{path.stem}\nΣ min {found['overlap']:.2f}",
            (cost, gain[TREE_SIZE]),
            xytext=LABEL_OFFSET,
            textcoords="offset points",
            fontsize="small",
        )
        first, four = found["top_match"]["1"], found["top_match"]["4"]
        print(
            f"| {path.stem} | {first:.3f} / {four:.3f} | {found['overlap']:.3f} "
            f"| {gain['16']:.2f} / {gain['64']:.2f} | {cost:.3f} |"
        )
    axes.set_xlabel("time of one draft level (8 nodes) over time of one target token")
    axes.set_ylabel(f"tokens per step, best tree of {TREE_SIZE} nodes, temperature 0")
    axes.margins(x=0.35, y=0.25)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    typer.run(main)
