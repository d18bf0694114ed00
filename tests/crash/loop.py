"""A run: epochs dealt from one seed, two at a time where wanted, and the report of what they came to."""

import random
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tests.alpaca.faults import FAULTS
from tests.crash.board import POINTS
from tests.crash.broker import Broker
from tests.crash.desks import Zygote
from tests.crash.epoch import Due, Epoch, Outcome, faults_of
from tests.crash.ground import Database, Sqlite
from tests.crash.invariants import INVARIANTS

_EXTRA_EPOCHS_MAX = 3
ACTS = (
    "kill",
    "kill_at_point",
    "stop_and_go_on",
    "sigterm",
    "second_server",
    "second_server_while_first_is_stopped",
    "disk_full",
    "database_locked",
    "read_only",
    "clock_step",
    "broker_silent",
    "streams_cut",
)

# What most bugs of an order path need to show themselves.
QUICK_FAULTS = (
    "accepted_then_dropped",
    "accepted_then_504",
    "late_landing",
    "lookup_404_just_after_acceptance",
    "reset",
    "503",
    "stream_tripled",
    "stream_lost",
    "fill_before_ack",
)


@dataclass(frozen=True, slots=True)
class Plan:
    kills: int
    seed: str
    ledger: str = "sqlite"
    epoch_kills: int = 60
    jobs: int = 1
    mutant: str = ""
    pause_s: float = 0.08
    nice: int = 0
    # Stop at the first epoch that breaks an invariant.
    first_only: bool = False
    only_epoch: int | None = None
    # Skip the acts that take long and prove little of a mutant.
    hurry: bool = False
    keep: bool = False

    @property
    def epochs(self) -> int:
        return -(-self.kills // self.epoch_kills)


@dataclass(slots=True)
class Run:
    plan: Plan
    directory: Path
    seconds: float = 0.0
    epochs: list[Outcome] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(outcome.kills for outcome in self.epochs)

    @property
    def violations(self) -> list[tuple[int, str]]:
        return [one for outcome in self.epochs for one in outcome.violations]

    def total(self, name: str) -> Counter[str]:
        counts: Counter[str] = Counter()
        for outcome in self.epochs:
            for key, count in getattr(outcome, name).items():
                counts[key] += count
        return counts

    def never(self) -> list[str]:
        """Faults, acts and kill points of which there was none."""
        acts = _acts(self.plan)
        wanted = [(self.total("faults"), FAULTS), (self.total("acts"), acts), (self.total("points"), POINTS)]
        return [name for counts, names in wanted for name in names if not counts[name]]


def run(plan: Plan, *, quiet: bool = False) -> Run:
    result = Run(plan, Path(tempfile.mkdtemp(prefix="desk-crash-")))
    began = time.monotonic()
    crew = _Crew(plan, result, quiet)
    try:
        crew.work([_Task(number, kills) for number, kills in _deal(plan)])
        # What chance has not shown is asked for.
        for extra in range(_EXTRA_EPOCHS_MAX):
            missing = result.never()
            if plan.hurry or plan.only_epoch is not None or crew.stop.is_set() or not missing:
                break
            crew.work([_Task(plan.epochs + extra, max(plan.epoch_kills // 3, 20), tuple(missing))])
    finally:
        crew.close()
    result.seconds = time.monotonic() - began
    if not (result.violations or result.failed or plan.keep):
        shutil.rmtree(result.directory, ignore_errors=True)
    return result


@dataclass(frozen=True, slots=True)
class _Task:
    """An epoch to be done. `wanted`: what has not been shown yet, and is brought about."""

    number: int
    kills: int
    wanted: tuple[str, ...] = ()


class _Crew:
    """Threads with a zygote and a broker each, which do one epoch after the other."""

    def __init__(self, plan: Plan, result: Run, quiet: bool) -> None:
        self._plan, self._result, self._quiet = plan, result, quiet
        self._own = threading.local()
        self._opened: list[Zygote | Broker] = []
        self._pool = ThreadPoolExecutor(plan.jobs)
        self.stop = threading.Event()

    def work(self, tasks: list[_Task]) -> None:
        waiting = {self._pool.submit(self._do, task): task.number for task in tasks}
        for future in as_completed(waiting):
            try:
                outcome = future.result()
            except Exception as error:
                self._result.failed.append((waiting[future], f"{type(error).__name__}: {error}"))
                traceback.print_exception(error)
                self.stop.set()
                continue
            if outcome is None:
                continue
            self._result.epochs.append(outcome)
            if not self._quiet:
                print(_line(waiting[future], outcome), flush=True)

    def _do(self, task: _Task) -> Outcome | None:
        if self.stop.is_set():
            return None
        if not hasattr(self._own, "broker"):
            self._own.zygote = Zygote(self._result.directory / "zygote.log", self._plan.nice)
            self._own.broker = Broker(1, self._result.directory / "broker.log")
            self._opened += [self._own.zygote, self._own.broker]
        own = self._own
        outcome = _epoch(self._plan, task, self._result.directory, zygote=own.zygote, broker=own.broker)
        if outcome.violations and self._plan.first_only:
            self.stop.set()
        return outcome

    def close(self) -> None:
        self._pool.shutdown()
        for each in self._opened:
            each.close()


def _deal(plan: Plan) -> Iterator[tuple[int, int]]:
    """(number, kills) of each epoch."""
    left, number = plan.kills, 0
    while left > 0:
        if plan.only_epoch in (None, number):
            yield number, min(left, plan.epoch_kills)
        left -= plan.epoch_kills
        number += 1


def _epoch(plan: Plan, task: _Task, root: Path, *, zygote: Zygote, broker: Broker) -> Outcome:
    number = task.number
    chance = random.Random(f"{plan.seed}/{number}")
    directory = root / f"epoch-{number}"
    directory.mkdir()
    database = _database(plan, number, directory)
    try:
        epoch = Epoch(
            directory,
            f"{plan.seed}/{number}",
            zygote=zygote,
            broker=broker,
            database=database,
            mutant=plan.mutant,
            pause_s=plan.pause_s,
            hurry=plan.hurry,
        )
        outcome = epoch.run(task.kills, faults_of(chance, list(FAULTS)), _due(plan, task))
    finally:
        database.close(directory / "ledger-kept")
    if outcome.violations:
        lines = [f"{number} {INVARIANTS[number].__doc__}\n    {breach}\n" for number, breach in outcome.violations]
        (directory / "violations.txt").write_text("".join(lines))
    elif not plan.keep:
        shutil.rmtree(directory, ignore_errors=True)
    return outcome


def _acts(plan: Plan) -> list[str]:
    return [*ACTS, "database_killed", "database_stopped"] if plan.ledger == "postgres" else list(ACTS)


def _due(plan: Plan, task: _Task) -> Due:
    """This epoch's part of what no run may miss."""
    if task.wanted:
        names = set(task.wanted)
        acts = [name for name in _acts(plan) if name in names]
        return Due(acts, [name for name in FAULTS if name in names], 30, [name for name in POINTS if name in names])
    if plan.hurry:
        return Due([], list(QUICK_FAULTS), 2, [])
    acts = _acts(plan)
    random.Random(plan.seed).shuffle(acts)
    return Due(acts[task.number :: plan.epochs], list(FAULTS)[task.number :: plan.epochs], 2, [])


def _database(plan: Plan, number: int, directory: Path) -> Database:
    if plan.ledger == "postgres":
        from tests.crash.postgres import Postgres  # noqa: PLC0415  (its driver may be missing)

        return Postgres(random.Random(f"database {plan.seed}/{number}"))
    return Sqlite(directory / "run")


def _line(number: int, outcome: Outcome) -> str:
    return (
        f"epoch {number}: {outcome.kills} kills, {outcome.requests} requests, {outcome.orders} orders, "
        f"{outcome.fills} fills, {outcome.events} events, at rest after {outcome.heal_s:.1f} s, "
        f"zero open {outcome.zero_s:.1f} s after the halt, {len(outcome.violations)} violations"
    )


def report(result: Run) -> str:
    """For people: what was done, what held, what did not."""
    plan, lines = result.plan, []
    tables = {
        "Faults of the broker": "faults",
        "Acts": "acts",
        "Kill points": "points",
        "What the ledgers hold": "kinds",
        "What clients were told": "answers",
    }
    for title, name in tables.items():
        counts = result.total(name)
        lines.append(f"{title}:")
        lines += [f"  {key:40} {counts[key]}" for key in sorted(counts)]
    if ends := result.total("ends"):
        lines.append(f"Desks that ended by themselves: {dict(ends)}")
    broken = Counter(number for number, _ in result.violations)
    lines.append("Invariants:")
    for number, check in INVARIANTS.items():
        verdict = f"BROKEN {broken[number]} times" if broken[number] else "holds" if result.epochs else "not looked at"
        lines.append(f"  {(check.__doc__ or '').strip():100} {verdict}")
    lines += [f"  {number}: {breach}" for number, breach in result.violations[:40]]
    lines += [f"epoch {number} failed: {why}" for number, why in result.failed]
    totals = {
        name: sum(getattr(outcome, name) for outcome in result.epochs)
        for name in ("kills", "requests", "replayed", "orders", "fills", "events")
    }
    heal_s = max((outcome.heal_s for outcome in result.epochs), default=0.0)
    zero_s = max((outcome.zero_s for outcome in result.epochs), default=0.0)
    lines.append(
        f"{totals['kills']} kills, {totals['requests']} requests, {totals['replayed']} replays, "
        f"{totals['orders']} orders at the broker, {totals['fills']} fills, {totals['events']} events, "
        f"{len(result.violations)} violations, at rest within {heal_s:.1f} s, no open order {zero_s:.1f} s after a halt"
    )
    lines.append(
        f"ledger {plan.ledger}, {len(result.epochs)} epochs, {result.seconds:.0f} s, seed {plan.seed}"
        + (f", mutant {plan.mutant}" if plan.mutant else "")
    )
    if result.directory.exists():
        lines.append(f"All logs are in {result.directory}")
    return "\n".join(lines)
