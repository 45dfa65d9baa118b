"""`sequoia bench`: what the system does on this machine, against others and against its limits.

`docs/benchmarks.md` says what the figures mean and how they are kept fair.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sequoia import config
from sequoia.bench.prompts import MT_BENCH
from sequoia.cli.bench_common import (
    RESULTS,
    STREAM_LIMIT,
    AsJson,
    CpuThreads,
    NewTokens,
    Out,
    PromptCount,
    Prompts,
    Repetitions,
    Temperature,
    clear_errors,
    hand_over,
    read_counts,
    read_shares,
    read_sizes,
    read_stream_counts,
    split_counts,
    split_shares,
    split_sizes,
)
from sequoia.cli.bench_figures import figures

bench_app = typer.Typer(
    name="bench",
    help="Measure the system on this machine; results go to files and to stdout.",
    no_args_is_help=True,
)
bench_app.command()(figures)


@bench_app.command()
def peers(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    assistant: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Another draft, for one more row of assisted generation in transformers.",
        ),
    ] = None,
    prompts: Prompts = None,
    prompt_count: PromptCount = 8,
    temperature: Temperature = 0.0,
    max_new_tokens: NewTokens = 128,
    repetitions: Repetitions = 3,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    threads: CpuThreads = 0,
    out: Out = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Compare seconds per token with transformers and llama.cpp on the same prompts and weights."""
    with clear_errors(out):
        from sequoia.cli.bench_peers import PeersBenchmark

        benchmark = PeersBenchmark(
            target,
            draft,
            assistant,
            prompts or MT_BENCH,
            prompt_count,
            temperature,
            max_new_tokens,
            dtype,
            device,
            repetitions,
            threads,
        )
        hand_over(benchmark.run(), out, as_json)


@bench_app.command()
def forward(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    nodes: Annotated[
        str, typer.Option(callback=read_counts, help="Nodes of a tree, by commas.")
    ] = "1,2,4,8,16,32,64",
    batch: Annotated[
        str, typer.Option(callback=read_counts, help="Sessions in a pass, by commas.")
    ] = "1,4,8",
    prefix: Annotated[
        str, typer.Option(callback=read_counts, help="Cached tokens of a session, by commas.")
    ] = "128,512",
    repetitions: Repetitions = 15,
    threads: CpuThreads = 0,
    out: Out = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Time single passes of both models against the limits of memory and of matrix products."""
    with clear_errors(out):
        from sequoia.cli.bench_forward import ForwardBenchmark

        benchmark = ForwardBenchmark(
            target,
            draft,
            dtype,
            device,
            split_counts(nodes),
            split_counts(batch),
            split_counts(prefix),
            repetitions,
            threads,
        )
        hand_over(benchmark.run(), out, as_json)


@bench_app.command()
def serve(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    prompts: Prompts = None,
    prompt_count: PromptCount = 40,
    temperature: Temperature = 0.0,
    max_new_tokens: NewTokens = 64,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    concurrency: Annotated[
        str,
        typer.Option(
            callback=read_stream_counts,
            help="Streams of one request after another, by commas.",
        ),
    ] = "1,2,4,8,16",
    rate: Annotated[
        str,
        typer.Option(
            callback=read_shares,
            help="Rates of requests that arrive at random, as shares of the capacity measured with "
            "streams, by commas; empty for none.",
        ),
    ] = "0.5,0.8",
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of every turn.")] = 20.0,
    repetitions: Repetitions = 3,
    threads: CpuThreads = 0,
    out: Out = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Load the service with many streams, with and without speculation, and time what they see."""
    with clear_errors(out):
        from sequoia.cli.bench_serve import ServeBenchmark

        benchmark = ServeBenchmark(
            target,
            draft,
            prompts or MT_BENCH,
            prompt_count,
            temperature,
            max_new_tokens,
            dtype,
            device,
            split_counts(concurrency),
            split_shares(rate),
            seconds,
            repetitions,
            threads,
        )
        hand_over(benchmark.run(), out, as_json)


@bench_app.command()
def soak(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    prompts: Prompts = None,
    prompt_count: PromptCount = 40,
    max_new_tokens: NewTokens = 64,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 30.0,
    clients: Annotated[int, typer.Option(min=1, max=STREAM_LIMIT, help="Requests in flight.")] = 4,
    threads: CpuThreads = 0,
    out: Out = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Load the system for long with clients of every kind; fails if memory or sessions stay behind."""
    with clear_errors(out):
        from sequoia.cli.bench_soak import SoakBenchmark

        benchmark = SoakBenchmark(
            target,
            draft,
            prompts or MT_BENCH,
            prompt_count,
            max_new_tokens,
            dtype,
            device,
            minutes,
            clients,
            threads,
        )
        hand_over(benchmark.run(), out, as_json)


@bench_app.command()
def offload(
    target: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Target with safetensors, instead of a widened one."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|LxH[:FFN]",
            help="Shape that the built-in target is widened to, once, in the cache folder. "
            "Default: 7b, which takes 13 GB of disk.",
        ),
    ] = None,
    draft: config.Draft = None,
    other_draft: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Another draft, such as a deeper one, to show both."),
    ] = None,
    device_memory: Annotated[
        int,
        typer.Option(
            parser=config.read_size, metavar="BYTES", help="Memory for the target, such as 4GiB."
        ),
    ] = config.read_size("4GiB"),
    budgets: Annotated[
        str,
        typer.Option(
            callback=read_sizes,
            metavar="BYTES,...",
            help="Ours with each of these as well, for the plot of time against memory.",
        ),
    ] = "",
    prompts: Prompts = None,
    prompt_count: PromptCount = 2,
    max_new_tokens: NewTokens = 48,
    plain_tokens: Annotated[
        int,
        typer.Option(min=2, help="Most new tokens of systems that make one with every pass."),
    ] = 5,
    repetitions: Repetitions = 1,
    dtype: config.DTypeOption = config.DType.BFLOAT16,
    threads: CpuThreads = 0,
    out: Out = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Stream a target that is larger than its memory: ours, with and without trees, and accelerate."""
    with clear_errors(out):
        from sequoia.bench.offload.models import ModelChoice
        from sequoia.cli.bench_offload import OffloadBenchmark

        benchmark = OffloadBenchmark(
            ModelChoice(target, shape, draft, other_draft),
            prompts or MT_BENCH,
            prompt_count,
            max_new_tokens,
            plain_tokens,
            device_memory,
            split_sizes(budgets),
            dtype,
            repetitions,
            threads,
        )
        hand_over(benchmark.run(), out, as_json)
