"""`python -m target_service`: run a target worker."""

from __future__ import annotations

import os

import typer

from sequoia import config, observability_options, security_options
from sequoia.log import configure_logging
from sequoia.rpc.role import run
from sequoia.runtime.sharding.ranks import Ranks, RanksError, chosen_ranks

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: config.Target = config.DEFAULT_TARGET,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50053,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    placement: config.PlacementOption = config.Placement.AUTO,
    device_memory: config.DeviceMemory = None,
    host_memory: config.HostMemory = None,
    tensor_parallel: config.TensorParallel = False,
    threads: config.Threads = 0,
    session_limit: config.SessionLimit = 64,
    kv_cache_limit_bytes: config.TargetKvCacheLimit = None,
    prefix_cache: config.PrefixCache = True,
    batch_limit: config.BatchLimit = 32,
    node_limit: config.NodeLimit = 1024,
    log_level: config.LogLevelOption = config.LogLevel.INFO,
    metrics_port: observability_options.MetricsPort = 0,
    otlp_endpoint: observability_options.OtlpEndpoint = None,
    trace_steps: observability_options.TraceSteps = 32,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
    reflection: security_options.Reflection = False,
) -> None:
    """Check token trees with the target model."""
    config.check_environment()
    configure_logging("target", log_level)
    offloading = {
        "--placement offload": placement is config.Placement.OFFLOAD,
        "--device-memory": device_memory is not None,
        "--host-memory": host_memory is not None,
    }
    try:
        ranks = chosen_ranks(os.environ, tensor_parallel, offloading)
    except RanksError as error:
        config.fail(str(error), 2)
    if ranks and ranks.rank:
        _follow(target, dtype, device, threads, ranks)
        return
    if ranks:
        os.environ["SEQUOIA_PARENT_PID"] = str(os.getppid())  # torchrun's: all end if it is killed
    from sequoia.security import role_credentials
    from sequoia.tracing.opening import opened

    credentials = role_credentials(tls_certificate, tls_key, tls_authority)
    tracer = opened("target", otlp_endpoint, trace_steps)
    # Torch and transformers take seconds to import; wrong options should fail before that.
    from sequoia.rpc.codec import VERIFY_TREE
    from sequoia.runtime.device import DeviceThread
    from sequoia.runtime.offload.placement import PlacementOptions
    from sequoia.runtime.pairing import load_target_worker
    from sequoia.runtime.service import serve_worker
    from sequoia.runtime.worker import WorkerLimits
    from target_service.verifier import Verifier

    options = PlacementOptions(
        placement, device_memory, host_memory, kv_cache_limit_bytes, node_limit
    )

    def load(device_thread: DeviceThread) -> Verifier:
        parts = load_target_worker(target, dtype, device, options, ranks)
        limits = WorkerLimits(
            session_limit,
            parts.kv_cache_limit_bytes,
            node_limit,
            batch_limit,
            pass_tokens=parts.pass_tokens,
            prefix_cache=prefix_cache,
        )
        return Verifier(
            parts.name,
            parts.model,
            parts.tokenizer_sha256,
            limits,
            device_thread,
            model_sha256=parts.model_sha256,
        )

    run(
        serve_worker(
            VERIFY_TREE,
            load,
            host,
            port,
            threads,
            batch_limit,
            credentials.server,
            reflection,
            metrics_port,
            tracer,
        )
    )


def _follow(target: str, dtype: str, device: str, threads: int, ranks: Ranks) -> None:
    """Be a rank that serves nobody itself."""
    from sequoia.runtime.catalogue import ModelError
    from sequoia.runtime.sharding.following import LostLeadError
    from sequoia.runtime.sharding.starting import follow_shards

    try:
        follow_shards(target, dtype, device, threads, ranks)
    except (ModelError, LostLeadError, OSError) as error:
        config.fail(f"rank {ranks.rank}: {error}")


if __name__ == "__main__":
    app()
