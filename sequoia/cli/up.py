"""`sequoia up`: the whole system on one machine."""

from __future__ import annotations

import threading

import typer

from sequoia import config, observability_options, security_options
from sequoia.cli.session import fetch_models, interrupt_on_terminate
from sequoia.embedded_valkey import EmbeddedValkeyError
from sequoia.launcher import LaunchError, LaunchOptions, LocalSystem
from sequoia.log import configure_logging
from sequoia.rpc.listening import require_bindable
from sequoia.security import redis_url, tls_files


def up(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50051,
    redis: config.RedisUrl = None,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    placement: config.PlacementOption = config.Placement.AUTO,
    device_memory: config.DeviceMemory = None,
    host_memory: config.HostMemory = None,
    threads: config.Threads = 0,
    target_replicas: config.TargetReplicas = 1,
    draft_replicas: config.DraftReplicas = 1,
    drain_seconds: config.DrainSeconds = 0.0,
    prefix_cache: config.PrefixCache = True,
    log_level: config.LogLevelOption = config.LogLevel.INFO,
    metrics_port: observability_options.SystemMetricsPort = 0,
    redis_password_file: security_options.RedisPasswordFile = None,
    clients: security_options.ClientsFile = None,
    client_authority: security_options.ClientAuthority = None,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
    reflection: security_options.Reflection = True,
) -> None:
    """Run Redis, planner, both workers and the coordinator until Ctrl-C or SIGTERM.

    Prints `ready HOST:PORT` on stdout when Generate can be served, and `planner HOST:PORT`, which
    `sequoia planner` asks; logs go to stderr.
    """
    interrupt_on_terminate()
    configure_logging("launcher", log_level)
    if redis is None and redis_password_file is not None:
        config.fail("--redis-password-file needs --redis", 2)
    files = tls_files(tls_certificate, tls_key, tls_authority)
    options = LaunchOptions(
        target,
        draft,
        host,
        port,
        redis_url(redis, redis_password_file) if redis else None,
        dtype,
        device,
        log_level,
        threads,
        placement=placement,
        device_memory=device_memory,
        host_memory=host_memory,
        tls=files,
        client_authority=client_authority,
        clients=clients,
        reflection=reflection,
        metrics_port=metrics_port,
        target_replicas=target_replicas,
        draft_replicas=draft_replicas,
        drain_seconds=drain_seconds,
        prefix_cache=prefix_cache,
    )
    try:
        require_bindable(host, port)
    except OSError as error:
        config.fail(str(error))
    try:
        fetch_models(options)
        with LocalSystem(options) as system:
            typer.echo(f"ready {system.address}")
            if system.planner:
                typer.echo(f"planner {system.planner.address}")
            threading.Event().wait()
    except (LaunchError, EmbeddedValkeyError) as error:
        config.fail(str(error))
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
