"""Whatever happens in whatever order, on a virtual clock: the invariants hold after every step, and all heals.

DESK_STATE_EXAMPLES asks for so many random runs instead of the same ones every time.
"""

import os
from decimal import Decimal as D

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from desk_server.brokers import What
from desk_server.domain import OrderChange, OrderRequest, OrderType, Side, Symbol, TimeInForce
from tests.proofs.world import USERS, World

_EXAMPLES = os.environ.get("DESK_STATE_EXAMPLES", "")
REQUEST_FATES = ["fine", "slow", "lost", "mute", "late", "throttled", "refused", "odd"]
LOOKUP_FATES = ["fine", "503", "throttled", "lags"]
STREAM_FATES = ["fine", "lost", "twice", "late"]

users = st.sampled_from(USERS)
sizes = st.integers(1, 60)
prices = st.sampled_from([D(95), D(99), D(100), D(101), D(105)])


class Trading(RuleBasedStateMachine):
    """`names` are request ids, taken again on purpose."""

    names = Bundle("names")

    @initialize(holds=st.booleans())
    def begin(self, holds: bool) -> None:
        self.world = World(holds=holds)
        self.world.pass_time(3.0)
        self.world.give_shares(40)
        self.count = 0

    # ---- users ----

    @rule(target=names, who=users, side=st.sampled_from(Side), qty=sizes, price=st.none() | prices)
    def place(self, who, side, qty, price):
        self.count += 1
        request = OrderRequest(
            symbol=Symbol("AAPL"),
            side=side,
            qty=D(qty),
            type=OrderType.LIMIT if price else OrderType.MARKET,
            limit_price=price,
            time_in_force=TimeInForce.GTC,
            request_id=f"r{self.count}",
        )
        self.world.place(who, request)
        return who, request

    @rule(name=names)
    def place_again(self, name):
        self.world.place(*name)

    @rule(pick=st.integers(0, 50), price=st.none() | prices, qty=st.none() | sizes)
    def replace(self, pick, price, qty):
        order = self._pick(pick)
        if order is not None and (price or qty):
            who = next(user for user in USERS if user.user == order.user)
            price = price if order.request.limit_price is not None else None
            if price or qty:
                self.count += 1
                change = OrderChange(limit_price=price, qty=D(qty) if qty else None, request_id=f"c{self.count}")
                self.world.replace(who, order.order_id, change)

    @rule(pick=st.integers(0, 50))
    def cancel(self, pick):
        order = self._pick(pick)
        if order is not None:
            self.world.cancel(next(user for user in USERS if user.user == order.user), order.order_id)

    @rule(who=users)
    def cancel_all(self, who):
        self.world.cancel_all(who)

    @rule(halted=st.booleans())
    def halt(self, halted):
        self.world.halt(halted=halted)

    # ---- the broker ----

    @rule(pick=st.integers(0, 50), part=st.sampled_from([1, 2, 3, 1000]))
    def fill(self, pick, part):
        there = self._there(pick)
        if there is not None:
            self.world.exchange.fill(there, min(D(part), there.left))

    @rule(pick=st.integers(0, 50), what=st.sampled_from([What.CANCELED, What.EXPIRED, What.REJECTED]))
    def end_at_the_broker(self, pick, what):
        there = self._there(pick)
        if there is not None and not (what is What.REJECTED and there.filled):
            self.world.exchange.finish(there, what)

    @rule(side=st.sampled_from(Side), qty=st.integers(1, 5))
    def trade_by_hand(self, side, qty):
        self.world.exchange.stranger(side, qty)

    @rule(is_stuck=st.booleans())
    def cancels_get_stuck(self, is_stuck):
        self.world.exchange.is_stuck = is_stuck

    # ---- faults ----

    @rule(fates=st.lists(st.sampled_from(REQUEST_FATES), min_size=1, max_size=4))
    def requests_will(self, fates):
        self.world.exchange.network.requests.extend(fates)

    @rule(fates=st.lists(st.sampled_from(LOOKUP_FATES), min_size=1, max_size=6))
    def lookups_will(self, fates):
        self.world.exchange.network.lookups.extend(fates)

    @rule(times=st.integers(5, 20))
    def lookups_fail_for_long(self, times):
        self.world.exchange.network.lookups.extend(["503"] * times)

    @rule(fates=st.lists(st.sampled_from(STREAM_FATES), min_size=1, max_size=4))
    def events_will(self, fates):
        self.world.exchange.network.stream.extend(fates)

    @rule(times=st.integers(1, 5))
    def the_disk_is_full(self, times):
        self.world.now.ledger.fail_next += times

    @rule(minutes=st.sampled_from([-120, -1, 1, 120]))
    def the_clock_is_set(self, minutes):
        self.world.set_clock(minutes)

    @rule()
    def crash(self):
        self.world.crash()

    @rule()
    def another_server_takes_over(self):
        self.world.take_over()

    # ---- time ----

    @rule(times=st.integers(1, 6))
    def a_few_turns(self, times):
        self.world.turn(times)

    @rule(seconds=st.sampled_from([0.005, 0.05, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds):
        self.world.pass_time(seconds)

    @precondition(lambda self: self.count >= 3)
    @rule()
    def all_heals(self):
        self.world.heal()

    @invariant()
    def all_is_as_it_must_be(self):
        self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.end()

    def _pick(self, pick):
        orders = self.world.now.book.open_orders()
        return orders[pick % len(orders)] if orders else None

    def _there(self, pick):
        orders = [there for there in self.world.exchange.open_orders() if there.user]
        return orders[pick % len(orders)] if orders else None


# A request that a crash cuts off before its first step.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@pytest.fixture(autouse=True)
def quiet():
    """What is logged is not what is looked at here, and there is much of it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


TestTrading = Trading.TestCase
TestTrading.settings = settings(
    max_examples=int(_EXAMPLES or 100),
    stateful_step_count=60,
    deadline=None,
    derandomize=not _EXAMPLES,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
