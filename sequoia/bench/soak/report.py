"""`sequoia bench soak` as JSON, tables and a plot, with a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure

from sequoia.bench.environment import Environment
from sequoia.bench.report import Result, Table
from sequoia.bench.soak.memory import Drift, Sample
from sequoia.bench.soak.traffic import Tally

DRIFT_LIMIT = 0.02
# Its few megabytes move by more than the limit for no reason; it is shown and not judged.
NOT_JUDGED = frozenset({"valkey"})
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Soaked:
    """Everything that was seen.

    Attributes:
        samples: of every role.
        drifts: of every role; None where the run was too short to tell.
        tally: how requests ended.
        sessions_left: on each worker, once all clients had left.
    """

    samples: Mapping[str, Sequence[Sample]]
    drifts: Mapping[str, Drift | None]
    tally: Tally
    sessions_left: Mapping[str, int]

    def problems(self) -> list[str]:
        """What broke a limit, one sentence each."""
        found = []
        for role, drift in self.drifts.items():
            if drift is None:
                found.append(f"{role}: too few samples to judge its memory")
            elif role not in NOT_JUDGED and drift.change >= DRIFT_LIMIT:
                found.append(f"{role}: memory grew by {drift.change:.1%}, limit {DRIFT_LIMIT:.0%}")
        for role, samples in self.samples.items():
            if len({sample.pid for sample in samples}) > 1:
                found.append(f"{role}: was started again")
        for role, count in self.sessions_left.items():
            if count:
                found.append(f"{role}: {count} sessions left")
        if failed := self.tally.counts["failed"]:
            found.append(f"{failed} requests failed, {self.tally.failures[0]} first")
        return found


def make_result(soaked: Soaked, settings: Mapping[str, object], environment: Environment) -> Result:
    """The report; `settings` must name `dtype`."""
    problems = soaked.problems()

    def draw(figure: Figure) -> None:
        _draw(figure, soaked.samples)

    return Result(
        "soak",
        f"soak-{settings['dtype']}",
        environment,
        settings,
        {
            "passed": not problems,
            "problems": problems,
            "drift": {role: drift and asdict(drift) for role, drift in soaked.drifts.items()},
            "drift_limit": DRIFT_LIMIT,
            "sessions_left": dict(soaked.sessions_left),
            "requests": dict(soaked.tally.counts),
            "tokens": soaked.tally.token_count,
            "failures": soaked.tally.failures,
            "samples": {
                role: [[round(s.seconds, 1), s.rss_bytes, s.pss_bytes] for s in samples]
                for role, samples in soaked.samples.items()
            },
            "samples_are": "seconds, RSS in bytes, PSS in bytes",
        },
        [_memory(soaked), _requests(soaked)],
        draw,
        [f"Verdict: {'; '.join(problems) or 'within all limits'}."],
        "; ".join(problems),
    )


def _memory(soaked: Soaked) -> Table:
    header = ("role", "RSS first, MiB", "RSS last, MiB", "drift", "fitted drift", "PSS last, MiB")
    rows = []
    for role, drift in soaked.drifts.items():
        pss = f"{soaked.samples[role][-1].pss_bytes / MIB:.1f}" if soaked.samples[role] else ""
        if drift is None:
            rows.append((role, "", "", "too short", "", pss))
            continue
        sizes = f"{drift.first_bytes / MIB:.1f}", f"{drift.last_bytes / MIB:.1f}"
        rows.append((role, *sizes, f"{drift.change:+.2%}", f"{drift.fitted_change:+.2%}", pss))
    return Table(f"Memory once settled; limit of the drift {DRIFT_LIMIT:.0%}", header, rows)


def _requests(soaked: Soaked) -> Table:
    rows = [(name, str(count)) for name, count in sorted(soaked.tally.counts.items())]
    rows += [(f"sessions left, {role}", str(n)) for role, n in soaked.sessions_left.items()]
    rows.append(("tokens", str(soaked.tally.token_count)))
    return Table("Requests", ("how they ended", "count"), rows)


def _draw(figure: Figure, samples: Mapping[str, Sequence[Sample]]) -> None:
    axes = figure.add_subplot()
    for role, mine in samples.items():
        minutes = [sample.seconds / 60 for sample in mine]
        axes.plot(minutes, [sample.rss_bytes / MIB for sample in mine], label=role)
    axes.set_yscale("log")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter("{x:g}")
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MiB")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
