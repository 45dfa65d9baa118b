"""What Prometheus reads of a role, over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from sequoia.metrics.endpoint import served

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Family:
    """A metric as a scrape shows it, by the name that queries use for a counter or a gauge."""

    name: str
    kind: str
    labels: frozenset[str]


@dataclass
class Scrape:
    """All samples of one scrape."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]
    families: set[Family]

    def value(self, name: str, **labels: str) -> float:
        """The one sample of a name with exactly these labels."""
        return self.samples[name, frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of a name that have these labels among others."""
        return sum(
            value
            for (its_name, its_labels), value in self.samples.items()
            if its_name == name and set(labels.items()) <= its_labels
        )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port: int = taken.getsockname()[1]
        return port


def read(text: str) -> Scrape:
    """Parse the text format."""
    samples, families = {}, set()
    for family in text_string_to_metric_families(text):
        names: set[str] = set()
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
            names |= sample.labels.keys() - {"le"}
        suffix = "_total" if family.type == "counter" else ""
        families.add(Family(family.name + suffix, family.type, frozenset(names)))
    return Scrape(samples, families)


def get(port: int, path: str = "/metrics") -> tuple[int, str]:
    """Status and body of a GET."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


class Scraped:
    """Registries that are served, and what scrapes of them say."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports

    async def __call__(self, role: str) -> Scrape:
        """Scrape a role now."""
        status, body = await asyncio.to_thread(get, self.ports[role])
        assert status == http.HTTPStatus.OK
        return read(body)


@contextmanager
def scraped(registries: Mapping[str, CollectorRegistry]) -> Iterator[Scraped]:
    """Serve the registries of some roles as their processes would."""
    with ExitStack() as endpoints:
        ports = {}
        for role, registry in registries.items():
            ports[role] = free_port()
            endpoints.enter_context(served(registry, HOST, ports[role]))
        yield Scraped(ports)
