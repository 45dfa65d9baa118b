"""TLS over real sockets: who gets in, who is believed, and certificates that are renewed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sequoia.certificates import write_certificates
from sequoia.errors import Reason
from sequoia.generation import GenerationRequest
from sequoia.plans import BUILT_IN_PLAN, Plan
from sequoia.rpc.channel import Endpoint, RpcChannel
from sequoia.rpc.errors import RemoteError
from sequoia.rpc.planner_codec import GET_PLAN
from sequoia.rpc.server import Context, RpcServer
from sequoia.rpc.tls import TlsFiles, channel_credentials
from sequoia.security import RoleCredentials, coordinator_credentials, role_credentials
from sequoia.settings import SamplingSettings
from tests.stack import HOST, running_stack

ELSEWHERE = "127.0.0.2"  # this machine as well, by a name that no certificate has
REQUEST = GenerationRequest(
    text="good", sampling=SamplingSettings(temperature=0.8), seed=3, max_new_tokens=12
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Development certificates."""
    write_certificates(tmp_path, [], 30)
    return tmp_path


def role(folder: Path, name: str) -> RoleCredentials:
    """A role's credentials."""
    paths = folder / f"{name}.crt", folder / f"{name}.key", folder / "authority.crt"
    return role_credentials(*paths)


def coordinator(folder: Path, client_authority: str | None = None) -> RoleCredentials:
    """The coordinator's; with an authority's name clients must show certificates."""
    paths = folder / "coordinator.crt", folder / "coordinator.key", folder / "authority.crt"
    return coordinator_credentials(*paths, folder / client_authority if client_authority else None)


async def _plan(_request: None, _context: Context) -> Plan:
    return BUILT_IN_PLAN


@asynccontextmanager
async def serving(credentials: RoleCredentials, host: str = HOST) -> AsyncIterator[str]:
    """A server of one method; its address."""
    server = RpcServer(credentials.server)
    server.add_unary(GET_PLAN, _plan)
    try:
        yield f"{host}:{await server.start(host, 0)}"
    finally:
        await server.kill()


async def answers(address: str, files: TlsFiles | None, server_name: str | None = None) -> bool:
    """Whether a caller with these files gets its answer, from whoever goes by that name."""
    credentials = channel_credentials(files) if files else None
    channel = Endpoint(address, credentials, server_name=server_name).open()
    try:
        await channel.call(GET_PLAN, None, timeout=20)
    except RemoteError as error:
        if error.reason is not Reason.WORKER_UNAVAILABLE:
            raise
        return False
    finally:
        await channel.close()
    return True


async def test_a_worker_lets_in_whom_the_roles_authority_knows_and_nobody_else(
    folder: Path,
) -> None:
    """Not without a certificate, not with a client's, not without TLS."""
    authority = folder / "authority.crt"
    async with serving(role(folder, "target")) as address:
        known = TlsFiles(authority, folder / "coordinator.crt", folder / "coordinator.key")
        assert await answers(address, known)
        client = TlsFiles(authority, folder / "client.crt", folder / "client.key")
        for files in (client, TlsFiles(authority), None):
            assert not await answers(address, files), files


async def test_a_caller_believes_its_own_authority_and_the_name_it_called(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another authority's server, another name's, and one without TLS get no call."""
    other = tmp_path_factory.mktemp("other")
    write_certificates(other, [], 30)
    mine = TlsFiles(folder / "authority.crt")
    servers: list[tuple[AbstractAsyncContextManager[str], bool]] = [
        (serving(coordinator(folder)), True),
        (serving(coordinator(other)), False),
        (serving(coordinator(folder), ELSEWHERE), False),
        (serving(RoleCredentials()), False),
    ]
    for server, is_believed in servers:
        async with server as address:
            assert await answers(address, mine) == is_believed


async def test_a_worker_that_was_found_by_its_name_has_to_show_that_name(folder: Path) -> None:
    """One of several behind a name is called by its own address, which no certificate has."""
    known = TlsFiles(
        folder / "authority.crt", folder / "coordinator.crt", folder / "coordinator.key"
    )
    async with serving(role(folder, "target"), ELSEWHERE) as address:
        assert await answers(address, known, "target")
        assert not await answers(address, known, "draft")
        assert not await answers(address, known)


async def test_clients_show_certificates_where_their_authority_is_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Roles may show theirs, for their probes; nobody else's will do."""
    other = tmp_path_factory.mktemp("other")
    write_certificates(other, [], 30)
    authority = folder / "authority.crt"
    async with serving(coordinator(folder, "client-authority.crt")) as address:
        assert await answers(
            address, TlsFiles(authority, folder / "client.crt", folder / "client.key")
        )
        assert await answers(
            address, TlsFiles(authority, folder / "draft.crt", folder / "draft.key")
        )
        stranger = TlsFiles(authority, other / "client.crt", other / "client.key")
        assert not await answers(address, stranger)
        assert not await answers(address, TlsFiles(authority))


def shown_certificate(address: str, folder: Path) -> str:
    """What a server shows to somebody who connects now."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(folder / "authority.crt"))


async def test_a_renewed_certificate_is_shown_without_a_restart(folder: Path) -> None:
    """From the next connection on; half of a renewal changes nothing."""

    def read(name: str) -> Callable[[], bytes]:
        return (folder / name).read_bytes

    async with serving(coordinator(folder)) as address:
        first = await asyncio.to_thread(shown_certificate, address, folder)
        assert first.strip() == read("coordinator.crt")().decode().strip()
        old_key = read("coordinator.key")()

        write_certificates(folder, [], 60)
        new_key = read("coordinator.key")()
        (folder / "coordinator.key").write_bytes(old_key)
        with capture_logs() as logs:
            assert await asyncio.to_thread(shown_certificate, address, folder) == first
        assert "certificate kept" in [line["event"] for line in logs]

        (folder / "coordinator.key").write_bytes(new_key)
        second = await asyncio.to_thread(shown_certificate, address, folder)
        assert second != first
        assert second.strip() == read("coordinator.crt")().decode().strip()
        assert await answers(address, TlsFiles(folder / "authority.crt"))


async def test_a_system_under_tls_says_what_it_says_without(
    folder: Path, word_folders: tuple[Path, Path]
) -> None:
    """Coordinator and workers with certificates of their own, a client with its own."""
    async with running_stack(*word_folders) as stack:
        plain = await stack.generate(REQUEST)
    client = TlsFiles(folder / "authority.crt", folder / "client.crt", folder / "client.key")
    async with running_stack(
        *word_folders,
        workers=lambda: role(folder, "target"),
        credentials=coordinator(folder, "client-authority.crt"),
        endpoint=Endpoint("", channel_credentials(client)),
    ) as stack:
        assert (await stack.generate(REQUEST)).token_ids == plain.token_ids
        assert await stack.channel.is_serving()
        unknown = RpcChannel(f"{HOST}:{stack.target.port}")
        assert not await unknown.is_serving()
        await unknown.close()
