"""The Kubernetes manifests: valid, consistent and confined."""

from __future__ import annotations

import kubernetes_validate
import pytest

from tests.deploy.manifests import (
    OVERLAYS,
    WORKLOADS,
    Resource,
    containers_of,
    named,
    named_workload,
    of_kind,
    pod_of,
    port_number,
    rendered,
    selects,
)

KUBERNETES = "1.33"


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    """Every overlay's, one after the other."""
    return rendered(request.param)


def test_everything_is_valid_to_the_letter(resources: tuple[Resource, ...]) -> None:
    """Against the strict schemas: no field that Kubernetes does not know, no kind without a schema."""
    for resource in resources:
        assert kubernetes_validate.validate(resource, KUBERNETES, strict=True) == KUBERNETES


def test_a_misspelt_field_would_be_found() -> None:
    """The schemas are the strict ones."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"prots": []},
    }
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate(service, KUBERNETES, strict=True)


def test_selectors_match_the_labels_of_their_pods(resources: tuple[Resource, ...]) -> None:
    """Workloads select their own pods and no others; services and budgets select exactly one workload."""
    workloads = of_kind(resources, *WORKLOADS)
    labels = {one["metadata"]["name"]: pod_of(one)["metadata"]["labels"] for one in workloads}
    selectors = {
        f"{one['kind']} {one['metadata']['name']}": one["spec"]["selector"]
        for one in of_kind(resources, "Deployment", "StatefulSet", "PodDisruptionBudget")
    } | {
        f"Service {one['metadata']['name']}": {"matchLabels": one["spec"]["selector"]}
        for one in of_kind(resources, "Service")
    }
    for what, selector in selectors.items():
        chosen = [name for name, having in labels.items() if selects(selector, having)]
        assert chosen == [what.split()[1]], what


def test_services_lead_to_ports_that_somebody_listens_on(resources: tuple[Resource, ...]) -> None:
    """A service's target port is one of its pods' ports, and has the service's own number."""
    for service in of_kind(resources, "Service"):
        workload = named_workload(resources, service["metadata"]["name"])
        ports = [port for one in containers_of(workload) for port in one.get("ports", [])]
        for port in service["spec"]["ports"]:
            assert port_number(ports, port["targetPort"]) == port["port"]


def test_every_pod_is_confined(resources: tuple[Resource, ...]) -> None:
    """Not root, nothing to gain, a root file system that is read-only, bounded memory; no token."""
    for workload in of_kind(resources, *WORKLOADS):
        pod = pod_of(workload)["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_no_pod_gets_variables_of_services(resources: tuple[Resource, ...]) -> None:
    """Kubernetes would set variables named after services, and roles refuse unknown ones."""
    for workload in of_kind(resources, *WORKLOADS):
        assert pod_of(workload)["spec"]["enableServiceLinks"] is False


def test_every_mount_has_a_volume(resources: tuple[Resource, ...]) -> None:
    """Mounts name a volume of the pod or a claim of the set, and roles cannot write models."""
    for workload in of_kind(resources, *WORKLOADS):
        pod = pod_of(workload)["spec"]
        claims = workload["spec"].get("volumeClaimTemplates", [])
        names = {volume["name"] for volume in pod["volumes"]}
        names |= {claim["metadata"]["name"] for claim in claims}
        for container in containers_of(workload):
            for mount in container["volumeMounts"]:
                assert mount["name"] in names
                if mount["mountPath"] == "/models" and container["name"] != "models":
                    assert mount["readOnly"] is True


@pytest.mark.parametrize("name", ["coordinator", "planner", "draft", "target"])
def test_every_role_may_be_disrupted_one_pod_at_a_time(
    resources: tuple[Resource, ...], name: str
) -> None:
    """A budget that allows none would hold up the draining of a node for ever."""
    budget = named(resources, "PodDisruptionBudget", name)
    assert budget["spec"]["maxUnavailable"] == 1
