"""Does to a desk what machines and operators do: kills it, stops it, starts a second one, takes its disk away.

Which act comes when follows from the seed; how far the desk gets meanwhile is the machine's affair.
"""

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.crash.board import POINTS
from tests.crash.desks import Desk

if TYPE_CHECKING:
    from tests.crash.epoch import Epoch

# How long a desk may take to be ready while its broker misbehaves, to reach an armed point, to end when asked to.
_READY_S, _POINT_S, _TERM_S = 12.0, 1.0, 15.0


class Executioner:
    """`done` counts acts, `kills` desks that died by SIGKILL at this class's hands or at an armed point."""

    def __init__(self, epoch: "Epoch", chance: random.Random, points: list[str]) -> None:
        self.epoch = epoch
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.kills = 0
        self.acts: dict[str, Callable[[], None]] = {
            "kill": self._kill,
            "kill_at_point": self._kill_at_point,
            "stop_and_go_on": self._stop_and_go_on,
            "sigterm": self._sigterm,
            "second_server": self._second_server,
            "second_server_while_first_is_stopped": self._second_while_stopped,
            "disk_full": self._disk_full,
            "database_locked": self._database_locked,
            "read_only": self._read_only,
            "clock_step": self._clock_step,
            "broker_silent": self._broker_silent,
            "streams_cut": self._streams_cut,
        } | {name: self._with_desk(act) for name, act in epoch.database.acts().items()}
        if not epoch.database.can_be_full:
            del self.acts["disk_full"]
        self._weights = {"kill": 45, "kill_at_point": 45, "clock_step": 2, "sigterm": 2}
        if epoch.hurry:
            self._weights = dict.fromkeys(self.acts, 0) | {"kill": 25, "kill_at_point": 75}
        # Points are drawn like cards, so that each comes up as often as every other.
        self._deck = list(points)

    def begin(self) -> None:
        """A ledger that does not exist yet: killed in the middle of its making, again and again, until it is."""
        times = 1
        while True:
            self.epoch.board.arm("mid_migration", times)
            desk = self.epoch.spawn()
            if not desk.ready(self.epoch.board, _READY_S) and desk.ended(_POINT_S):
                self._count_death(desk)
                times += self.chance.randint(1, 4)
                continue
            self.epoch.board.disarm()
            return

    def go_on_until(self, kills: int, first: list[str]) -> None:
        """`first` are acts that must not be missed; then as chance has it."""
        first = [name for name in first if name in self.acts]
        while first and self.kills < kills:
            self.act(first.pop())
        while self.kills < kills:
            names = list(self.acts)
            self.act(self.chance.choices(names, [self._weights.get(name, 1) for name in names])[0])

    def act(self, name: str) -> None:
        self.epoch.note(f"act {name}")
        self.acts[name]()
        self.done[name] += 1

    # Who is alive

    def _alive(self, *, ready: bool = True) -> Desk:
        """The desk, started if there is none."""
        desk = self.epoch.desk
        if desk is None or desk.ended():
            if desk is not None:
                self._count_death(desk)
            desk = self.epoch.spawn()
        if ready and not desk.ready(self.epoch.board, _READY_S):
            self.done["not ready in time"] += 1
        return desk

    def _count_death(self, desk: Desk) -> None:
        code = desk.code()
        desk.close()
        self.epoch.desk = None
        if code == -signal.SIGKILL:
            self.kills += 1
        else:
            self.epoch.ended_by_itself(desk, code)

    def _end(self, desk: Desk) -> None:
        if not desk.ended():
            desk.kill()
        self._count_death(desk)

    # Acts

    def _kill(self) -> None:
        """Early ones meet the desk while it recovers."""
        is_early = not self.epoch.hurry and self.chance.random() < 0.3
        desk = self._alive(ready=not is_early)
        mean_s = 0.5 if self.epoch.hurry else 0.25
        delay_s = self.chance.uniform(0, 0.15) if is_early else self.chance.expovariate(1 / mean_s)
        desk.ended(min(delay_s, 1.5))
        self._end(desk)

    def _kill_at_point(self) -> None:
        if not self._deck:
            self._deck = [point for point in POINTS if point != "mid_migration"]
            self.chance.shuffle(self._deck)
        point = self._deck.pop()
        times = 1 if self.epoch.hurry else self.chance.choice((1, 1, 1, 2, 3, 8))
        desk = self._alive(ready=self.epoch.hurry or self.chance.random() < 0.8)
        if self.epoch.hurry:
            desk.ended(self.chance.uniform(0.3, 1.0))  # there must be something to lose
        self.epoch.board.arm(point, times)
        if not desk.ended(3 * _POINT_S if self.epoch.hurry else _POINT_S):
            # Not reached this time: it comes up again.
            self._deck.insert(0, point)
        self.epoch.board.disarm()
        self._end(desk)

    def _stop_and_go_on(self) -> None:
        """Longer than the desk waits for the broker, and the broker for the desk."""
        desk = self._alive()
        with self._stopped(desk):
            time.sleep(self.chance.uniform(0.5, 3.5))

    @contextlib.contextmanager
    def _stopped(self, desk: Desk):
        since = time.time_ns()
        desk.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            desk.signal(signal.SIGCONT)
            self.epoch.stopped.append((since, time.time_ns()))

    def _sigterm(self) -> None:
        desk = self._alive()
        desk.signal(signal.SIGTERM)
        if desk.ended(_TERM_S):
            code = desk.code()
            desk.close()
            self.epoch.desk = None
            if code != 0:
                self.epoch.notice(15, f"desk {desk.number} ended with {code} on SIGTERM under load")
            return
        self.epoch.notice(15, f"desk {desk.number} did not end within {_TERM_S} s of SIGTERM")
        self._end(desk)

    def _second_server(self) -> None:
        """It must refuse as long as the first lives."""
        first = self._alive()
        second = self.epoch.spawn(second=True)
        is_refused = second.ended(10.0)
        if first.ended():
            second.kill()
            return
        if not is_refused:
            self.epoch.notice(3, f"desk {second.number} runs beside desk {first.number} on one ledger")
            second.kill()
            return
        if second.code() != 1:
            self.epoch.notice(15, f"desk {second.number}, the second on its ledger, ended with {second.code()}")
        second.close()

    def _second_while_stopped(self) -> None:
        """The first cannot answer for a while. A second may then take over, if the first never sends again."""
        first = self._alive()
        with self._stopped(first):
            second = self.epoch.spawn(second=True)
            took_over = second.ready(self.epoch.board, 6.0)
            took_over_at = time.time_ns()
            if not took_over:
                if not second.ended():
                    second.kill()
                second.close()
        if not took_over:
            return
        self.done["lease_taken_over"] += 1
        self.epoch.taken_over.append((first.number, took_over_at))
        time.sleep(self.chance.uniform(0.2, 1.0))
        if not first.ended(_TERM_S):
            self.epoch.notice(3, f"desk {first.number} still runs after desk {second.number} took its ledger over")
            first.kill()
        first.close()
        # The second one listens where no client looks: it has done what it was for.
        second.kill()
        self.kills += 1
        self.epoch.desk = None

    def _with_desk(self, act: Callable[[], None]) -> Callable[[], None]:
        def acting() -> None:
            self._alive()
            act()

        return acting

    def _disk_full(self) -> None:
        desk = self._alive()
        with self.epoch.database.full(desk.pid):
            desk.ended(self.chance.uniform(0.3, 1.5))
            if self.chance.random() < 0.3:
                self._end(desk)
                self.epoch.may_end(self.epoch.spawn())
                time.sleep(0.3)

    def _database_locked(self) -> None:
        desk = self._alive()
        with self.epoch.database.locked():
            desk.ended(self.chance.uniform(0.3, 2.5))
            if self.chance.random() < 0.3:
                self._end(desk)
                self.epoch.may_end(self.epoch.spawn())
                time.sleep(0.3)

    def _read_only(self) -> None:
        """A desk that starts where nothing can be written says so and ends."""
        desk = self._alive()
        self._end(desk)
        with self.epoch.database.read_only():
            desk = self.epoch.spawn()
            self.epoch.may_end(desk)
            if desk.ready(self.epoch.board, 2.0):
                self.done["ready on a read-only ledger"] += 1
            self._end(desk)

    def _clock_step(self) -> None:
        """Forward or back by up to two hours, while the desk runs."""
        desk = self._alive()
        self.epoch.board.clock_s = self.chance.uniform(-7200, 7200)
        desk.ended(self.chance.uniform(0.1, 0.5))

    def _broker_silent(self) -> None:
        """Connections stay open, nothing comes through them."""
        desk = self._alive()
        self.epoch.broker.pause()
        try:
            desk.ended(self.chance.uniform(0.3, 2.0))
        finally:
            self.epoch.broker.go_on()

    def _streams_cut(self) -> None:
        self._alive()
        self.epoch.broker.control.disconnect(self.chance.choice(("close", "reset")))
