"""Which of torchrun's processes this is; read before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLAG = "--tensor-parallel"
COMMAND = "torchrun --nproc-per-node N -m target_service"
# What torch needs to find the other processes; torchrun sets them all.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = "TORCHELASTIC_RUN_ID"


class RanksError(Exception):
    """The options and the way in which the process was started contradict each other."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those that share a model; the one of rank 0 leads, the others follow."""

    rank: int
    size: int
    local_rank: int  # among those on this machine
    local_size: int


def chosen_ranks(
    environment: Mapping[str, str], tensor_parallel: bool, excluded: Mapping[str, bool]
) -> Ranks | None:
    """This process's place among those that share the target; None for a target in one process.

    Args:
        environment: where torchrun says it.
        tensor_parallel: whether the operator wants a shared target.
        excluded: options that do not go with one, and whether they were given.

    Raises:
        RanksError: one was asked for without torchrun, or the other way round, or with an option
            that does not go with it.
    """
    if not tensor_parallel:
        if TORCHRUN in environment and environment.get("WORLD_SIZE", "1") != "1":
            raise RanksError(
                f"torchrun started {environment['WORLD_SIZE']} processes: a target that they share "
                f"needs {FLAG}"
            )
        return None
    for name, is_given in excluded.items():
        if is_given:
            raise RanksError(f"{FLAG} and {name} exclude each other")
    if missing := [name for name in VARIABLES if name not in environment]:
        raise RanksError(f"{FLAG} needs torchrun ({COMMAND}): {', '.join(missing)} not set")
    try:
        rank, size, local_rank, local_size = (int(environment[name]) for name in VARIABLES[:4])
    except ValueError as error:
        raise RanksError(f"{', '.join(VARIABLES[:4])}: {error}") from error
    if size < 2:
        raise RanksError(
            f"{FLAG} needs at least 2 processes (--nproc-per-node): WORLD_SIZE is {size}"
        )
    return Ranks(rank, size, local_rank, local_size)
