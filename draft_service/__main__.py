"""`python -m draft_service`: run a draft worker."""

from __future__ import annotations

import typer

from sequoia import config, observability_options, security_options
from sequoia.log import configure_logging
from sequoia.rpc.role import run

app = typer.Typer(add_completion=False)


@app.command()
def main(
    draft: config.Draft = None,
    target: config.Target = config.DEFAULT_TARGET,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50052,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    threads: config.Threads = 0,
    session_limit: config.SessionLimit = 64,
    kv_cache_limit_bytes: config.KvCacheLimit = 2**30,
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
    """Grow token trees with a draft model.

    The target is named for drafts that borrow its embedding and tokenizer.
    """
    config.check_environment()
    configure_logging("draft", log_level)
    from sequoia.security import role_credentials
    from sequoia.tracing.opening import opened

    credentials = role_credentials(tls_certificate, tls_key, tls_authority)
    tracer = opened("draft", otlp_endpoint, trace_steps)
    # Torch and transformers take seconds to import; wrong options should fail before that.
    from draft_service.grower import Grower
    from sequoia.rpc.codec import GROW_TREE
    from sequoia.runtime.device import DeviceThread
    from sequoia.runtime.pairing import load_draft_worker
    from sequoia.runtime.service import serve_worker
    from sequoia.runtime.worker import WorkerLimits

    limits = WorkerLimits(
        session_limit, kv_cache_limit_bytes, node_limit, batch_limit, prefix_cache=prefix_cache
    )

    def load(device_thread: DeviceThread) -> Grower:
        parts = load_draft_worker(draft, target, dtype, device)
        return Grower(
            parts.name,
            parts.model,
            parts.tokenizer_sha256,
            limits,
            device_thread,
            model_sha256=parts.model_sha256,
        )

    run(
        serve_worker(
            GROW_TREE,
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


if __name__ == "__main__":
    app()
