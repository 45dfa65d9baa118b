"""Who takes part: every system that can run here, warmed up, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sequoia.bench.errors import HostError, UnavailableError
from sequoia.bench.host import ProcessHost
from sequoia.bench.peers.comparison import OURS, OURS_ALONE, OURS_IN_PROCESS, REFERENCE
from sequoia.bench.peers.gguf_files import gguf_files
from sequoia.bench.peers.runs import Prompt, System
from sequoia.bench.peers.with_llama_cpp import MakeLlamaCppPeer, require_llama_cpp
from sequoia.bench.peers.with_transformers import MakeTransformersPeer
from sequoia.runtime.progress import Progress

ASSISTED = "transformers-assisted"
PROMPT_LOOKUP = "transformers-prompt-lookup"
LLAMA_CPP = "llama.cpp"
LLAMA_CPP_TYPES = {"bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all systems have in common.

    Attributes:
        threads: of the target, in every system.
        context: tokens of the longest prompt with its continuation.
    """

    target: str
    dtype: str
    device: str
    threads: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    context: int


@dataclass(slots=True)
class Entrants:
    """Systems by name, in the order of the report; and who was left out, with the reason."""

    warm_up_prompts: Sequence[Prompt]
    hosts: ExitStack
    systems: dict[str, System] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def admit(self, name: str, system: System) -> bool:
        """Warm a system up and let it take part; one that fails is left out.

        Raises:
            HostError: the reference failed, without which there is no comparison.
        """
        try:
            for prompt in self.warm_up_prompts:
                system(prompt)
        except (HostError, UnavailableError) as error:
            if name == REFERENCE:
                raise
            self.skipped[name] = str(error)
            return False
        self.systems[name] = system
        self.skipped.pop(name, None)  # of an earlier attempt
        return True

    def host(self, name: str, make: Callable[[], object]) -> ProcessHost:
        """A process for a peer, which ends with the comparison."""
        return self.hosts.enter_context(ProcessHost(name, make))


def add_transformers(
    entrants: Entrants, conditions: Conditions, assistants: Mapping[str, str]
) -> ProcessHost:
    """`generate` alone, with prompt lookup, and with each assistant; returns their process.

    Args:
        entrants: to add to.
        conditions: as for everybody.
        assistants: drafts by the name of their row.
    """
    peer = entrants.host(
        REFERENCE,
        MakeTransformersPeer(
            conditions.target,
            conditions.dtype,
            conditions.device,
            conditions.threads,
            conditions.temperature,
            conditions.stop_token_ids,
        ),
    )
    entrants.admit(REFERENCE, partial(peer.call, "generate", "plain"))
    for name, reference in assistants.items():
        try:
            peer.call("add_assistant", name, reference)
        except (UnavailableError, HostError) as error:
            entrants.skipped[name] = str(error)
        else:
            entrants.admit(name, partial(peer.call, "generate", name))
    entrants.admit(PROMPT_LOOKUP, partial(peer.call, "generate", "prompt-lookup"))
    return peer


def add_llama_cpp(entrants: Entrants, conditions: Conditions, progress: Progress) -> None:
    """Every type of weights in a process of its own, with and without prompt lookup."""
    try:
        require_llama_cpp(conditions.device)
        files = gguf_files(conditions.target, progress)
    except UnavailableError as error:
        entrants.skipped[LLAMA_CPP] = str(error)
        return
    for kind, file in files.items():
        _add_llama_cpp_type(entrants, conditions, f"{LLAMA_CPP}-{kind}", file)


def _add_llama_cpp_type(entrants: Entrants, conditions: Conditions, name: str, file: Path) -> None:
    for with_extra_buffers in (True, False):
        make = MakeLlamaCppPeer(
            file,
            conditions.context,
            conditions.device,
            conditions.threads,
            conditions.temperature,
            conditions.stop_token_ids,
            with_extra_buffers,
        )
        peer = entrants.host(name, make)
        if entrants.admit(name, partial(peer.call, "generate", False)):
            break
        # Its kernels for AMX are known to crash on some processors with quantised weights.
    else:
        return
    if not with_extra_buffers:
        entrants.notes.append(
            f"{name} runs without weights repacked for this processor: with them it failed."
        )
    entrants.admit(f"{name}-prompt-lookup", partial(peer.call, "generate", True))


def pairs_to_compare(dtype: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which ratios are told, of systems with the same precision."""
    llama = f"{LLAMA_CPP}-{LLAMA_CPP_TYPES[dtype]}"
    assisted = [name for name in names if name.startswith(ASSISTED)]
    return [
        (OURS_ALONE, REFERENCE),
        (OURS, OURS_ALONE),
        (OURS, REFERENCE),
        *((OURS, name) for name in assisted),
        (OURS, PROMPT_LOOKUP),
        (OURS, OURS_IN_PROCESS),
        (OURS, llama),
        (OURS_ALONE, llama),
        (OURS, f"{llama}-prompt-lookup"),
    ]
