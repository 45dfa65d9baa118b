"""docker-compose.yml: valid, and true of the roles that it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import roles

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "deploy" / "compose" / "gpu.yml"
SERVICES = {
    "coordinator": "coordinator",
    "planner": "planner",
    "target": "target_service",
    "draft": "draft_service",
}
OBSERVABILITY = ("prometheus", "grafana")
VARIABLE = re.compile(r"(?<!\$)\$\{\w+:-([^}]*)\}")
ADDRESSES = ("SEQUOIA_TARGET_ADDRESS", "SEQUOIA_DRAFT_ADDRESS", "SEQUOIA_REDIS")


def read(path: Path) -> dict[str, Any]:
    """A compose file with the defaults of its variables in their places."""
    services: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\1", path.read_text("utf-8")))
    return services


@pytest.fixture
def compose() -> dict[str, Any]:
    """The whole file."""
    return read(COMPOSE)


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    """The variables that are set when neither shell nor .env says anything."""
    return {name: value for name, value in service["environment"].items() if value is not None}


def test_the_files_are_valid_compose() -> None:
    """Against the schema of the compose specification."""
    command = [str(Path(sys.executable).with_name("check-jsonschema"))]
    command += ["--builtin-schema", "vendor.compose-spec", str(COMPOSE), str(GPU)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "role"), SERVICES.items())
def test_roles_read_every_variable_that_they_are_given(
    compose: dict[str, Any], name: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is without effect, and every default passes the role's own checks."""
    service = compose["services"][name]
    assert service["command"] == [role]
    assert set(service["environment"]) <= roles.variables(role)
    roles.read_options(role, environment_of(service), monkeypatch)


@pytest.mark.parametrize(("name", "role"), SERVICES.items())
def test_health_is_asked_where_the_role_listens(
    compose: dict[str, Any], name: str, role: str
) -> None:
    """Through gRPC health, on the port that the role takes by default."""
    test = compose["services"][name]["healthcheck"]["test"]
    assert test == [
        "CMD",
        "python",
        "-m",
        "sequoia.rpc.health",
        f"localhost:{roles.default_port(role)}",
    ]
    assert "SEQUOIA_PORT" not in compose["services"][name]["environment"]


def test_addresses_name_services_on_a_shared_network(compose: dict[str, Any]) -> None:
    """Whoever is told where another role is can reach it, and it listens on that port."""
    ports = {name: roles.default_port(role) for name, role in SERVICES.items()} | {"redis": 6379}
    for name in SERVICES:
        service = compose["services"][name]
        for variable in set(ADDRESSES) & service["environment"].keys():
            host, _, port = environment_of(service)[variable].rpartition("/")[2].rpartition(":")
            assert ports[host] == int(port)
            assert set(service["networks"]) & set(compose["services"][host]["networks"])


def test_workers_and_redis_are_cut_off(compose: dict[str, Any]) -> None:
    """Only the coordinator has a port on the host, and only it and the models' service reach outside."""
    services = {name: one for name, one in compose["services"].items() if name not in OBSERVABILITY}
    inside = {name for name, network in compose["networks"].items() if network}
    assert all(compose["networks"][name] == {"internal": True} for name in inside)
    assert {name for name, one in services.items() if set(one["networks"]) - inside} == {
        "coordinator",
        "models",
    }
    assert {name for name, one in services.items() if "ports" in one} == {"coordinator"}
    (published,) = services["coordinator"]["ports"]
    assert published == f"127.0.0.1:50051:{roles.default_port('coordinator')}"
    assert not set(services["target"]["networks"]) & set(services["redis"]["networks"])


def test_every_service_is_confined_and_bounded(compose: dict[str, Any]) -> None:
    """Not root, a root file system that is read-only, no capabilities, limits, logs that rotate."""
    for name, service in compose["services"].items():
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
        assert service["logging"]["options"]["max-size"]
        assert service["restart"] == ("on-failure:3" if name == "models" else "unless-stopped")


def test_one_variable_turns_the_prefix_cache_off(compose: dict[str, Any]) -> None:
    """On both workers, which keep what closed sessions have read unless it says otherwise."""
    text = COMPOSE.read_text("utf-8")
    for value in ("true", "false"):
        given = yaml.safe_load(text.replace("${SEQUOIA_PREFIX_CACHE:-true}", value))
        for name in ("target", "draft"):
            assert given["services"][name]["environment"]["SEQUOIA_PREFIX_CACHE"] == value
            assert compose["services"][name]["environment"]["SEQUOIA_PREFIX_CACHE"] == "true"


def test_caches_leave_room_for_the_weights(compose: dict[str, Any]) -> None:
    """Keys and values may take a quarter of a worker's memory."""
    for name in ("target", "draft"):
        service = compose["services"][name]
        memory = service["deploy"]["resources"]["limits"]["memory"]
        cache = int(service["environment"]["SEQUOIA_KV_CACHE_LIMIT_BYTES"])
        assert 2**29 <= cache <= int(memory.removesuffix("g")) * 2**30 / 4


def test_roles_wait_for_what_they_need(compose: dict[str, Any]) -> None:
    """Workers for their models; planner and coordinator for workers and Redis that are healthy."""
    services = compose["services"]
    for name in ("target", "draft"):
        assert services[name]["depends_on"] == {
            "models": {"condition": "service_completed_successfully"}
        }
    for name in ("planner", "coordinator"):
        assert services[name]["depends_on"] == {
            other: {"condition": "service_healthy"} for other in ("redis", "target", "draft")
        }
    assert all("healthcheck" in services[name] for name in (*SERVICES, "redis"))


def test_the_password_is_in_a_file_and_nowhere_else(compose: dict[str, Any]) -> None:
    """A secret for those who need it, mounted where they look, and not under version control."""
    assert {name for name, service in compose["services"].items() if "secrets" in service} == {
        "redis",
        "planner",
        "coordinator",
    }
    for name in ("planner", "coordinator"):
        environment = environment_of(compose["services"][name])
        mounted = {f"/run/secrets/{secret}" for secret in compose["services"][name]["secrets"]}
        assert environment["SEQUOIA_REDIS_PASSWORD_FILE"] in mounted
        assert "@" not in environment["SEQUOIA_REDIS"]
    folder = Path(compose["secrets"]["redis_password"]["file"]).parent
    assert f"/{folder}/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert folder.parts[:2] == ("deploy", "secrets")


def test_models_can_be_written_by_the_one_who_fetches_them_alone(compose: dict[str, Any]) -> None:
    """Every role that mounts them mounts them read-only."""
    mounts = {
        name: service["volumes"]
        for name, service in compose["services"].items()
        if "models" in str(service.get("volumes"))
    }
    assert mounts.pop("models") == ["models:/models"]
    assert mounts == {name: ["models:/models:ro"] for name in ("target", "draft", "coordinator")}


def test_the_gpu_file_changes_services_that_are_there(compose: dict[str, Any]) -> None:
    """Both workers, and nothing else."""
    assert set(read(GPU)["services"]) == {"target", "draft"} <= set(compose["services"])


def test_observability_is_asked_for(compose: dict[str, Any]) -> None:
    """A profile starts it; its ports are this machine's; Grafana reaches Prometheus and no role."""
    services = compose["services"]
    profiled = {name for name, service in services.items() if "profiles" in service}
    assert profiled == set(OBSERVABILITY)
    for name in OBSERVABILITY:
        assert services[name]["profiles"] == ["observability"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])
    assert services["grafana"]["networks"] == ["dashboards"]
    assert set(services["prometheus"]["networks"]) == {"workers", "dashboards"}


def test_prometheus_and_grafana_mount_files_that_are_there(compose: dict[str, Any]) -> None:
    """Docker would make folders of those that are not."""
    for name in OBSERVABILITY:
        for volume in compose["services"][name]["volumes"]:
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert rest.endswith(":ro")


def test_prometheus_scrapes_every_role_where_it_listens(compose: dict[str, Any]) -> None:
    """One job a role, named after it, on a network that they share."""
    scraping = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus.yml").read_text())
    jobs = {
        job["job_name"]: [t for one in job["static_configs"] for t in one["targets"]]
        for job in scraping["scrape_configs"]
    }
    ports = {
        name: compose["services"][name]["environment"]["SEQUOIA_METRICS_PORT"] for name in jobs
    }
    assert set(jobs) == set(SERVICES)
    assert jobs == {name: [f"{name}:{port}"] for name, port in ports.items()}
    for name in SERVICES:
        shared = set(compose["services"][name]["networks"])
        assert shared & set(compose["services"]["prometheus"]["networks"])
