"""The desk at Alpaca as its users see it: the desk and a misbehaving Alpaca, each a process of its own."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal as D

import pytest

from desk_client import Client, OutcomeUnknown
from tests.e2e.alpaca_ground import KEYS, Desk, Ground, grounds
from tests.e2e.conftest import PROJECT

pytestmark = pytest.mark.timeout(240)

Make = Callable[..., Ground]


@pytest.fixture
def make() -> Iterator[Make]:
    with grounds() as made:
        yield made


@pytest.fixture
def ground(make: Make) -> Ground:
    return make()


ORDERS = [
    {"qty": 1},
    {"qty": None, "notional": "50"},
    {"qty": "0.5"},
    {"qty": 2, "order_type": "limit", "limit_price": 150, "time_in_force": "gtc"},
    {"qty": 1, "order_type": "limit", "limit_price": 190, "time_in_force": "ioc"},
    {"qty": 1, "order_type": "limit", "limit_price": 190, "time_in_force": "fok"},
    {"qty": 1, "time_in_force": "cls"},
    {"qty": 1, "order_type": "stop", "stop_price": 200},
    {"qty": 1, "order_type": "stop_limit", "stop_price": 200, "limit_price": 201},
    {"qty": 1, "order_type": "trailing_stop", "trail_price": 5},
    {"qty": 1, "order_type": "trailing_stop", "trail_percent": "2.5", "time_in_force": "gtc"},
    {"qty": 1, "order_type": "limit", "limit_price": 150, "extended_hours": True},
    {"qty": 1, "order_class": "bracket", "take_profit_price": 250, "stop_loss_price": 150},
    {"qty": 1, "order_class": "oto", "stop_loss_price": 150, "stop_loss_limit_price": 149},
]


def test_every_kind_of_order_reaches_alpaca_as_it_was_given(ground: Ground):
    """Type, time in force, class and prices; then one call cancels whatever is still open."""
    alice, alpaca = ground.desk.user("alice"), ground.alpaca
    for wanted in ORDERS:
        told = alice.place_order("AAPL", side="buy", **wanted)
        assert told.status == "success", (wanted, told)
        there = alpaca.order(told.order.client_order_id)
        assert there["type"] == wanted.get("order_type", "market")
        assert there["time_in_force"] == wanted.get("time_in_force", "day")
        assert there["order_class"] == wanted.get("order_class", "")
        for name in ("limit_price", "stop_price", "trail_price", "trail_percent", "notional"):
            if (price := wanted.get(name)) is not None:
                assert D(there[name]) == D(str(price)), wanted
        assert there["extended_hours"] is wanted.get("extended_hours", False)
    bitcoin = alice.place_order("BTC/USD", "0.01", "buy", time_in_force="gtc")
    ground.desk.order("alice", bitcoin.order_id, "filled")
    answers = alice.cancel_all()
    assert answers and {one.status for one in answers} == {"success"}
    ground.desk.until(lambda: not list(alice.list_orders("open")), "all are cancelled")
    ground.desk.until(ground.desk.agrees, "the desk agrees with the broker")
    assert not [one for one in alpaca.book()["orders"] if one["status"] in ("new", "held", "accepted")]


def test_a_bracket_s_legs_get_live_and_one_fills(ground: Ground):
    """Legs are held until the entry fills; the profit is taken, the stop goes."""
    alice, desk = ground.desk.user("alice"), ground.desk
    entry = alice.place_order(
        "AAPL", 10, "buy", "limit", limit_price=180, order_class="bracket", take_profit_price=200, stop_loss_price=170
    )
    profit, stop = (leg.order_id for leg in entry.order.legs)
    for leg in (profit, stop):
        desk.order("alice", leg, "held")
    ground.control.price(AAPL=179)
    desk.order("alice", entry.order_id, "filled")
    desk.order("alice", profit, "new")
    assert desk.position("alice") == 10
    ground.control.price(AAPL=201)
    taken = desk.order("alice", profit, "filled")
    assert D(taken.filled_avg_price) == 200
    desk.order("alice", stop, "canceled")
    assert desk.position("alice") == 0
    assert D(alice.account().realized_pl) == 10 * (200 - 180)
    desk.until(desk.agrees, "the desk agrees with the broker")


def test_an_order_is_replaced_and_cancelled(ground: Ground):
    """The new order takes the old one's place under a name of ours; a second replace of the old one is refused."""
    alice, desk = ground.desk.user("alice"), ground.desk
    first = alice.place_order("AAPL", 5, "buy", "limit", limit_price=150)
    desk.order("alice", first.order_id, "new")
    second = alice.replace_order(first.order_id, qty=7, limit_price=151)
    assert second.status == "success", second
    there = ground.alpaca.order(second.order.client_order_id)
    assert (there["qty"], there["limit_price"], there["status"]) == ("7", "151", "new")
    assert desk.order("alice", first.order_id, "replaced").replaced_by == second.order_id
    assert alice.replace_order(first.order_id, limit_price=152).code == "NOT_REPLACEABLE"
    assert alice.cancel_order(second.order_id).status == "success"
    desk.order("alice", second.order_id, "canceled")
    assert alice.cancel_order(first.order_id).code == "NOT_CANCELABLE"
    assert D(alice.account().reserved) == 0


def test_two_users_share_the_account_and_not_their_shares(ground: Ground):
    """A sale is checked against one's own shares; nobody sees or touches another's orders."""
    alice, bob, desk = ground.desk.user("alice"), ground.desk.user("bob"), ground.desk
    bought = alice.place_order("AAPL", 10, "buy")
    desk.order("alice", bought.order_id, "filled")
    refused = bob.place_order("AAPL", 1, "sell")
    assert refused.code == "NOT_OWNED"
    assert alice.place_order("AAPL", 11, "sell").code == "NOT_OWNED"
    assert bob.cancel_order(bought.order_id).code == "NOT_FOUND"
    assert not list(bob.list_orders("open"))
    assert bob.positions() == []
    assert not ground.alpaca.control.dump()["posts"][1:], "refused orders never reach the broker"
    assert alice.place_order("AAPL", 10, "sell").status == "success"
    desk.until(lambda: desk.position("alice") == 0, "it is sold")


def test_an_order_that_alpaca_would_call_a_wash_trade_is_refused(ground: Ground):
    """Before Alpaca sees it, in words that tell nothing of the other user; one's own order is named."""
    alice, bob = ground.desk.user("alice"), ground.desk.user("bob")
    bought = bob.place_order("AAPL", 5, "buy")
    ground.desk.order("bob", bought.order_id, "filled")
    resting = alice.place_order("AAPL", 3, "buy", "limit", limit_price=185)
    no = bob.place_order("AAPL", 5, "sell", "limit", limit_price=185)
    assert no.code == "SELF_TRADE"
    for secret in ("alice", resting.order_id, resting.order.client_order_id, resting.order.broker_order_id, "185"):
        assert secret not in no.message
    assert bob.place_order("AAPL", 5, "sell", "limit", limit_price=200).status == "success"
    own = alice.place_order("AAPL", 1, "buy", "limit", limit_price=210)
    assert own.code == "SELF_TRADE"
    assert "bob" not in own.message
    names = [post["client_order_id"] for post in ground.control.dump()["posts"]]
    assert no.order.client_order_id not in names


def test_an_order_that_would_be_a_wash_trade_waits_for_its_turn(make: Make):
    """With DESK_SELF_TRADE=hold it is sent as soon as the other order is gone; a waiting one can be cancelled."""
    ground = make(DESK_SELF_TRADE="hold")
    alice, bob, desk = ground.desk.user("alice"), ground.desk.user("bob"), ground.desk
    bought = bob.place_order("AAPL", 6, "buy")
    desk.order("bob", bought.order_id, "filled")
    resting = alice.place_order("AAPL", 3, "buy", "limit", limit_price=185)
    waits = bob.place_order("AAPL", 5, "sell", "limit", limit_price=185)
    gone = bob.place_order("AAPL", 1, "sell", "limit", limit_price=184)
    assert [waits.order_status, gone.order_status] == ["pending", "pending"]
    assert "alice" not in waits.message + waits.order.message
    assert bob.cancel_order(gone.order_id).status == "success"
    desk.kill()
    desk.start()
    assert desk.user("bob").get_order(waits.order_id).status == "pending"
    alice.cancel_order(resting.order_id)
    sold = desk.order("bob", waits.order_id, "filled")
    assert D(sold.filled_avg_price) == 190
    posts = [post["client_order_id"] for post in ground.control.dump()["posts"]]
    assert posts.count(waits.order.client_order_id) == 1
    assert gone.order.client_order_id not in posts


def test_what_nobody_here_placed_is_the_house_s(ground: Ground):
    """An order in Alpaca's own app: an alarm, the house's position; nobody's book, and never cancelled."""
    alice, desk = ground.desk.user("alice"), ground.desk
    desk.order("alice", alice.place_order("AAPL", 10, "buy").order_id, "filled")
    ground.control.external("AAPL", "buy", 4)
    resting = ground.control.external("SPY", "buy", 2, type="limit", limit_price=400)
    desk.until(lambda: desk.positions().get(("$house", "AAPL")) == 4, "the house has it")
    desk.until(lambda: len(desk.said("nobody here placed")) >= 1, "an alarm is in the log")
    assert {line["level"] for line in desk.said("nobody here placed")} == {"error"}
    report = desk.admin("GET", "/v1/reconciliation")
    assert {(one["symbol"], one["side"]) for one in report["foreign_orders"]} == {("AAPL", "buy"), ("SPY", "buy")}
    assert {one["symbol"]: one["qty"] for one in report["houses"][0]["holdings"]} == {"AAPL": "4"}
    assert report["differences"] == []
    assert desk.position("alice") == 10
    assert alice.place_order("AAPL", 11, "sell").code == "NOT_OWNED"
    assert alice.place_order("AAPL", 1, "buy").status == "success", "explained, it closes no symbol"
    alice.cancel_all()
    assert ground.alpaca.order(resting["client_order_id"])["status"] == "new"
    desk.until(desk.agrees, "the desk agrees with the broker")


def test_a_dividend_is_paid_to_those_who_hold(ground: Ground):
    """By shares, to the cent; what is left over is the house's."""
    alice, bob, desk = ground.desk.user("alice"), ground.desk.user("bob"), ground.desk
    for client, name, qty in ((alice, "alice", 10), (bob, "bob", 20)):
        desk.order(name, client.place_order("AAPL", qty, "buy").order_id, "filled")
    before = {name: D(one["cash"]) for name, one in desk.accounts().items()}
    ground.control.activity("DIV", symbol="AAPL", net_amount="7.50", per_share_amount="0.25", qty=None)
    desk.until(lambda: D(desk.accounts()["bob"]["cash"]) - before["bob"] == 5, "bob has his part")
    after = {name: D(one["cash"]) for name, one in desk.accounts().items()}
    assert after["alice"] - before["alice"] == D("2.50")
    assert after["$house"] == before["$house"]


def test_without_a_stream_polling_suffices(ground: Ground):
    """Every update is lost for good: fills, cancels and ends are booked all the same, each once."""
    ground.control.faults({"stream_lost": 1.0})
    _trade_and_agree(ground)


def test_a_stream_that_never_opens_is_told_and_keeps_nobody_from_trading(make: Make):
    """readyz says what is missing; orders go, and polling tells of them."""
    ground = make(start=False, DESK_ALPACA_STREAM_URL="ws://127.0.0.1:9")
    ground.alpaca.start()
    ground.desk.start(ready=False)
    ground.desk.until(lambda: ground.desk.said("ready: orders are taken"), "orders are taken")
    _trade_and_agree(ground)
    status, told = ground.desk.readyz()
    assert status == 503
    assert "the stream of order updates" in told["reasons"][0]
    assert len(ground.desk.said("do not come by stream")) == 1, "told once, not with every try"


def test_without_polling_the_stream_suffices(make: Make):
    """No list is ever answered again after the start: the stream alone tells everything."""
    ground = make(DESK_POLL_S="3600", DESK_RECONCILE_S="3600")
    ground.control.faults({"lookup_503@list": 1.0, "503@activities": 1.0, "503@positions": 1.0})
    _trade_and_agree(ground)


def test_both_together_never_double(ground: Ground):
    """Updates three times and out of order while polling looks on, and the stream is cut again and again."""
    ground.control.settings(partial=0.5)
    ground.control.faults({"stream_tripled": 0.5, "stream_reordered": 0.3, "stream_disconnect": 0.1}, seed=5)
    _trade_and_agree(ground, rounds=5)


def _trade_and_agree(ground: Ground, rounds: int = 2) -> None:
    alice, bob, desk = ground.desk.user("alice"), ground.desk.user("bob"), ground.desk
    for n in range(rounds):
        bought = alice.place_order("AAPL", 10 + n, "buy")
        resting = bob.place_order("SPY", 2, "buy", "limit", limit_price=400)
        assert (bought.status, resting.status) == ("success", "success"), (bought, resting)
        desk.order("alice", bought.order_id, "filled")
        assert bob.cancel_order(resting.order_id).status == "success"
        desk.order("bob", resting.order_id, "canceled")
        sold = alice.place_order("AAPL", 10 + n, "sell", "limit", limit_price=195)
        ground.control.price(AAPL=196)
        desk.order("alice", sold.order_id, "filled")
        ground.control.price(AAPL=190)
    desk.until(desk.agrees, "the desk agrees with the broker")
    assert desk.position("alice") == 0
    executed = ground.alpaca.book()["executions"]
    assert sum(D(fill["qty"]) for fill in desk.fills()) == sum(D(one["qty"]) for one in executed)
    assert D(desk.accounts()["alice"]["realized_pl"]) == sum(5 * (10 + n) for n in range(rounds))


def test_a_desk_killed_over_open_orders_finds_out_what_they_did(ground: Ground):
    """kill -9; meanwhile one order fills, one is cancelled by hand at the broker, a bracket's entry fills."""
    alice, bob, desk, control = ground.desk.user("alice"), ground.desk.user("bob"), ground.desk, ground.control
    fills = alice.place_order("AAPL", 10, "buy", "limit", limit_price=185, time_in_force="gtc")
    stays = bob.place_order("SPY", 1, "buy", "limit", limit_price=400, time_in_force="gtc")
    expires = bob.place_order("SPY", 2, "buy", "limit", limit_price=401)
    exits = {"order_class": "bracket", "take_profit_price": 200, "stop_loss_price": 150}
    entry = bob.place_order("AAPL", 4, "buy", "limit", limit_price=184, **exits)
    desk.kill()
    control.price(AAPL=183)
    control.expire(expires.order.client_order_id)
    desk.start()
    desk.order("alice", fills.order_id, "filled")
    desk.order("bob", entry.order_id, "filled")
    desk.order("bob", expires.order_id, "expired")
    assert desk.user("bob").get_order(stays.order_id).status == "new"
    assert (desk.position("alice"), desk.position("bob")) == (10, 4)
    desk.until(desk.agrees, "the desk agrees with the broker")
    desk.order("bob", entry.order.legs[0].order_id, "new")
    control.price(AAPL=201)
    desk.order("bob", entry.order.legs[0].order_id, "filled")
    desk.until(desk.agrees, "the desk agrees with the broker")


def test_a_request_that_the_kill_cut_off_is_answered_when_it_is_sent_again(ground: Ground):
    """The POST got through, the answer never came, the desk is killed: the same request id finds the one order."""
    desk, control = ground.desk, ground.control
    alice = desk.user("alice")
    desk.order("alice", alice.place_order("AAPL", 1, "buy").order_id, "filled")
    control.arm("accepted_then_hang", on="submit")
    with pytest.raises(OutcomeUnknown):
        alice.place_order("AAPL", 5, "buy", request_id="the-one", timeout=1)
    desk.kill()
    control.heal()
    desk.start()
    again = desk.user("alice").place_order("AAPL", 5, "buy", request_id="the-one", timeout=30)
    desk.order("alice", again.order_id, "filled")
    assert desk.position("alice") == 6
    assert len(ground.alpaca.book()["orders"]) == 2


def test_a_lost_ledger_is_rebuilt_from_the_broker_alone(make: Make):
    """Whose every order, fill and share is, and what is still open, is as it was; then trading goes on."""
    ground = make(DESK_ALLOTMENT="20000")
    desk, control = ground.desk, ground.control
    alice, bob = desk.user("alice"), desk.user("bob")
    desk.order("alice", alice.place_order("AAPL", 10, "buy").order_id, "filled")
    desk.order("bob", bob.place_order("SPY", 3, "buy").order_id, "filled")
    desk.order("bob", bob.place_order("BTC/USD", "0.01", "buy", time_in_force="gtc").order_id, "filled")
    control.price(AAPL=200)
    desk.order("alice", alice.place_order("AAPL", 4, "sell").order_id, "filled")
    control.price(AAPL=190)
    first = alice.place_order("AAPL", 2, "buy", "limit", limit_price=150, time_in_force="gtc")
    desk.order("alice", first.order_id, "new")
    alice.replace_order(first.order_id, limit_price=151)
    exits = {"order_class": "bracket", "take_profit_price": 250, "stop_loss_price": 100, "time_in_force": "gtc"}
    entry = bob.place_order("AAPL", 5, "buy", **exits)
    desk.order("bob", entry.order.legs[0].order_id, "new")
    control.external("F", "buy", 7)
    desk.until(lambda: desk.positions().get(("$house", "F")) == 7, "the house has what is nobody's")
    desk.until(desk.agrees, "the desk agrees with the broker")
    desk.until(lambda: ("bob", "BTC/USD") in desk.positions(), "bob has his coins")
    before = _books(ground)
    assert desk.stop() == 0
    shutil.rmtree(desk.run_dir / "ledger")
    (desk.run_dir / "admin.token").unlink()
    desk.forget_tokens()
    desk.start()
    desk.until(lambda: _books(ground) == before, lambda: f"{_books(ground)}\n is \n{before}")
    assert desk.user("alice").account().buying_power
    desk.until(desk.agrees, "the desk agrees with the broker")
    control.price(AAPL=251)
    desk.until(lambda: desk.position("bob") == 0, "a recovered exit still works")
    alice = desk.user("alice")
    (cancelled,) = alice.cancel_all()
    desk.order("alice", cancelled.order_id, "canceled")
    sold = alice.place_order("AAPL", 6, "sell")
    desk.order("alice", sold.order_id, "filled")
    desk.until(desk.agrees, "the desk agrees with the broker")


def _books(ground: Ground) -> dict[str, object]:
    """What can be told from the broker: orders by their names there, fills, positions, users' cash."""
    desk = ground.desk
    same = (
        "user_id",
        "strategy",
        "symbol",
        "side",
        "order_type",
        "qty",
        "limit_price",
        "filled_qty",
        "broker_order_id",
    )
    orders = {
        one["broker_order_id"]: (
            *(one[name] for name in same),
            one["status"],
            len(one["legs"]),
            D(one["filled_avg_price"] or 0),
        )
        for one in desk.orders()
    }
    fills = Counter(
        (one["user_id"], one["symbol"], one["side"], D(one["qty"]), D(one["price"])) for one in desk.fills()
    )
    accounts = desk.accounts()
    cash = {user: D(one["cash"]) for user, one in accounts.items()}
    realized = {user: D(one["realized_pl"]) for user, one in accounts.items() if user != "$house"}
    return {"orders": orders, "fills": fills, "positions": desk.positions(), "cash": cash, "realized": realized}


def test_a_wrong_key_is_told_and_the_desk_stays_up(make: Make):
    """readyz says what to check, orders are refused with 503's code, and the key is not tried in a loop."""
    ground = make(start=False, APCA_API_SECRET_KEY="aWrongSecretThatIsNeverShown")
    ground.alpaca.start()
    desk = ground.desk
    desk.start(ready=False)
    desk.until(lambda: "refuses the key" in str(desk.readyz()[1].get("reasons")), "readyz says why")
    status, told = desk.readyz()
    assert (status, told["ready"]) == (503, False)
    assert any("check the key id and the secret" in reason for reason in told["reasons"])
    alice = desk.user("alice")
    assert "refuses the key" in _refusal(alice)
    assert desk.process is not None
    assert desk.process.poll() is None
    assert "aWrongSecret" not in desk.log()
    assert len(desk.said("key")) < 20, "a person reads this log"


def _refusal(client: Client) -> str:
    """Why nothing can be placed; the client tries again until its time is over."""
    no = client.place_order("AAPL", 1, "buy", timeout=1)
    assert (no.status, no.code) == ("error", "NOT_READY"), no
    return no.message


def test_a_blocked_account_takes_no_orders_until_it_is_free_again(ground: Ground):
    """readyz says so; cancels still go; when the block is gone, orders go by themselves."""
    desk, control = ground.desk, ground.control
    alice = desk.user("alice")
    resting = alice.place_order("AAPL", 1, "buy", "limit", limit_price=150)
    control.account(blocked=True)
    desk.until(lambda: "may not trade" in str(desk.readyz()[1].get("reasons")), "readyz says why")
    assert "may not trade" in _refusal(alice)
    assert alice.cancel_order(resting.order_id).status == "success"
    control.account(blocked=False)
    desk.until(lambda: desk.readyz()[0] == 200, "the desk is ready again")
    assert alice.place_order("AAPL", 1, "buy").status == "success"


def test_a_desk_starts_while_alpaca_is_away_and_recovers_by_itself(make: Make):
    """Up at once, 503 with a reason; ready when Alpaca answers; away again, and it says so again."""
    ground = make(start=False)
    desk = ground.desk
    desk.start(ready=False)
    status, told = desk.readyz()
    assert status == 503
    assert told["reasons"]
    alice = desk.user("alice")
    assert "Alpaca" in _refusal(alice)
    ground.alpaca.start()
    desk.until(lambda: desk.readyz()[0] == 200, "the desk is ready by itself")
    bought = alice.place_order("AAPL", 1, "buy")
    desk.order("alice", bought.order_id, "filled")
    ground.alpaca.stop()
    desk.until(lambda: desk.readyz()[0] == 503, "the desk says that the stream is gone")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "set DESK_ALLOW_LIVE=1 if that is meant"),
        ({"DESK_ALLOW_LIVE": "1"}, "makes prices up"),
        ({"DESK_ALLOW_LIVE": "1", "DESK_FEED": "none", "DESK_TRUST_USER_HEADER": "1"}, "needs tokens"),
        ({"DESK_ALLOW_LIVE": "1", "APCA_API_BASE_URL": "https://broker-api.alpaca.markets"}, "makes prices up"),
    ],
)
def test_real_money_is_not_traded_by_accident(make: Make, settings: dict[str, str], what: str):
    """Half of what is needed does not start: exit code 2, and a sentence that says what to do."""
    ground = make(start=False, **({"APCA_API_BASE_URL": "https://api.alpaca.markets"} | settings))
    command = [sys.executable, "-m", "desk_server"]
    env = ground.desk.env
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr
    assert what in done.stderr
    assert not [secret for secret in KEYS.values() if secret in done.stderr]


# ---- the Broker API: an account for each user ----


@pytest.fixture
def broker_api(make: Make) -> Ground:
    ground = make(
        accounts=2,
        start=False,
        DESK_BROKER="alpaca-broker",
        APCA_API_KEY_ID=KEYS["broker_key"],
        APCA_API_SECRET_KEY=KEYS["broker_secret"],
    )
    ground.alpaca.start()
    config = ground.directory / "desk.toml"
    users = zip(("alice", "bob"), ground.alpaca.accounts, strict=True)
    config.write_text("".join(f'[users.{user}]\nalpaca_account_id = "{account}"\n\n' for user, account in users))
    ground.desk.env["DESK_CONFIG"] = str(config)
    ground.desk.start()
    return ground


def test_each_user_trades_in_an_account_of_their_own(broker_api: Ground):
    """Orders go to the user's account; what would be a wash trade in one account is none in two."""
    desk, alpaca = broker_api.desk, broker_api.alpaca
    alice, bob = desk.user("alice"), desk.user("bob")
    of_alice, of_bob = alpaca.accounts
    bought = bob.place_order("AAPL", 5, "buy")
    desk.order("bob", bought.order_id, "filled")
    resting = alice.place_order("AAPL", 3, "buy", "limit", limit_price=189)
    crossing = bob.place_order("AAPL", 5, "sell", "limit", limit_price=189)
    assert crossing.status == "success"
    desk.order("bob", crossing.order_id, "filled")
    assert alpaca.order(resting.order.client_order_id, of_alice)["status"] == "new"
    assert {one["client_order_id"].split(".")[1] for one in alpaca.book(of_bob)["orders"]} == {"bob"}
    assert alpaca.held(of_alice) == {}
    broker_api.control.price(AAPL=188)
    desk.order("alice", resting.order_id, "filled")
    assert alpaca.held(of_alice) == {"AAPL": 3}
    broker_api.control.activity("DIV", symbol="AAPL", net_amount="0.75", account=of_alice)
    desk.until(lambda: D(alice.account().cash) == 100_000 - 3 * 189 + D("0.75"), "alice has her dividend")


def test_a_user_without_an_account_is_told_so(broker_api: Ground):
    """Nothing is sent; the message names the setting."""
    carol = broker_api.desk.user("carol")
    no = carol.place_order("AAPL", 1, "buy")
    assert (no.status, no.code) == ("error", "REJECTED")
    order = carol.get_order(no.order_id)
    assert (order.status, order.code) == ("rejected", "NO_ACCOUNT")
    assert "users.carol.alpaca_account_id" in no.message
    assert not broker_api.control.dump()["posts"]


def test_events_missed_during_a_restart_are_replayed(broker_api: Ground):
    """The desk is killed while orders fill; the event stream tells it all, even if no list is answered but one."""
    desk, control = broker_api.desk, broker_api.control
    alice, bob = desk.user("alice"), desk.user("bob")
    first = alice.place_order("AAPL", 3, "buy", "limit", limit_price=180)
    second = bob.place_order("AAPL", 4, "buy", "limit", limit_price=179)
    desk.kill()
    control.price(AAPL=178)
    desk.start()
    desk.order("alice", first.order_id, "filled")
    desk.order("bob", second.order_id, "filled")
    control.disconnect("reset")
    third = alice.place_order("AAPL", 1, "buy")
    desk.order("alice", third.order_id, "filled")
    assert (desk.position("alice"), desk.position("bob")) == (4, 4)
    assert sorted(D(one["qty"]) for one in desk.fills()) == [1, 3, 4]


def test_a_replacement_that_alpaca_rejects_after_all_leaves_nothing_behind(ground: Ground):
    """The old order, which Alpaca then works on, is shown as a difference with an alarm, and is cancelled: neither of
    the two can trade behind anybody's back."""
    desk, control, alpaca = ground.desk, ground.control, ground.alpaca
    alice = desk.user("alice")
    old = alice.place_order("AAPL", 5, "buy", "limit", limit_price=150)
    desk.order("alice", old.order_id, "new")
    control.settings(work_ms=[60_000, 60_000])
    new = alice.replace_order(old.order_id, limit_price=151)
    assert new.status == "success"
    control.reject(new.order.client_order_id)
    control.settings(work_ms=[0, 0])
    desk.order("alice", new.order_id, "rejected")
    assert alpaca.order(old.order.client_order_id)["status"] == "new"
    desk.until(lambda: _differences(desk) == {("order", old.order_id, "replaced", "new")}, "it is shown")
    desk.until(lambda: alpaca.order(old.order.client_order_id)["status"] == "canceled", "what is left is cancelled")
    desk.until(lambda: not _differences(desk), "nothing differs any more")
    assert desk.said("the books and the broker differ")[0]["subject"] == old.order_id
    desk.until(lambda: alice.place_order("AAPL", 1, "buy").status == "success", "the symbol is open again")
    desk.until(desk.agrees, "the desk agrees with the broker")


def _differences(desk: Desk) -> set[tuple[str, str, str, str]]:
    told = desk.admin("GET", "/v1/reconciliation")["differences"]
    return {(one["kind"], one["order_id"], one["ours"], one["theirs"]) for one in told}


def test_a_fill_that_is_faster_than_its_replacement_is_booked_once(ground: Ground):
    """The replacement was acknowledged, the old order goes on and fills: the user has the shares once."""
    desk, control = ground.desk, ground.control
    alice = desk.user("alice")
    old = alice.place_order("AAPL", 5, "buy", "limit", limit_price=150)
    desk.order("alice", old.order_id, "new")
    control.settings(work_ms=[60_000, 60_000])
    new = alice.replace_order(old.order_id, limit_price=151)
    control.reject(new.order.client_order_id)
    control.price(AAPL=149)
    desk.until(lambda: desk.position("alice") == 5, "the fill is booked")
    control.settings(work_ms=[0, 0])
    desk.order("alice", new.order_id, "rejected")
    desk.until(desk.agrees, "the desk agrees with the broker")
    assert len(desk.fills()) == 1
    assert D(alice.account().reserved) == 0
