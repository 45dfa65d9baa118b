"""The Kubernetes manifests, held against the roles that they start."""

from __future__ import annotations

import pytest

from coordinator.engine import LAST_STEP_SECONDS
from tests.deploy import roles
from tests.deploy.manifests import (
    OVERLAYS,
    Resource,
    containers,
    environment_of,
    named,
    named_workload,
    pod_of,
    rendered,
)

ADDRESSES = ("SEQUOIA_TARGET_ADDRESS", "SEQUOIA_DRAFT_ADDRESS", "SEQUOIA_REDIS")


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    """Every overlay's, one after the other."""
    return rendered(request.param)


def role_containers(resources: tuple[Resource, ...]) -> list[tuple[str, Resource]]:
    """Those that run a role, with the role's module."""
    found = [
        (container["args"][0], container)
        for _, container in containers(resources)
        if container.get("args", [""])[0] in roles.ROLES
    ]
    assert {role for role, _ in found} == set(roles.ROLES)
    return found


def test_roles_listen_where_their_probes_ask(resources: tuple[Resource, ...]) -> None:
    """Container port, startup, readiness and liveness are all the port that the role takes by default."""
    for role, container in role_containers(resources):
        port = roles.default_port(role)
        assert "SEQUOIA_PORT" not in environment_of(resources, container)
        (listening,) = (one for one in container["ports"] if one["name"] == "grpc")
        assert listening["containerPort"] == port
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"] == {"port": port}, (role, probe)


def test_roles_are_scraped_where_they_answer(resources: tuple[Resource, ...]) -> None:
    """The port of the variable is a port of the container, and the one of the annotation."""
    for role, container in role_containers(resources):
        port = environment_of(resources, container)["SEQUOIA_METRICS_PORT"]
        (metrics,) = (one for one in container["ports"] if one["name"] == "metrics")
        assert str(metrics["containerPort"]) == port
        metadata = pod_of(named_workload(resources, container["name"]))["metadata"]
        assert metadata["annotations"] == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": port,
        }, role


def test_one_variable_turns_the_prefix_cache_off(resources: tuple[Resource, ...]) -> None:
    """Both workers have it from the config map."""
    for role, container in role_containers(resources):
        sources = {one["name"]: one.get("valueFrom") for one in container["env"]}
        assert ("SEQUOIA_PREFIX_CACHE" in sources) == (role in ("target_service", "draft_service"))
        if role in ("target_service", "draft_service"):
            reference = sources["SEQUOIA_PREFIX_CACHE"]["configMapKeyRef"]
            assert reference["key"] == "SEQUOIA_PREFIX_CACHE"
            assert environment_of(resources, container)["SEQUOIA_PREFIX_CACHE"] == "true"


def test_roles_read_every_variable_that_they_are_given(resources: tuple[Resource, ...]) -> None:
    """A variable that the role does not read is a setting that does nothing."""
    for role, container in role_containers(resources):
        given = {variable["name"] for variable in container["env"]}
        assert given <= roles.variables(role), role
        assert "envFrom" not in container


def test_roles_accept_the_values(
    resources: tuple[Resource, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value passes the role's own checks, and the planner gets what it requires."""
    for role, container in role_containers(resources):
        options = roles.read_options(role, environment_of(resources, container), monkeypatch)
        if role in ("planner", "coordinator"):
            assert options["redis"] == "redis://redis:6379"
            assert options["draft_address"] == "draft:50052"
            assert str(options["redis_password_file"]).startswith(
                tuple(mount["mountPath"] for mount in container["volumeMounts"])
            )
        else:
            assert options["threads"] == int(container["resources"]["limits"]["cpu"])


def test_addresses_name_services_with_these_ports(resources: tuple[Resource, ...]) -> None:
    """Whoever is told where another role is finds a service there."""
    for _, container in role_containers(resources):
        environment = environment_of(resources, container)
        for variable in set(ADDRESSES) & environment.keys():
            host, _, port = environment[variable].rpartition("/")[2].rpartition(":")
            service = named(resources, "Service", host)
            assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]


def test_draining_leaves_time_to_end(resources: tuple[Resource, ...]) -> None:
    """A pod waits until it is out of the name service, then ends by itself before it is killed."""
    for role, container in role_containers(resources):
        workload = named_workload(resources, container["name"])
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = pod_of(workload)["spec"]["terminationGracePeriodSeconds"]
        assert pause > 0
        drain = float(environment_of(resources, container).get("SEQUOIA_DRAIN_SECONDS", "0"))
        assert (drain > 0) is (role == "coordinator")
        assert grace >= pause + drain + LAST_STEP_SECONDS + 5, role


def test_workers_get_gpus_where_the_overlay_says_so() -> None:
    """One each, requested and limited alike, with memory to share and the CUDA build of the image."""
    for overlay in ("gpu", "offload"):
        resources = rendered(overlay)
        for role, container in role_containers(resources):
            amounts = container["resources"]
            gpus = [amounts[kind].get("nvidia.com/gpu") for kind in ("requests", "limits")]
            is_worker = role in ("target_service", "draft_service")
            assert gpus == (["1", "1"] if is_worker else [None, None])
            assert container["image"] == "sequoia:cuda"
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert ("shared-memory" in mounts) is is_worker


def test_caches_on_a_cpu_leave_room_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values lie in the pod's own memory, and may take a quarter of it."""
    resources = rendered("cpu")
    for role in ("target_service", "draft_service"):
        (container,) = (one for name, one in role_containers(resources) if name == role)
        options = roles.read_options(role, environment_of(resources, container), monkeypatch)
        limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
        assert isinstance(options["kv_cache_limit_bytes"], int)
        assert 2**29 <= options["kv_cache_limit_bytes"] <= limit / 4


def test_an_offloaded_target_fits_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's memory that it may take is less than the pod's, and its models lie on the node's disk."""
    resources = rendered("offload")
    (container,) = (one for role, one in role_containers(resources) if role == "target_service")
    options = roles.read_options(
        "target_service", environment_of(resources, container), monkeypatch
    )
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert options["placement"] == "offload"
    assert isinstance(options["host_memory"], int)
    assert options["host_memory"] < 0.8 * int(limit.removesuffix("Gi")) * 2**30
    claim = named(resources, "StatefulSet", "target")["spec"]["volumeClaimTemplates"][0]
    assert claim["metadata"]["name"] in [one["name"] for one in container["volumeMounts"]]
