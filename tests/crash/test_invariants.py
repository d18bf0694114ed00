"""A checker that cannot fail proves nothing: a sound history passes, and each way to spoil it is found."""

import copy
from decimal import Decimal
from itertools import count

import pytest

from tests.crash.history import History, Limits, Posting, Row, ns_of
from tests.crash.invariants import INVARIANTS, violations

AT = "2026-01-05T15:00:{:09.6f}Z"
ALICE, BOB = "d1.alice.manual.A", "d1.bob.manual.B"


def at(second: float) -> str:
    return AT.format(second)


class Story:
    """A history written by hand: alice buys ten and sells four of them, bob is refused, bob's second rests."""

    def __init__(self) -> None:
        self.h = History(postings=[], limits=Limits(allotment=Decimal(10_000), qty_max=Decimal(100)))
        self.orders: dict[str, dict] = {}
        self.h.broker = {
            "posts": [],
            "changes": [],
            "accounts": {"main": {"orders": [], "executions": [], "positions": {}, "cash": "0"}},
        }
        self._ids = count(1)
        for user in ("alice", "bob"):
            self.row("UserOpened", user=user, allotment="10000")
            self.post((user, "USD", "10000"), ("desk:capital", "USD", "-10000"))

    @property
    def account(self) -> dict:
        return self.h.broker["accounts"]["main"]

    def row(self, kind: str, **body) -> int:
        self.h.rows.append(Row(len(self.h.rows) + 1, kind, {"type": kind, **body}))
        return len(self.h.rows)

    def post(self, *sides: tuple[str, str, str]) -> None:
        self.h.postings += [Posting(len(self.h.rows), who, what, Decimal(much)) for who, what, much in sides]

    def ask(self, name: str, rid: str, side: str, *terms: str) -> dict:
        (qty, price), symbol = terms, "AAPL"
        _, user, strategy, order_id = name.split(".")
        self.h.said.append(
            {"k": "ask", "user": user, "rid": rid, "symbol": symbol, "side": side, "qty": qty, "limit_price": price}
            | {"replaces": ""}
        )
        request = {"symbol": symbol, "side": side, "qty": qty, "limit_price": price, "request_id": rid}
        return {
            "order_id": order_id,
            "client_order_id": name,
            "user": user,
            "strategy": strategy,
            "request": request,
        }

    def told(self, order: dict, http: int = 201, status: str = "success", code: str = "") -> None:
        line = {"k": "told", "user": order["user"], "rid": order["request"]["request_id"], "http": http}
        self.h.said.append({**line, "status": status, "code": code, "order_id": order["order_id"]})

    def at_broker(self, order: dict, second: float, status: str = "new", **more) -> dict:
        request = order["request"]
        theirs = {
            "id": f"broker-{order['order_id']}-{next(self._ids)}",
            "client_order_id": order["client_order_id"],
            "symbol": request["symbol"],
            "side": request["side"],
            "qty": request["qty"],
            "limit_price": request["limit_price"],
            "status": status,
            "replaces": None,
            "external": False,
            "parent": None,
            "history": [[at(second), "new", "new", "0"]],
        } | more
        if status != "new":
            theirs["history"].append([at(second + 1), status, status, "0"])
        self.account["orders"].append(theirs)
        self.h.broker["posts"].append(
            {
                "at_ns": ns_of(at(second)),
                "client_order_id": order["client_order_id"],
                "answer": 200,
                "code": None,
                "order_id": theirs["id"],
            }
        )
        return theirs

    def lives(self, order: dict, second: float, status: str = "new") -> dict:
        """Intended, sent, accepted."""
        self.row("OrderIntended", order=order)
        for kind, when in (("commit", second - 0.002), ("send", second - 0.001)):
            line = {"w": kind, "t": ns_of(at(when)), "child": 1}
            names = [order["client_order_id"]]
            self.h.witnessed.append(line | ({"names": names} if kind == "commit" else {"name": names[0]}))
        theirs = self.at_broker(order, second, status)
        self.row("OrderAccepted", order_id=order["order_id"], broker_order_id=theirs["id"], status="new")
        return theirs

    def executed(self, order: dict, theirs: dict, second: float, qty: str, price: str) -> dict:
        number = next(self._ids)
        one = {
            "execution_id": f"x{number}",
            "order_id": theirs["id"],
            "client_order_id": order["client_order_id"],
            "symbol": theirs["symbol"],
            "side": theirs["side"],
            "qty": qty,
            "price": price,
            "at": at(second),
            "busted": False,
            "corrects": None,
            "corrected_by": None,
        }
        self.account["executions"].append(one)
        sign = 1 if theirs["side"] == "buy" else -1
        held = Decimal(self.account["positions"].get(theirs["symbol"], {"qty": "0"})["qty"])
        self.account["positions"][theirs["symbol"]] = {"qty": str(held + sign * Decimal(qty))}
        seq = self.row(
            "Executed",
            order_id=order["order_id"],
            execution_id=f"e{number}",
            qty=qty,
            price=price,
            broker_execution_id=f"x{number}",
            user=order["user"],
        )
        assert seq
        value = sign * Decimal(qty) * Decimal(price)
        shares = sign * Decimal(qty)
        self.post(
            (order["user"], "USD", str(-value)),
            ("market", "USD", str(value)),
            (order["user"], theirs["symbol"], str(shares)),
            ("market", theirs["symbol"], str(-shares)),
        )
        return one


def sound() -> Story:
    s = Story()
    buy = s.ask(ALICE, "r1", "buy", "10", "100")
    s.buy = s.lives(buy, 1, "filled")
    s.told(buy)
    s.buys = s.executed(buy, s.buy, 2, "10", "99.5")
    sell = s.ask("d1.alice.manual.C", "r2", "sell", "4", "120")
    s.sell = s.lives(sell, 3)
    s.told(sell)
    s.told(sell)
    refused = s.ask(BOB, "r3", "buy", "1000", "50")
    s.row("OrderRefused", order=refused | {"state": "refused", "code": "MAX_QTY"})
    s.told(refused, 403, "error", "MAX_QTY")
    rests = s.ask("d1.bob.manual.D", "r4", "buy", "5", "90")
    s.rests = s.lives(rests, 4)
    s.told(rests)
    rejected = s.ask("d1.bob.manual.E", "r5", "buy", "5", "91")
    s.row("OrderIntended", order=rejected)
    s.row("OrderRejected", order_id="E", code="40310000", message="insufficient buying power")
    s.h.broker["posts"].append(
        {"at_ns": ns_of(at(5)), "client_order_id": rejected["client_order_id"], "answer": 403, "code": 40310000}
    )
    s.told(rejected, 422, "error", "REJECTED")
    s.h.said.append({"k": "halt", "scope": "user", "name": "bob", "halted": True, "asked_at": 0, "at": ns_of(at(10))})
    s.h.said.append(
        {"k": "halt", "scope": "user", "name": "bob", "halted": False, "asked_at": ns_of(at(20)), "at": ns_of(at(21))}
    )
    s.h.shown_accounts = [
        {"user_id": "alice", "cash": "9005"},
        {"user_id": "bob", "cash": "10000"},
    ]
    s.h.shown_positions = [{"user_id": "alice", "symbol": "AAPL", "qty": "10"}]
    s.h.shown_orders = [shown("A", ALICE, "alice", "filled", "10"), shown("B", BOB, "bob", "refused", "0")]
    return s


def shown(order_id: str, name: str, user: str, status: str, filled: str) -> dict:
    return {"order_id": order_id, "client_order_id": name, "user_id": user, "status": status, "filled_qty": filled}


def test_a_sound_history_breaks_nothing():
    """All 17 invariants hold where desk, broker and clients agree."""
    assert sorted(INVARIANTS) == list(range(1, 18))
    assert violations(sound().h) == []


def lost_order(s: Story) -> None:
    lost = s.ask("d1.alice.manual.L", "r9", "buy", "1", "70")
    s.told(lost)


def other_content(s: Story) -> None:
    order = s.ask("d1.alice.manual.L", "r9", "buy", "1", "70")
    s.told(order)
    s.lives(order | {"request": order["request"] | {"limit_price": "71"}}, 8)


def never_sent(s: Story) -> None:
    order = s.ask("d1.alice.manual.L", "r9", "buy", "1", "70")
    s.row("OrderIntended", order=order)
    s.told(order)


def doubled(s: Story) -> None:
    again = copy.deepcopy(s.h.rows[2].body["order"]) | {"order_id": "Z", "client_order_id": "d1.alice.manual.Z"}
    again["request"]["request_id"] = "other"
    s.lives(again, 8)


def two_of_one_name(s: Story) -> None:
    s.account["orders"].append(s.rests | {"id": "another"})


def no_intent(s: Story) -> None:
    s.at_broker(s.ask("d1.alice.manual.N", "r9", "buy", "1", "70"), 8)


def sent_too_early(s: Story) -> None:
    for line in s.h.witnessed:
        if line["w"] == "send":
            line["t"] -= 5_000_000


def lost_fill(s: Story) -> None:
    s.account["executions"].append(s.buys | {"execution_id": "x77", "order_id": s.sell["id"], "qty": "1"})
    s.account["executions"][-1].update(client_order_id="d1.alice.manual.C", side="sell", at=at(9))
    s.account["positions"]["AAPL"]["qty"] = "9"


def doubled_fill(s: Story) -> None:
    event = next(row for row in s.h.rows if row.kind == "Executed")
    s.row("Executed", **{key: value for key, value in event.body.items() if key != "type"} | {"execution_id": "e78"})


def fill_without_its_posting(s: Story) -> None:
    event = next(row for row in s.h.rows if row.kind == "Executed")
    s.h.postings = [posting for posting in s.h.postings if posting.seq != event.seq]


def fill_at_another_price(s: Story) -> None:
    s.buys["price"] = "99.4"


def overfilled(s: Story) -> None:
    order = s.h.rows[2].body["order"]
    s.executed(order, s.buy, 9, "1", "99")


def filled_less_later(s: Story) -> None:
    line = {"k": "seen", "from": "get", "reader": "1", "symbol": "AAPL", "order_id": "A", "status": "live"}
    s.h.said += [line | {"filled_qty": "5"}, line | {"filled_qty": "3"}]


def shown_with_other_fills(s: Story) -> None:
    s.h.shown_orders[0]["filled_qty"] = "9"


def nobodys_shares(s: Story) -> None:
    s.account["positions"]["SPY"] = {"qty": "3"}


def unbalanced(s: Story) -> None:
    s.h.postings[0] = Posting(1, "alice", "USD", Decimal(10_001))


def shown_with_other_cash(s: Story) -> None:
    s.h.shown_accounts[0]["cash"] = "9004.99"


def shown_with_other_shares(s: Story) -> None:
    s.h.shown_positions.append({"user_id": "bob", "symbol": "AAPL", "qty": "1"})


def misattributed(s: Story) -> None:
    asked = next(line for line in s.h.said if line["k"] == "ask" and line["rid"] == "r4")
    asked["user"] = "alice"


def changed_hands(s: Story) -> None:
    next(row for row in s.h.rows if row.kind == "Executed").body["user"] = "bob"


def same_name_twice(s: Story) -> None:
    s.row("OrderIntended", order=s.h.rows[2].body["order"] | {"order_id": "T", "request": {"side": "buy"}})


def sold_too_much(s: Story) -> None:
    s.lives(s.ask("d1.alice.manual.M", "r9", "sell", "7", "121"), 8)


def spent_too_much(s: Story) -> None:
    s.lives(s.ask("d1.bob.manual.M", "r9", "buy", "99", "97"), 8)


def too_large(s: Story) -> None:
    s.lives(s.ask("d1.alice.manual.M", "r9", "buy", "101", "1"), 8)


def too_many_open(s: Story) -> None:
    for number in range(31):
        s.lives(s.ask(f"d1.bob.manual.M{number}", f"m{number}", "buy", "1", f"2.{number:02}"), 8)


def ended_too_soon(s: Story) -> None:
    s.row("OrderEnded", order_id="D", state="canceled")


def came_back(s: Story) -> None:
    line = {"k": "seen", "from": "updates", "reader": "1", "symbol": "AAPL", "order_id": "A", "filled_qty": "10"}
    s.h.said += [line | {"status": "canceled"}, line | {"status": "new"}]


def replayed_as_another(s: Story) -> None:
    s.told({"user": "alice", "order_id": "Q", "request": {"request_id": "r1"}})


def refusal_replayed_as_success(s: Story) -> None:
    s.told({"user": "bob", "order_id": "B", "request": {"request_id": "r3"}})


def sent_while_halted(s: Story) -> None:
    s.h.witnessed.append({"w": "send", "t": ns_of(at(11)), "child": 1, "name": "d1.bob.manual.D"})


def landed_while_halted(s: Story) -> None:
    s.h.broker["posts"].append(
        {"at_ns": ns_of(at(12)), "client_order_id": "d1.bob.manual.D", "answer": 200, "code": None}
    )


def rejected_without_a_word(s: Story) -> None:
    s.h.broker["posts"] = [post for post in s.h.broker["posts"] if post["answer"] == 200]


def rejected_and_alive(s: Story) -> None:
    s.at_broker(s.ask("d1.bob.manual.E", "r8", "buy", "5", "91"), 6)


def still_unknown(s: Story) -> None:
    s.row("OrderIntended", order=s.ask("d1.alice.manual.U", "r9", "buy", "1", "70"))
    s.row("OrderUnknown", order_id="U", reason="timeout")


def unanswered(s: Story) -> None:
    s.h.said.append({"k": "unanswered", "user": "alice", "rid": "r10", "last": "503 NOT_READY"})


def refused_and_sent(s: Story) -> None:
    s.h.broker["posts"].append({"at_ns": ns_of(at(6)), "client_order_id": BOB, "answer": 422, "code": 40010001})


def refused_and_carried_out(s: Story) -> None:
    order = s.ask("d1.bob.manual.S", "other", "buy", "1000", "50")
    s.at_broker(order, 6)


def damaged(s: Story) -> None:
    s.h.integrity.append("row 7 missing from index events_dedupe")


def gap(s: Story) -> None:
    s.h.rows.append(Row(len(s.h.rows) + 2, "HaltSet", {}))


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (lost_order, 1),
        (other_content, 1),
        (never_sent, 2),
        (doubled, 3),
        (two_of_one_name, 3),
        (no_intent, 4),
        (sent_too_early, 4),
        (lost_fill, 5),
        (doubled_fill, 5),
        (fill_without_its_posting, 5),
        (fill_at_another_price, 5),
        (overfilled, 6),
        (filled_less_later, 6),
        (shown_with_other_fills, 6),
        (nobodys_shares, 7),
        (doubled_fill, 7),
        (unbalanced, 8),
        (shown_with_other_cash, 8),
        (shown_with_other_shares, 8),
        (misattributed, 9),
        (changed_hands, 9),
        (same_name_twice, 9),
        (sold_too_much, 10),
        (spent_too_much, 10),
        (too_large, 10),
        (too_many_open, 10),
        (ended_too_soon, 11),
        (came_back, 11),
        (replayed_as_another, 12),
        (refusal_replayed_as_success, 12),
        (sent_while_halted, 13),
        (landed_while_halted, 13),
        (rejected_without_a_word, 14),
        (rejected_and_alive, 14),
        (still_unknown, 15),
        (unanswered, 15),
        (refused_and_sent, 16),
        (refused_and_carried_out, 16),
        (damaged, 17),
        (gap, 17),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_each_way_to_spoil_it_is_found(spoil, number):
    """A history with one thing wrong breaks the invariant that speaks of it."""
    story = sound()
    spoil(story)
    assert number in {found for found, _ in violations(story.h)}


def test_a_fill_after_the_cancel_frees_from_the_limit_by_as_much():
    """Shares that the broker sold after its own cancel are not held against the desk."""
    story = sound()
    story.sell.update(status="canceled", history=[*story.sell["history"], [at(5), "canceled", "canceled", "0"]])
    late = story.buys | {"execution_id": "x9", "order_id": story.sell["id"], "side": "sell", "qty": "4", "at": at(9)}
    story.account["executions"].append(late | {"client_order_id": "d1.alice.manual.C"})
    story.lives(story.ask("d1.alice.manual.M", "r9", "sell", "10", "121"), 8)
    assert 10 not in {found for found, _ in violations(story.h)}
