"""Alert rules, dashboard and autoscaling: valid, and about metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import Resource, named, of_kind, pod_of, rendered_folder, selects
from tests.deploy.metric_names import (
    FOLDER,
    ROOT,
    alert_rules,
    documented,
    panels,
    problems,
    queries,
)

KUBERNETES = "1.33"


def promtool(*arguments: str) -> None:
    """Run promtool, which has nothing to object; skips where there is none."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [tool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_metrics_is_read() -> None:
    """Otherwise nothing here would be checked."""
    assert len(documented()) > 45
    assert {family.kind for family in documented()} == {"counter", "gauge", "histogram"}


@pytest.mark.parametrize(("place", "query"), list(queries()))
def test_queries_name_metrics_and_labels_that_exist(place: str, query: str) -> None:
    """Of rules and dashboard; a misspelt metric is no error to Prometheus, only silent."""
    assert problems(query) == [], place


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sequoia_request_total", "no metric sequoia_request_total"),
        ("sum by (reason) (rate(sequoia_requests_total[5m]))", "no label reason"),
        ('sequoia_requests_total{outcom="length"}', "sequoia_requests_total: no label outcom"),
        ("sequoia_step_seconds > 1", "no metric sequoia_step_seconds"),
        ("rate(sequoia_requests_total_bucket[5m])", "no metric sequoia_requests_total_bucket"),
    ],
)
def test_a_misspelt_query_would_be_found(query: str, problem: str) -> None:
    """The check above can fail."""
    assert problem in problems(query)


def test_every_alert_is_documented_and_tested() -> None:
    """With what to do about it, and with a case in which it fires."""
    text = (ROOT / "docs" / "observability.md").read_text("utf-8")
    cases = yaml.safe_load((FOLDER / "alerts-test.yml").read_text("utf-8"))["tests"]
    fired = {
        test["alertname"]
        for case in cases
        for test in case["alert_rule_test"]
        if test.get("exp_alerts")
    }
    names = [rule["alert"] for rule in alert_rules()]
    assert len(names) == len(set(names)) == len(fired)
    for rule in alert_rules():
        assert rule["alert"] in fired
        assert f"| `{rule['alert']}` |" in text
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_promtool_accepts_rules_and_configuration() -> None:
    """As Prometheus would."""
    promtool("check", "rules", "--lint-fatal", "alerts.yml")
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_where_they_should() -> None:
    """Case by case, and none in a healthy system."""
    promtool("test", "rules", "alerts-test.yml")


def test_promtool_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """Each as if it were a recording rule."""
    rules = [
        {"record": f"panel:{index}", "expr": target["expr"].replace("$__rate_interval", "1m")}
        for index, target in enumerate(target for panel in panels() for target in panel["targets"])
    ]
    (file := tmp_path / "dashboard.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]})
    )
    promtool("check", "rules", str(file))


def test_the_dashboard_is_whole() -> None:
    """Ids differ, panels do not overlap, each says what it shows and asks the chosen Prometheus."""
    board = json.loads((FOLDER / "grafana" / "sequoia.json").read_text("utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    covered: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not covered & cells
        covered |= cells
    (variable,) = board["templating"]["list"]
    for panel in panels():
        assert panel["description"]
        assert panel["datasource"]["uid"] == f"${{{variable['name']}}}"
        assert all(target["legendFormat"] for target in panel["targets"])


def test_every_metric_of_a_step_is_on_the_dashboard() -> None:
    """What is counted and never shown is forgotten."""
    shown = " ".join(query for _, query in queries())
    wanted = [
        family.name
        for family in documented()
        if re.match(
            r"sequoia_(step|tree|acceptance)|gen_ai_server_time|sequoia_planner_(tok|sec)",
            family.name,
        )
    ]
    assert len(wanted) >= 10
    assert [name for name in wanted if name not in shown] == []


def test_grafana_finds_its_dashboard_and_prometheus() -> None:
    """The provider looks where compose mounts, and the data source is the service."""
    provisioning = FOLDER / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sequoia.yml").read_text())[
        "providers"
    ]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/sequoia.json" in mounts
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"][0].endswith(":9090")


@pytest.fixture
def extended(tmp_path: Path) -> tuple[Resource, ...]:
    """The overlay for CPUs with both components, as an operator's own overlay would have them."""
    folder = ROOT / "deploy" / "kubernetes"
    near = {name: os.path.relpath(folder / name, tmp_path) for name in ("overlays", "components")}
    text: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{near['overlays']}/cpu"],
        "components": [f"{near['components']}/{name}" for name in ("pod-monitor", "autoscaling")],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return rendered_folder(tmp_path)


def test_coordinators_scale_by_their_line(extended: tuple[Resource, ...]) -> None:
    """On a metric that coordinators have and the adapter serves; the number of replicas is nobody else's."""
    scaler = named(extended, "HorizontalPodAutoscaler", "coordinator")
    assert kubernetes_validate.validate(scaler, KUBERNETES, strict=True) == KUBERNETES
    reference = scaler["spec"]["scaleTargetRef"]
    deployment = named(extended, reference["kind"], reference["name"])
    assert "replicas" not in deployment["spec"]
    assert scaler["metadata"]["namespace"] == deployment["metadata"]["namespace"]
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert problems(name) == []
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yml").read_text("utf-8"))["rules"][
        "custom"
    ]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert rule["name"]["as"] == name


def test_the_monitor_takes_every_role_and_nothing_else(extended: tuple[Resource, ...]) -> None:
    """By labels and port names that the pods have; jobs are called as the alert rules expect."""
    (monitor,) = of_kind(extended, "PodMonitor")
    spec = monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    jobs = set()
    for workload in of_kind(extended, "Deployment", "StatefulSet", "Job"):
        labels = pod_of(workload)["metadata"]["labels"]
        if selects(spec["selector"], labels):
            (container,) = pod_of(workload)["spec"]["containers"]
            assert endpoint["port"] in [port["name"] for port in container["ports"]]
            jobs.add(labels[spec["jobLabel"]])
    assert jobs == {"coordinator", "planner", "target", "draft"}
