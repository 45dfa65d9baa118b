"""The Kubernetes manifests as kustomize renders them, and what stands in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu", "gpu", "offload")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
NAME_LABEL = "app.kubernetes.io/name"

Resource = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Resource, ...]:
    """All resources of an overlay; skips the test where nothing can render it."""
    return rendered_folder(ROOT / "deploy" / "kubernetes" / "overlays" / overlay)


def rendered_folder(folder: Path) -> tuple[Resource, ...]:
    """The same of any folder with a kustomization."""
    commands = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    command = next((words for tool, words in commands.items() if shutil.which(tool)), None)
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(resources: tuple[Resource, ...], *kinds: str) -> list[Resource]:
    """Those of some kinds."""
    return [resource for resource in resources if resource["kind"] in kinds]


def named(resources: tuple[Resource, ...], kind: str, name: str) -> Resource:
    """The one of a kind with a name."""
    (found,) = (one for one in of_kind(resources, kind) if one["metadata"]["name"] == name)
    return found


def named_workload(resources: tuple[Resource, ...], name: str) -> Resource:
    """The one workload of a name."""
    (found,) = (one for one in of_kind(resources, *WORKLOADS) if one["metadata"]["name"] == name)
    return found


def pod_of(workload: Resource) -> Resource:
    """A workload's pod template."""
    template: Resource = workload["spec"]["template"]
    return template


def containers_of(workload: Resource) -> list[Resource]:
    """Its containers, those that run first among them."""
    spec = pod_of(workload)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def containers(resources: tuple[Resource, ...]) -> Iterator[tuple[str, Resource]]:
    """Every container, with the name of its workload."""
    for workload in of_kind(resources, *WORKLOADS):
        for container in containers_of(workload):
            yield workload["metadata"]["name"], container


def environment_of(resources: tuple[Resource, ...], container: Resource) -> dict[str, str]:
    """A container's variables with their values; those that only a cluster knows are left out."""
    values = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "value" in variable:
            values[variable["name"]] = variable["value"]
        elif reference := source.get("configMapKeyRef"):
            data = named(resources, "ConfigMap", reference["name"])["data"]
            values[variable["name"]] = data[reference["key"]]
        elif source.get("resourceFieldRef") == {"resource": "limits.cpu"}:
            values[variable["name"]] = container["resources"]["limits"]["cpu"]
    for source in container.get("envFrom", []):
        values |= named(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    return values


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes something with these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", rule
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def port_number(container_ports: list[Resource], port: str | int) -> int | None:
    """The number of a port that is given by name or number; None where the container has no such."""
    for one in container_ports:
        if port in (one["containerPort"], one.get("name")):
            number: int = one["containerPort"]
            return number
    return None
