"""Options that several roles share, each with its flag and its environment variable.

Typer reads a flag before its variable, checks types and ranges, and ends the process with status 2
and the name of whatever is wrong. `check_environment` does the same for unknown variables.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from types import ModuleType
from typing import Annotated, NoReturn

import typer

from sequoia import observability_options, security_options
from sequoia.redis_url import RedisUrlError, check_redis_url

PREFIX = "SEQUOIA_"
DEFAULT_TARGET = "smollm2-135m-instruct"
SIZE = re.compile(r"(\d+(?:\.\d+)?)(KiB|MiB|GiB)?")
SIZE_LIMIT_BYTES = 2**60
UNITS = {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
HOST_LENGTH = 253
HOST = re.compile(r"[a-zA-Z0-9_-]{1,63}(\.[a-zA-Z0-9_-]{1,63})*\.?")
ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})")


class DType(StrEnum):
    """Element type of weights and activations."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    """Where a model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Placement(StrEnum):
    """Where a target's weights are."""

    AUTO = "auto"
    ON_CHIP = "on-chip"
    OFFLOAD = "offload"


class LogLevel(StrEnum):
    """The least severe level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def read_address(value: str | None) -> str | None:
    """Check HOST:PORT as typer wants a callback to."""
    if value is None:
        return None
    match = ADDRESS.fullmatch(value)
    if not match or not _is_host(match.group(1)) or not 0 < int(match.group(2)) < 65536:
        raise typer.BadParameter(f"{value!r} is not HOST:PORT with a port from 1 to 65535")
    return value


def addresses(value: str | None) -> tuple[str, ...]:
    """The addresses of a list that is separated by commas; none of None."""
    return tuple(part.strip(" ") for part in value.split(",")) if value else ()


def read_addresses(value: str | None) -> str | None:
    """Check HOST:PORT,HOST:PORT,... as typer wants a callback to."""
    if value is None:
        return None
    several = addresses(value) or ("",)
    if "" in several:
        raise typer.BadParameter(f"{value!r} has an empty place where HOST:PORT should be")
    for one in several:
        read_address(one)
    hosts = [one.lower().rpartition(":") for one in several]
    if len({(host, int(port)) for host, _, port in hosts}) < len(several):
        raise typer.BadParameter(f"{value!r} names an address twice")
    return value


def _is_host(host: str) -> bool:
    """Whether a host can be one: an IPv6 address in brackets, or labels between dots."""
    if not host.startswith("["):
        return len(host) <= HOST_LENGTH and HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def read_size(value: str | int) -> int:
    """Bytes of `4GiB`, `512MiB`, `64KiB` or a plain number; typer's parser of sizes."""
    match = SIZE.fullmatch(str(value))
    if not match:
        raise typer.BadParameter(
            f"{value!r:.80} is not a number of bytes, such as 4GiB or 536870912"
        )
    byte_count = float(match.group(1)) * UNITS[match.group(2)]
    if byte_count > SIZE_LIMIT_BYTES:
        raise typer.BadParameter(f"{value!r:.80} is more than {SIZE_LIMIT_BYTES} bytes")
    if round(byte_count) < 1:
        raise typer.BadParameter(f"{value!r:.80} is not above 0")
    return round(byte_count)


def _redis_url(value: str | None) -> str | None:
    try:
        if value is not None:
            check_redis_url(value)
    except RedisUrlError as error:
        raise typer.BadParameter(f"the URL {error}") from None
    return value


Host = Annotated[str, typer.Option(envvar="SEQUOIA_HOST", help="Address to listen on.")]
Port = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_PORT", min=0, max=65535, help="Port to listen on; 0 takes a free one."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="SEQUOIA_ADDRESS",
        callback=read_address,
        help="HOST:PORT of a running system; without it one is started and ended again.",
    ),
]
PlannerAddress = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="SEQUOIA_PLANNER_ADDRESS",
        callback=read_address,
        help="HOST:PORT of the planner; `sequoia up` prints it.",
    ),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis", envvar="SEQUOIA_REDIS", callback=_redis_url, help="URL of Redis or Valkey."
    ),
]
DraftAddresses = Annotated[
    str | None,
    typer.Option(
        envvar="SEQUOIA_DRAFT_ADDRESS",
        callback=read_addresses,
        help="HOST:PORT of the draft workers, separated by commas; a name may stand for several.",
    ),
]
TargetAddresses = Annotated[
    str,
    typer.Option(
        envvar="SEQUOIA_TARGET_ADDRESS",
        callback=read_addresses,
        help="HOST:PORT of the target workers, separated by commas; a name may stand for several.",
    ),
]
Target = Annotated[
    str,
    typer.Option(
        envvar="SEQUOIA_TARGET", help="Target model: built-in name, local folder or hub id."
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        envvar="SEQUOIA_DRAFT",
        help="Draft model, named likewise. Default: the target's own, if it has one.",
    ),
]
DTypeOption = Annotated[
    DType,
    typer.Option(
        "--dtype", envvar="SEQUOIA_DTYPE", help="auto: bfloat16 on a GPU, float32 on a CPU."
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", envvar="SEQUOIA_DEVICE", help="auto: a GPU where there is one."),
]
PlacementOption = Annotated[
    Placement,
    typer.Option(
        "--placement",
        envvar="SEQUOIA_PLACEMENT",
        help="on-chip: the target's weights stay on its device; offload: they are streamed through "
        "it at every pass; auto: on-chip where they fit.",
    ),
]
DeviceMemory = Annotated[
    int | None,
    typer.Option(
        envvar="SEQUOIA_DEVICE_MEMORY",
        parser=read_size,
        metavar="BYTES",
        help="Most memory of the target on its device, such as 4GiB; on a CPU, of its process. "
        "Default: most of what is free.",
    ),
]
HostMemory = Annotated[
    int | None,
    typer.Option(
        envvar="SEQUOIA_HOST_MEMORY",
        parser=read_size,
        metavar="BYTES",
        help="Most memory of the host for a target that is streamed to a GPU: for KV cache that the GPU "
        "does not hold, and for layers; those that do not fit are read from disk. Default: most of what "
        "is free.",
    ),
]
TensorParallel = Annotated[
    bool,
    typer.Option(
        "--tensor-parallel",
        envvar="SEQUOIA_TENSOR_PARALLEL",
        help="Share the target with the other processes that torchrun has started, a device each.",
    ),
]
SessionLimit = Annotated[
    int,
    typer.Option(envvar="SEQUOIA_SESSION_LIMIT", min=1, max=65536, help="Most sessions at a time."),
]
KvCacheLimit = Annotated[
    int,
    typer.Option(
        "--kv-cache-limit-bytes",
        envvar="SEQUOIA_KV_CACHE_LIMIT_BYTES",
        min=2**20,
        help="Most bytes of KV cache over all sessions, and of what is kept of closed ones, which fills what "
        "the others leave.",
    ),
]
TargetKvCacheLimit = Annotated[
    int | None,
    typer.Option(
        "--kv-cache-limit-bytes",
        envvar="SEQUOIA_KV_CACHE_LIMIT_BYTES",
        min=2**20,
        help="Most bytes of KV cache over all sessions, and of what is kept of closed ones, which fills what "
        "the others leave. Default: 4 GiB; of a target that is offloaded, an eighth of its device memory, or "
        "what 1,024 tokens take. On a GPU, what is beyond that stays in the host's memory.",
    ),
]
PrefixCache = Annotated[
    bool,
    typer.Option(
        "--prefix-cache/--no-prefix-cache",
        envvar="SEQUOIA_PREFIX_CACHE",
        help="Keep what closed sessions have read, as long as nobody needs the room, for prompts that begin "
        "alike.",
    ),
]
BatchLimit = Annotated[
    int,
    typer.Option(envvar="SEQUOIA_BATCH_LIMIT", min=1, max=1024, help="Most sessions in one pass."),
]
NodeLimit = Annotated[
    int, typer.Option(envvar="SEQUOIA_NODE_LIMIT", min=1, max=4096, help="Most nodes of a tree.")
]
Threads = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_THREADS",
        min=0,
        max=1024,
        help="CPU threads of the model; 0: torch's default.",
    ),
]
RequestLimit = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_REQUEST_LIMIT",
        min=1,
        max=65536,
        help="Most requests in flight; others wait.",
    ),
]
QueueLimit = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_QUEUE_LIMIT",
        min=0,
        max=65536,
        help="Most requests that wait for their turn; 0 turns waiting off.",
    ),
]
QueueSeconds = Annotated[
    float,
    typer.Option(
        envvar="SEQUOIA_QUEUE_SECONDS",
        min=0.0,
        help="Seconds that a request waits for its turn before it is refused.",
    ),
]
REPLICA_LIMIT = 64
TargetReplicas = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_TARGET_REPLICAS", min=1, max=REPLICA_LIMIT, help="Target workers to start."
    ),
]
DraftReplicas = Annotated[
    int,
    typer.Option(
        envvar="SEQUOIA_DRAFT_REPLICAS", min=1, max=REPLICA_LIMIT, help="Draft workers to start."
    ),
]
DrainSeconds = Annotated[
    float,
    typer.Option(
        envvar="SEQUOIA_DRAIN_SECONDS",
        min=0.0,
        help="Seconds that running requests may go on after the signal to stop; then they are cut short.",
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens-limit",
        envvar="SEQUOIA_MAX_NEW_TOKENS_LIMIT",
        min=1,
        help="Most tokens that one request may generate.",
    ),
]
Patience = Annotated[
    float,
    typer.Option(
        "--target-patience",
        envvar="SEQUOIA_TARGET_PATIENCE",
        min=0.0,
        help="Seconds that a request waits for a lost target before it fails; for one with long passes, "
        "8 of these more.",
    ),
]
CallSeconds = Annotated[
    float,
    typer.Option(
        "--call-timeout",
        envvar="SEQUOIA_CALL_TIMEOUT",
        min=0.1,
        help="Seconds that one call to a worker may take beside its passes; opening a session, "
        "100 ms more per token.",
    ),
]
DraftSeconds = Annotated[
    float,
    typer.Option(
        "--draft-timeout",
        envvar="SEQUOIA_DRAFT_TIMEOUT",
        min=0.1,
        help="Seconds that a call to the draft worker may take beside its passes before a step does "
        "without it.",
    ),
]
MaxNodes = Annotated[
    int | None,
    typer.Option(
        envvar="SEQUOIA_MAX_NODES",
        min=1,
        max=1024,
        help="Most nodes that a plan may choose. Default: 64; for a target that is offloaded, 1024.",
    ),
]
MaxLevels = Annotated[
    int | None,
    typer.Option(
        envvar="SEQUOIA_MAX_LEVELS",
        min=1,
        max=64,
        help="Most levels that a plan may choose. Default: 8; for a target that is offloaded, 24.",
    ),
]
MaxBatchSize = Annotated[
    int | None,
    typer.Option(
        envvar="SEQUOIA_MAX_BATCH_SIZE",
        min=1,
        max=1024,
        help="Most requests side by side that are planned for; beyond, the plan for so many serves. "
        "Measuring takes as long for each size. Default: 16; where a pass takes half a second, 4.",
    ),
]
ReplanSeconds = Annotated[
    float,
    typer.Option(
        "--replan-interval",
        envvar="SEQUOIA_REPLAN_INTERVAL",
        min=0.1,
        help="Seconds between looks at the statistics.",
    ),
]
LogLevelOption = Annotated[
    LogLevel,
    typer.Option("--log-level", envvar="SEQUOIA_LOG_LEVEL", help="Least severe level written."),
]

# Read without a flag: where models are kept, and whose child a role is.
OTHER_VARIABLES = frozenset({"SEQUOIA_CACHE", "SEQUOIA_PARENT_PID"})


def known_variables() -> frozenset[str]:
    """Every environment variable that some role reads."""
    here = sys.modules[__name__]
    modules = (here, security_options, observability_options)
    return OTHER_VARIABLES.union(*(variables_of(module) for module in modules))


def variables_of(options: ModuleType) -> frozenset[str]:
    """The environment variables of the options in a module."""
    return frozenset(
        variable
        for option in vars(options).values()
        for info in getattr(option, "__metadata__", ())
        for variable in ([info.envvar] if isinstance(info.envvar, str) else info.envvar or [])
    )


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """End the process with status 2 when a variable is set that nobody reads, likely a typo."""
    unknown = sorted(
        name for name in environment if name.startswith(PREFIX) and name not in known_variables()
    )
    if unknown:
        fail(f"unknown environment variable {', '.join(unknown)}", 2)


def fail(message: str, status: int = 1) -> NoReturn:
    """Say what is wrong on stderr and end the process."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)
