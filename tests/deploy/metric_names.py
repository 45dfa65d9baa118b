"""The metrics that there are, and those that queries name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import yaml

from tests.scraping import Family

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|([\w, ]*)\| \S.* \|$", re.MULTILINE)
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum")}
# Of every scrape; Prometheus itself or its client library makes them.
OTHERS = {
    "up": {"job", "instance"},
    "process_cpu_seconds_total": {"job", "instance"},
    "process_resident_memory_bytes": {"job", "instance"},
}
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
WORDS = {
    *("and", "or", "unless", "on", "ignoring", "by", "without", "group_left", "group_right"),
    *("absent", "avg", "sum", "min", "max", "rate", "increase", "time", "scalar", "topk"),
    *("histogram_quantile", "avg_over_time", "bool"),
}
GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def documented() -> set[Family]:
    """The table of docs/observability.md."""
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    return {
        Family(name, kind, frozenset(labels.replace(" ", "").split(",")) - {""})
        for name, kind, labels in ROW.findall(text)
    }


def series() -> dict[str, Set[str]]:
    """Labels by the names that queries may use."""
    known: dict[str, Set[str]] = dict(OTHERS)
    for family in documented():
        for suffix in SUFFIXES.get(family.kind, ("",)):
            labels = family.labels | TARGET_LABELS | ({"le"} if suffix == "_bucket" else set())
            known[family.name + suffix] = labels
    return known


def problems(query: str) -> list[str]:
    """What a query names that does not exist: metrics, and labels in selectors and groupings."""
    known, found, seen = series(), [], set[str]()
    query = re.sub(r"\[[^\]]*\]", "", query)
    groupings = GROUPING.findall(query)
    text = GROUPING.sub(" ", query)
    bare = re.sub(r'"[^"]*"', '""', text)
    for name, matchers in SELECTOR.findall(bare):
        if name in WORDS:
            continue
        if name not in known:
            found.append(f"no metric {name}")
            continue
        seen |= known[name]
        found += [
            f"{name}: no label {one}" for one in MATCHER.findall(matchers) if one not in known[name]
        ]
    for grouping in groupings:
        found += [f"no label {one}" for one in re.findall(r"\w+", grouping) if one not in seen]
    return found


def alert_rules() -> list[dict[str, Any]]:
    """Every alert."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that draw something."""
    board = json.loads((FOLDER / "grafana" / "sequoia.json").read_text("utf-8"))
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query of alert rules and dashboard, with where it stands."""
    for rule in alert_rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
