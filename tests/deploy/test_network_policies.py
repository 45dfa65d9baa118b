"""Who may reach whom, worked out from the policies as a cluster would."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import (
    OVERLAYS,
    WORKLOADS,
    Resource,
    containers_of,
    of_kind,
    pod_of,
    port_number,
    rendered,
    selects,
)

CLIENT = "a client in another namespace"
MONITORING = "Prometheus in another namespace"
NAMESPACES = {CLIENT: {"sequoia/client": "true"}, MONITORING: {"sequoia/monitoring": "true"}}
METRICS = 9464
OUTSIDE = "the world outside"
FLOWS = {
    (CLIENT, "coordinator", 50051),
    ("coordinator", "target", 50053),
    ("coordinator", "draft", 50052),
    ("coordinator", "redis", 6379),
    ("planner", "target", 50053),
    ("planner", "draft", 50052),
    ("planner", "redis", 6379),
    *((MONITORING, role, METRICS) for role in ("coordinator", "planner", "target", "draft")),
}


def policies(
    resources: tuple[Resource, ...], direction: str, labels: dict[str, str]
) -> list[Resource]:
    """The policies that bind a pod in a direction."""
    return [
        policy["spec"]
        for policy in of_kind(resources, "NetworkPolicy")
        if direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], labels)
    ]


def may(
    resources: tuple[Resource, ...],
    direction: str,
    bound: dict[str, str],
    other: dict[str, str] | str,
    port: int,
    listening: Resource | None,
) -> bool:
    """Whether some rule lets a pod and another, or whoever is outside, speak over a port.

    Named ports have their numbers from the container that listens.
    """
    side = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    for policy in policies(resources, direction, bound):
        for rule in policy.get(side[0], []):
            ports = [one["port"] for one in rule["ports"]]
            if listening is not None:
                ports = [port_number(listening["ports"], one) for one in ports]
            peers = rule.get(side[1])
            if port in ports and (peers is None or any(_is_peer(one, other) for one in peers)):
                return True
    return False


def _is_peer(peer: Resource, other: dict[str, str] | str) -> bool:
    if isinstance(other, str) and other in NAMESPACES:
        selector = peer.get("namespaceSelector")
        return selector is not None and selects(selector, NAMESPACES[other])
    return isinstance(other, dict) and "podSelector" in peer and selects(peer["podSelector"], other)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_these_may_speak_to_one_another(overlay: str) -> None:
    """Clients reach coordinators alone; workers and Redis are reached by coordinators and the planner.

    Prometheus reaches metrics and nothing else.
    """
    resources = rendered(overlay)
    pods = {
        one["metadata"]["name"]: (pod_of(one)["metadata"]["labels"], containers_of(one)[-1])
        for one in of_kind(resources, *WORKLOADS)
    }
    listening = {name: one for name, (_, one) in pods.items() if "ports" in one}
    assert set(listening) == {"coordinator", "planner", "target", "draft", "redis"}
    flows = set()
    for name, container in listening.items():
        labels = pods[name][0]
        for port in (one["containerPort"] for one in container["ports"]):
            for stranger in NAMESPACES:
                if may(resources, "Ingress", labels, stranger, port, container):
                    flows.add((stranger, name, port))
            for caller, (caller_labels, _) in pods.items():
                arrives = may(resources, "Ingress", labels, caller_labels, port, container)
                leaves = may(resources, "Egress", caller_labels, labels, port, None)
                if arrives and leaves:
                    flows.add((caller, name, port))
    assert flows == FLOWS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_bound_both_ways(overlay: str) -> None:
    """Without a policy a pod would be open to everybody."""
    resources = rendered(overlay)
    for workload in of_kind(resources, *WORKLOADS):
        labels = pod_of(workload)["metadata"]["labels"]
        assert policies(resources, "Ingress", labels)
        assert policies(resources, "Egress", labels)


@pytest.mark.parametrize(
    ("overlay", "fetching"),
    [("cpu", {"models"}), ("gpu", {"models"}), ("offload", {"models", "target"})],
)
def test_only_those_who_fetch_models_reach_the_outside(overlay: str, fetching: set[str]) -> None:
    """And they speak TLS; everybody may look names up."""
    resources = rendered(overlay)
    pods = {
        one["metadata"]["name"]: pod_of(one)["metadata"]["labels"]
        for one in of_kind(resources, *WORKLOADS)
    }
    for port, allowed in ((443, fetching), (80, set()), (53, set(pods))):
        reaching = {
            name
            for name, labels in pods.items()
            if may(resources, "Egress", labels, OUTSIDE, port, None)
        }
        assert reaching == allowed, port
