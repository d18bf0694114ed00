"""One epoch: a fresh ledger and broker, chaos, then peace, then the comparison."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash import trading
from tests.crash.board import Board
from tests.crash.broker import Broker
from tests.crash.clients import Raw
from tests.crash.desks import Desk, Zygote
from tests.crash.executioner import Executioner
from tests.crash.fold import Books
from tests.crash.ground import Database, desk_env, free_port
from tests.crash.history import History, Limits, is_ours, read_lines
from tests.crash.invariants import INVARIANTS, violations

HEAL_S = 30.0
# From halt and cancel-all until the broker has no open order: p99 is to be 5 s.
ZERO_S = 15.0
# For so long nothing may happen before it counts as rest: the broker takes up to 0.1 s over an order.
_QUIET_S = 0.4
# What must be so at rest; looked at until it is. And what no rest can mend.
_AT_REST = (5, 7, 11, 15)
_FOR_EVER = (1, 3, 4, 6, 8, 9, 14, 16)
# The exit code of a desk whose launcher failed, and how many desks may end by themselves before an epoch is given up.
_LAUNCHER_FAILED = 70
# From a desk's last look at its lease to the first byte of a request, on a busy machine.
_UNDER_WAY_NS = 100_000_000
_ENDS_MAX = 50


@dataclass(frozen=True, slots=True)
class Due:
    """What must not be missed: acts, faults of the broker (`times` each); and `points` before all other ones."""

    acts: list[str]
    faults: list[str]
    times: int
    points: list[str]


@dataclass(slots=True)
class Outcome:
    """What an epoch came to."""

    kills: int = 0
    orders: int = 0
    fills: int = 0
    requests: int = 0
    replayed: int = 0
    events: int = 0
    heal_s: float = 0.0
    zero_s: float = 0.0
    acts: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[int, str]] = field(default_factory=list)


class Epoch:
    def __init__(
        self,
        directory: Path,
        seed: str,
        *,
        zygote: Zygote,
        broker: Broker,
        database: Database,
        mutant: str = "",
        pause_s: float = 0.08,
        hurry: bool = False,
    ) -> None:
        """`hurry`: what is not at rest in time is enough, and need not be halted and replayed, too."""
        self.directory = directory
        self.seed = seed
        self.zygote, self.broker, self.database = zygote, broker, database
        self.mutant = mutant
        self.pause_s = pause_s
        self.hurry = hurry
        self.limits = Limits()
        self.self_trade = random.Random(f"self trade {seed}").choice(("refuse", "hold"))
        self.board = Board(directory / "board")
        self.desk: Desk | None = None
        self.stopped: list[tuple[int, int]] = []
        self.taken_over: list[tuple[int, int]] = []
        self.noticed: list[tuple[int, str]] = []
        self.ends: Counter[str] = Counter()
        self._born = 0
        self._ports = (free_port(), free_port())
        self._forgiven: set[int] = set()
        self._log = (directory / "acts.log").open("a")
        # The clients' line of the last halt, where it came to that.
        self._last_halt: list[dict[str, Any]] = []

    # For the executioner

    def spawn(self, *, second: bool = False) -> Desk:
        """Start a desk; it is the epoch's, unless it is a second one."""
        self._born += 1
        run_dir = self.database.second_run_dir(self.directory) if second else self.directory / "run"
        ports = (0, 0) if second else self._ports
        env = desk_env(run_dir, self.broker, self.limits, ports, self.self_trade)
        desk = self.zygote.fork(
            self._born,
            env=env | self.database.env(),
            log=str(self.directory / "desk.log"),
            board=str(self.directory / "board"),
            witness=str(self.directory / "witness.jsonl"),
            mutant=self.mutant,
        )
        self.note(f"desk {desk.number} is process {desk.pid}")
        if not second:
            self.desk = desk
        return desk

    def may_end(self, desk: Desk) -> None:
        """Its database was taken away: it may refuse to run."""
        self._forgiven.add(desk.number)

    def ended_by_itself(self, desk: Desk, code: int) -> None:
        self.note(f"desk {desk.number} ended by itself with {code}")
        self.ends[f"exit {code}"] += 1
        if code == _LAUNCHER_FAILED:
            raise RuntimeError(f"the launcher of desk {desk.number} failed: see {self.directory / 'desk.log'}")
        if self.ends.total() > _ENDS_MAX:
            raise RuntimeError(f"{_ENDS_MAX} desks ended by themselves: see {self.directory / 'desk.log'}")
        if desk.number not in self._forgiven:
            self.notice(15, f"desk {desk.number} ended by itself with {code}: see desk.log")

    def notice(self, number: int, sentence: str) -> None:
        self.note(f"NOTICED {number}: {sentence}")
        self.noticed.append((number, sentence))

    def note(self, sentence: str) -> None:
        print(f"{time.time():.3f} {sentence}", file=self._log, flush=True)

    # The epoch

    def run(self, kills: int, faults: dict[str, float], due: "Due") -> Outcome:
        executioner = Executioner(self, random.Random(f"executioner {self.seed}"), due.points)
        self.broker.control.reset(seed=abs(hash_of(self.seed)), cash=1_000_000)
        self.broker.control.settings(work_ms=[0, 60], cancel_ms=[0, 60], partial=0.3, again_ms=[5, 80])
        executioner.begin()
        ground = trading.settle(f"http://127.0.0.1:{self._ports[0]}", self.directory / "run")
        self.broker.control.price(dict(ground.prices))
        clients = trading.Clients(
            ground,
            self.directory,
            self.seed,
            pause_s=self.pause_s,
            patience_s=10.0 if self.hurry else 45.0,
        )
        try:
            self.broker.control.faults(faults)
            for name in due.faults:
                self.broker.control.arm(name, times=due.times)
            executioner.go_on_until(kills, due.acts)
            h, outcome = self._peace(executioner, ground, clients)
        finally:
            clients.close()
            if self.desk is not None:
                self.desk.kill()
            self._log.close()
        outcome.kills = executioner.kills
        outcome.acts = executioner.done
        outcome.points.update(self.board.hits)
        outcome.ends = self.ends
        outcome.violations = violations(h)
        return outcome

    def _peace(
        self, executioner: Executioner, ground: trading.Ground, clients: trading.Clients
    ) -> tuple[History, Outcome]:
        outcome = Outcome()
        raw = Raw(ground.url, ground.admin)
        self.note("heal")
        counts = self.broker.control.heal()
        outcome.faults.update(counts)
        self.board.clock_s = 0
        healed = time.monotonic()
        desk = executioner._alive()
        if not desk.ready(self.board, HEAL_S):
            self.notice(15, f"desk {desk.number} was not ready {HEAL_S} s after all faults were healed")
        if not clients.command("finish", 60.0):
            self.notice(15, "clients did not get their answers within 60 s")
        h = self._rest(healed, clients)
        outcome.heal_s = time.monotonic() - healed
        self.note(f"at rest after {outcome.heal_s:.1f} s")
        try:
            if self.hurry and self.noticed:
                raise trading.NotDone("not at rest: the rest of the checks is left out")
            self._look(raw, h)
            self._kill_switch(raw, clients, outcome)
        except trading.NotDone as error:
            self.notice(15, str(error))
        h.broker = self.broker.dump(whole=True)
        desk.signal(15)
        if not desk.ended(15.0):
            self.notice(15, "the desk did not end within 15 s of SIGTERM, at rest")
        self._gather(h, clients)
        outcome.orders = sum(is_ours(order["client_order_id"]) for order in h.broker_orders())
        outcome.fills = len(h.executions())
        outcome.requests = len(h.asked())
        outcome.replayed = len(list(h.told())) - outcome.requests
        outcome.events = len(h.rows)
        outcome.kinds.update(row.kind for row in h.rows)
        outcome.answers.update(told["code"] or told["status"] for told in h.told())
        return h, outcome

    def _rest(self, healed: float, clients: trading.Clients) -> History:
        """Look until desk, ledger and broker agree; what still does not after 30 s is in the History's checks."""
        events = -1
        while True:
            h = History(limits=self.limits)
            h.broker = self.broker.dump(whole=False)
            for order in h.broker_orders():
                order["history"] = []
            self.database.read(h)
            books = Books(h.rows)
            unsettled = [breach for number in _AT_REST for breach in INVARIANTS[number](h, books)]
            if not unsettled and not h.broker["pending_landings"] and len(h.rows) == events:
                return h
            events = len(h.rows)
            if self.hurry and (broken := self._broken_for_ever(h, clients)):
                self.notice(*broken)
                return h
            if time.monotonic() - healed > HEAL_S:
                self.notice(15, f"not at rest {HEAL_S} s after all faults were healed: {unsettled[:3]}")
                return h
            time.sleep(_QUIET_S)

    def _broken_for_ever(self, h: History, clients: trading.Clients) -> tuple[int, str] | None:
        h.broker = self.broker.dump(whole=True)
        h.said = read_lines(clients.logs)
        h.witnessed = read_lines([self.directory / "witness.jsonl"])
        books = Books(h.rows)
        return next(((number, breach) for number in _FOR_EVER for breach in INVARIANTS[number](h, books)), None)

    def _look(self, raw: Raw, h: History) -> None:
        """What the desk shows, at rest."""
        h.shown_orders = list(trading.all_orders(raw))
        h.shown_positions = trading.until_answered(raw, "GET", "/v1/positions?user_id=*")["positions"]
        h.shown_accounts = trading.until_answered(raw, "GET", "/v1/accounts")["accounts"]

    def _kill_switch(self, raw: Raw, clients: trading.Clients, outcome: Outcome) -> None:
        """Everything is replayed, the desk is halted, and every order is taken back."""
        if not clients.command("replay", 60.0):
            self.notice(12, "replayed requests were not answered within 60 s")
        asked_at = time.time_ns()
        body = {"scope": "desk", "name": "", "halted": True, "reason": "the end"}
        trading.until_answered(raw, "POST", "/v1/halts", body)
        halt = {"k": "halt", "at": time.time_ns(), "scope": "desk", "name": "", "halted": True, "asked_at": asked_at}
        self._last_halt = [halt]
        since = time.monotonic()
        trading.until_answered(raw, "POST", "/v1/orders:cancel-all", {"user_id": "*"})
        while self._open_at_broker():
            if time.monotonic() - since > ZERO_S:
                self.notice(13, f"orders are open at the broker {ZERO_S} s after halt and cancel-all")
                break
            time.sleep(0.05)
        outcome.zero_s = time.monotonic() - since

    def _open_at_broker(self) -> int:
        over = {"filled", "canceled", "expired", "rejected", "replaced"}
        dump = self.broker.dump(whole=False)
        orders = [order for account in dump["accounts"].values() for order in account["orders"]]
        return sum(is_ours(order["client_order_id"]) and order["status"] not in over for order in orders)

    def _gather(self, h: History, clients: trading.Clients) -> None:
        seen = History(limits=self.limits)
        self.database.read(seen)
        h.rows, h.postings, h.integrity = seen.rows, seen.postings, seen.integrity
        h.said = [*read_lines(clients.logs), *self._last_halt]
        h.witnessed = read_lines([self.directory / "witness.jsonl"])
        h.stopped = self.stopped
        h.noticed = self.noticed
        h.noticed += [(3, breach) for number, at in self.taken_over for breach in _sent_too_late(h, number, at)]


def _sent_too_late(h: History, number: int, taken_over_at: int) -> Iterator[str]:
    """What a desk sent after another one had taken its ledger over. What it had committed, looked at for the last
    time and was about to send in the very moment in which it was stopped is no decision of its awakening: that goes
    out under a name that the broker takes once."""
    committed = {name: line["t"] for line in h.witnessed if line["w"] == "commit" for name in line["names"]}
    for line in h.witnessed:
        if line["w"] != "send" or line["child"] != number or line["t"] < taken_over_at:
            continue
        is_under_way = any(
            stopped - _UNDER_WAY_NS < committed.get(line["name"], 0) < stopped and line["t"] < woken + _UNDER_WAY_NS
            for stopped, woken in h.stopped
        )
        if not is_under_way:
            yield f"desk {number} sent {line['name']} after its ledger was taken over"


def hash_of(text: str) -> int:
    """The same in every process, unlike hash()."""
    return random.Random(text).getrandbits(31)


def faults_of(chance: random.Random, names: list[str]) -> dict[str, Any]:
    """How likely each fault of the broker is in an epoch: some are common, some rare, some absent."""
    most = {"stream_silent": 0.003, "stream_disconnect": 0.003, "half_open_tcp": 0.006, "accepted_then_hang": 0.01}
    most |= {"manual_external_order": 0.01, "bust_and_correction": 0.01, "reject_later": 0.01}
    return {name: chance.choice((0.0, 0.5, 1.0)) * most.get(name, 0.015) for name in names}
