"""The 17 promises of the desk, each a function of a History that yields a sentence for every breach it finds.

A request is followed through the broker without the desk's help: clients give each one a limit price (or, at the
market, a quantity) that nothing else in the epoch has, so the broker's book alone tells whose order it is.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

from tests.crash.fold import OPEN, UNPROVEN, Books, Order
from tests.crash.history import History, is_ours, user_of
from tests.crash.timeline import breaches

Check = Callable[[History, Books], Iterator[str]]

# Between a request's last look at the halts and its first byte, and on its way to the broker.
HALT_SENT_S, HALT_ARRIVED_S = 0.25, 1.0
# What the desk answers for good; anything else may get another answer the next time.
DENIED = frozenset({"refused", "rejected", "not_sent"})
_CLOSED_WORDS = {"filled", "canceled", "expired", "rejected", "replaced"}

Trace = tuple[str, str, str, str]


def acknowledged_orders_are_in_the_ledger(h: History, books: Books) -> Iterator[str]:
    """1. Every acknowledged order is in the ledger after any crash."""
    asked = h.asked()
    for told in h.told():
        if not told["order_id"]:
            continue
        order = books.orders.get(told["order_id"])
        ask = asked.get((told["user"], told["rid"]))
        if ask and ask["replaces"] == told["order_id"]:
            continue  # a refusal that speaks of the order that was to be replaced
        what = f"{told['user']}'s request {told['rid']} was answered as order {told['order_id']}"
        if order is None:
            yield f"{what}, which is not in the ledger"
            continue
        if (order.user, order.request.get("request_id")) != (told["user"], told["rid"]):
            yield f"{what}, which the ledger has as {order.user}'s {order.request.get('request_id')}"
        if ask and not order.replaces and _trace_of_ask(ask) != _trace_of_request(order.request):
            yield f"{what}, which the ledger has with other content: {order.request}"


def acknowledged_orders_reach_the_broker_or_end(h: History, books: Books) -> Iterator[str]:
    """2. Every acknowledged order reaches the broker or ends explicitly denied, rejected or not-sent."""
    at_broker = {order["client_order_id"] for order in h.broker_orders()}
    for told in h.told():
        order = books.orders.get(told["order_id"])
        # What would be a wash trade waits at the desk for as long as it would be one.
        if order is not None and order.name not in at_broker and order.state not in DENIED | {"waiting"}:
            yield f"{order.name} was acknowledged, is {order.state} in the ledger, and never reached the broker"


def one_intent_one_broker_order(h: History, books: Books) -> Iterator[str]:
    """3. One intent → at most one broker order."""
    traces: defaultdict[Trace, list[str]] = defaultdict(list)
    for order in _placed_here(h):
        traces[_trace_of_broker(order)].append(order["client_order_id"])
    for trace, names in traces.items():
        if len(names) > 1:
            yield f"one request became {len(names)} broker orders: {trace} as {', '.join(names)}"
    names = Counter(order["client_order_id"] for order in h.broker_orders())
    for name, count in names.items():
        if count > 1:
            yield f"{count} broker orders have the name {name}"


def broker_orders_have_an_earlier_intent(h: History, books: Books) -> Iterator[str]:
    """4. No broker order with the desk's prefix lacks an intent committed before its first POST."""
    for order in h.broker_orders():
        name = order["client_order_id"]
        if is_ours(name) and name not in books.by_name and not order["external"]:
            yield f"{name} is at the broker, and no intent is in the ledger"
    for name, _ in h.arrivals():
        if is_ours(name) and name not in books.by_name:
            yield f"{name} was sent to the broker, and no intent is in the ledger"
    committed = {name: line["t"] for line in h.witnessed if line["w"] == "commit" for name in line["names"]}
    for line in h.witnessed:
        if line["w"] == "send" and line["name"] in committed and line["t"] < committed[line["name"]]:
            yield f"{line['name']} was sent {(committed[line['name']] - line['t']) / 1e6:.1f} ms before its commit"


def executions_are_applied_once(h: History, books: Books) -> Iterator[str]:
    """5. Each execution is applied exactly once; position, cash and order state change in its transaction."""
    yield from (problem for problem in books.problems if "execution" in problem or "bust" in problem)
    qty: defaultdict[str, Decimal] = defaultdict(Decimal)
    value: defaultdict[str, Decimal] = defaultdict(Decimal)
    for one in h.executions():
        if one["client_order_id"] in books.by_name:
            qty[one["client_order_id"]] += _signed(one)
            value[one["client_order_id"]] += _signed(one) * Decimal(one["price"])
    booked: defaultdict[str, Decimal] = defaultdict(Decimal)
    booked_value: defaultdict[str, Decimal] = defaultdict(Decimal)
    for one in books.standing():
        if one.order_id:
            booked[books.orders[one.order_id].name] += one.sign * one.qty
            booked_value[books.orders[one.order_id].name] += one.sign * one.qty * one.price
    for name in sorted(qty.keys() | booked.keys()):
        if qty[name] != booked[name]:
            yield f"{name}: the broker executed {qty[name]}, the ledger has {booked[name]}"
        elif value[name] != booked_value[name]:
            yield f"{name}: the broker executed for ${value[name]}, the ledger has ${booked_value[name]}"
    ids = Counter(one.broker_execution_id for one in books.standing() if one.broker_execution_id)
    for name, count in ids.items():
        if count > 1:
            yield f"the broker's execution {name} is {count} times in the ledger"
    if h.postings is not None:
        posted = {posting.seq for posting in h.postings}
        for one in books.executions.values():
            if one.seq not in posted:
                yield f"execution {one.execution_id} (event {one.seq}) has no journal entry"


def filled_is_the_sum_of_executions(h: History, books: Books) -> Iterator[str]:
    """6. Per order the filled quantity is the sum of its executions, ≤ quantity, monotone."""
    taken_back = h.was_taken_back()
    for order in books.orders.values():
        if order.qty is not None and order.filled > order.qty:
            yield f"{order.name} filled {order.filled} of {order.qty}"
    for shown in h.shown_orders:
        order = books.orders.get(shown["order_id"])
        if order is not None and Decimal(shown["filled_qty"] or 0) != order.filled:
            yield f"{order.name} is shown with {shown['filled_qty']} filled, its executions sum to {order.filled}"
    most: defaultdict[str, Decimal] = defaultdict(Decimal)
    for line in h.said:
        if line["k"] != "seen":
            continue
        filled = Decimal(line["filled_qty"] or 0)
        if filled < most[line["order_id"]] and line["symbol"] not in taken_back:
            yield f"order {line['order_id']} was seen with {most[line['order_id']]} filled, later with {filled}"
        most[line["order_id"]] = max(most[line["order_id"]], filled)


def books_sum_to_the_brokers_positions(h: History, books: Books) -> Iterator[str]:
    """7. Sum of users' positions + house = broker's position, per symbol, at rest."""
    ours: defaultdict[str, Decimal] = defaultdict(Decimal)
    for (_, symbol), qty in books.positions.items():
        ours[symbol.replace("/", "")] += qty
    theirs: defaultdict[str, Decimal] = defaultdict(Decimal)
    for account in h.accounts:
        for symbol, position in account["positions"].items():
            theirs[symbol] += Decimal(position["qty"])
    for symbol in sorted(ours.keys() | theirs.keys()):
        if ours[symbol] != theirs[symbol]:
            parts = {user: str(qty) for (user, of), qty in books.positions.items() if of == symbol and qty}
            yield f"{symbol}: the books have {ours[symbol]} ({parts}), the broker {theirs[symbol]}"


def postings_balance_and_rebuild_positions(h: History, books: Books) -> Iterator[str]:
    """8. Every journal entry sums to zero per asset; positions rebuild identically from postings."""
    if h.postings is not None:
        sums: defaultdict[tuple[int, str], Decimal] = defaultdict(Decimal)
        held: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        for posting in h.postings:
            sums[posting.seq, posting.asset] += posting.amount
            held[posting.account, posting.asset] += posting.amount
        for (seq, asset), amount in sums.items():
            if amount:
                yield f"the journal entry of event {seq} sums to {amount} {asset}"
        users = {user for user, _ in books.positions} | set(books.cash)
        for user in users:
            if held[user, "USD"] != books.cash[user]:
                yield f"{user}'s postings sum to ${held[user, 'USD']}, the events to ${books.cash[user]}"
        for (user, symbol), qty in books.positions.items():
            if held[user, symbol] != qty:
                yield f"{user}'s postings sum to {held[user, symbol]} {symbol}, the events to {qty}"
    shown = {(one["user_id"], one["symbol"]): Decimal(one["qty"]) for one in h.shown_positions}
    for key in shown.keys() | books.positions.keys():
        if h.shown_accounts and shown.get(key, Decimal(0)) != books.positions.get(key, Decimal(0)):
            yield f"{key[0]} is shown with {shown.get(key, 0)} {key[1]}, the events give {books.positions.get(key, 0)}"
    for account in h.shown_accounts:
        if Decimal(account["cash"]) != books.cash.get(account["user_id"], Decimal(0)):
            cash = books.cash.get(account["user_id"], 0)
            yield f"{account['user_id']} is shown with ${account['cash']}, the events give ${cash}"


def orders_keep_their_user_and_name(h: History, books: Books) -> Iterator[str]:
    """9. An order's user never changes; client_order_id is unique and immutable."""
    yield from (problem for problem in books.problems if "second" in problem and "execution" not in problem)
    for row in h.rows:
        order = books.orders.get(row.body.get("order_id", ""))
        if order and row.kind != "ReplaceIntended" and row.body.get("user") not in (None, "", order.user):
            yield f"event {row.seq} ({row.kind}) gives {order.user}'s {order.name} to {row.body['user']}"
    for order in books.orders.values():
        if is_ours(order.name) and user_of(order.name) != order.user:
            yield f"{order.name} is {order.user}'s in the ledger"
        if order.replaces and (old := books.orders.get(order.replaces)) and old.user != order.user:
            yield f"{old.user}'s {old.name} was replaced by {order.user}'s {order.name}"
    for shown in h.shown_orders:
        order = books.orders.get(shown["order_id"])
        if order and (shown["user_id"], shown["client_order_id"]) != (order.user, order.name):
            yield f"{order.name} is shown as {shown['user_id']}'s {shown['client_order_id']}"
    whose = {_trace_of_ask(ask): user for (user, _), ask in h.asked().items()}
    for order in _placed_here(h):
        user = whose.get(_trace_of_broker(order))
        if user and user_of(order["client_order_id"]) != user:
            yield f"{order['client_order_id']} carries out what {user} asked for"


def limits_hold_at_the_broker(h: History, books: Books) -> Iterator[str]:
    """10. Limits hold at the broker's book at every instant, whatever the interleaving."""
    yield from breaches(h)


def no_end_is_left(h: History, books: Books) -> Iterator[str]:
    """11. No terminal state is left, except REJECTED / NOT_SENT → LIVE on the broker's proof, with an alarm."""
    for order in books.orders.values():
        for seq, kind, before, after in order.steps:
            proved = before in ("rejected", "not_sent") and after in ("live", "held", "filled")
            late_fill = kind == "Executed" and after == "filled"
            if before not in OPEN and not proved and not late_fill:
                yield f"{order.name}: event {seq} ({kind}) took it from {before} to {after}"
    # Only the update stream tells in what order things became so.
    last: dict[tuple[str, str], str] = {}
    for line in h.said:
        if line["k"] != "seen" or line["from"] != "updates":
            continue
        before = last.get((line["reader"], line["order_id"]), "")
        over = _CLOSED_WORDS - {"rejected"} | {"refused"}
        if before in over and line["status"] not in (before, "filled"):
            yield f"order {line['order_id']} was seen {before}, later {line['status']}"
        last[line["reader"], line["order_id"]] = line["status"]
    by_name = {order["client_order_id"]: order for order in h.broker_orders()}
    for order in books.orders.values():
        theirs = by_name.get(order.name)
        if theirs is not None and not _agree(order, theirs):
            yield f"{order.name} is {order.state} in the ledger and {theirs['status']} at the broker"


def _agree(order: Order, theirs: dict[str, Any]) -> bool:
    is_over = theirs["status"] in _CLOSED_WORDS
    if not is_over:
        return order.state in OPEN and order.state not in UNPROVEN
    if theirs["status"] == order.state:
        return True
    # An execution after the cancel: the broker keeps "canceled", the desk may say filled where nothing is left.
    ends = {"canceled", "expired", "filled"}
    return {theirs["status"], order.state} <= ends and order.qty == order.filled


def replays_answer_the_same(h: History, books: Books) -> Iterator[str]:
    """12. A replayed request returns the same status and order id."""
    answers: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    asked = h.asked()
    for told in h.told():
        answers[told["user"], told["rid"]].append(told)
    for (user, rid), told in answers.items():
        # A replacement that came to nothing is told of under the order that stands.
        stands = asked[user, rid]["replaces"] if (user, rid) in asked else ""
        ids = {one["order_id"] for one in told} - {"", stands}
        if len(ids) > 1:
            yield f"{user}'s request {rid} was answered with {len(ids)} order ids: {', '.join(sorted(ids))}"
        order = books.by_request.get((user, rid))
        for before, after in pairwise(told):
            if _same_answer(before, after):
                continue
            if not (order and _may_turn(before, after, order)):
                yield f"{user}'s request {rid} was answered {_words(before)}, then {_words(after)}"
    for (user, rid), order in books.by_request.items():
        if (user, rid) not in answers:
            continue
        stands = asked[user, rid]["replaces"] if (user, rid) in asked else ""
        if {one["order_id"] for one in answers[user, rid]} - {order.order_id, stands, ""}:
            yield f"{user}'s request {rid} is order {order.order_id} in the ledger, and was answered with another"


def _same_answer(before: dict[str, Any], after: dict[str, Any]) -> bool:
    same_http = not before["http"] or not after["http"] or before["http"] == after["http"]
    return same_http and (before["status"], before["code"]) == (after["status"], after["code"])


def _may_turn(before: dict[str, Any], after: dict[str, Any], order: Order) -> bool:
    """From success to a rejection that came later, or from a rejection to the life that the broker proved."""
    if before["status"] == "success":
        return order.state in ("rejected", "not_sent") or any(step[3] in DENIED for step in order.steps)
    return any(step[2] in ("rejected", "not_sent") for step in order.steps)


def _words(told: dict[str, Any]) -> str:
    return f"{told['http'] or ''} {told['status']} {told['code']} ({told['order_id'] or 'no order'})".strip()


def nothing_starts_after_a_kill(h: History, books: Books) -> Iterator[str]:
    """13. After a kill is acknowledged no POST starts; open broker orders reach zero (target p99 ≤ 5 s)."""
    sent = [(line["t"], line["name"], HALT_SENT_S) for line in h.witnessed if line["w"] == "send"]
    landed = [(record["at_ns"], name, HALT_ARRIVED_S) for name, record in h.arrivals() if is_ours(name)]
    for scope, name, since, until in _halts(h):
        for at, client_order_id, slack_s in sent + landed:
            start = since + int(slack_s * 1e9)
            start += sum(to - start for start, to in h.stopped if start <= at and to >= since)
            if start < at < until and _concerns(scope, name, client_order_id, books):
                late_ms = (at - since) / 1e6
                yield f"{client_order_id} was sent {late_ms:.0f} ms after the {scope} {name or 'desk'} was halted"


def _halts(h: History) -> Iterator[tuple[str, str, int, int]]:
    """(scope, name, acknowledged at, lifting asked for at)."""
    since: dict[tuple[str, str], int] = {}
    for line in sorted((line for line in h.said if line["k"] == "halt"), key=lambda line: line["at"]):
        key = (line["scope"], line["name"])
        if line["halted"]:
            since.setdefault(key, line["at"])
        elif key in since:
            yield (*key, since.pop(key), line["asked_at"])
    for key, at in since.items():
        yield (*key, at, 2**63)


def _concerns(scope: str, name: str, client_order_id: str, books: Books) -> bool:
    _, user, strategy, *_ = client_order_id.split(".")
    if scope == "symbol":
        order = books.by_name.get(client_order_id)
        return order is not None and order.request["symbol"] == name
    return scope == "desk" or (scope, name) in (("user", user), ("strategy", f"{user}/{strategy}"))


def rejections_are_the_brokers(h: History, books: Books) -> Iterator[str]:
    """14. REJECTED only on a definitive broker answer."""
    at_broker = {order["client_order_id"]: order["status"] for order in h.broker_orders()}
    no = {
        name
        for name, record in h.arrivals()
        if str(record["answer"]) in ("400", "403", "404", "422") and record["code"]
    }
    for order in books.orders.values():
        if order.state != "rejected":
            continue
        status = at_broker.get(order.name)
        if status not in (None, "rejected"):
            yield f"{order.name} is rejected in the ledger and {status} at the broker"
        elif status is None and order.name not in no and not order.replaces and not order.parent:
            yield f"{order.name} is rejected in the ledger, and the broker never said so"


def everything_resolves(h: History, books: Books) -> Iterator[str]:
    """15. After faults heal everything resolves within 30 s."""
    for order in books.orders.values():
        if order.state in UNPROVEN:
            yield f"{order.name} is still {order.state}"
    for line in h.said:
        if line["k"] == "told" and line["code"] == "INTERNAL":
            yield f"{line['user']}'s request {line['rid']} met a fault of the desk's own (500)"
        if line["k"] == "unanswered":
            yield f"{line['user']}'s request {line['rid']} never got a definite answer: {line['last']}"


def refused_orders_never_reach_the_broker(h: History, books: Books) -> Iterator[str]:
    """16. Denied orders never reach the broker."""
    sent = {name for name, _ in h.arrivals()}
    sent |= {order["client_order_id"] for order in h.broker_orders()}
    for order in books.orders.values():
        if order.state == "refused" and order.name in sent:
            yield f"{order.name} was refused, and sent"
    traces = {_trace_of_broker(order): order["client_order_id"] for order in _placed_here(h)}
    asked = h.asked()
    for told in h.told():
        ask = asked.get((told["user"], told["rid"]))
        order = books.orders.get(told["order_id"])
        is_refusal = told["status"] == "error" and told["code"] != "REJECTED"
        denied = is_refusal and (order is None or order.state == "refused")
        if ask and denied and (name := traces.get(_trace_of_ask(ask))):
            yield f"{told['user']}'s request {told['rid']} was refused ({told['code']}), and is {name} at the broker"


def the_database_is_sound(h: History, books: Books) -> Iterator[str]:
    """17. The database's integrity check passes."""
    yield from h.integrity
    for before, after in zip([0, *(row.seq for row in h.rows)], (row.seq for row in h.rows), strict=False):
        if after != before + 1:
            yield f"event {after} follows event {before}"
    yield from (problem for problem in books.problems if "no event opened" in problem)


INVARIANTS: dict[int, Check] = {
    1: acknowledged_orders_are_in_the_ledger,
    2: acknowledged_orders_reach_the_broker_or_end,
    3: one_intent_one_broker_order,
    4: broker_orders_have_an_earlier_intent,
    5: executions_are_applied_once,
    6: filled_is_the_sum_of_executions,
    7: books_sum_to_the_brokers_positions,
    8: postings_balance_and_rebuild_positions,
    9: orders_keep_their_user_and_name,
    10: limits_hold_at_the_broker,
    11: no_end_is_left,
    12: replays_answer_the_same,
    13: nothing_starts_after_a_kill,
    14: rejections_are_the_brokers,
    15: everything_resolves,
    16: refused_orders_never_reach_the_broker,
    17: the_database_is_sound,
}


def violations(h: History) -> list[tuple[int, str]]:
    """(number of the invariant, what broke it), ascending; empty when all hold."""
    books = Books(h.rows)
    found = [(number, breach) for number, check in INVARIANTS.items() for breach in check(h, books)]
    return sorted([*found, *h.noticed])


def _placed_here(h: History) -> Iterator[dict[str, Any]]:
    """Broker orders with the desk's prefix that clients can have asked for: not legs, not the owner's own."""
    for order in h.broker_orders():
        if is_ours(order["client_order_id"]) and not order["external"] and not order["parent"]:
            yield order


def _trace_of_broker(order: dict[str, Any]) -> Trace:
    return _trace(order["symbol"], order["side"], order["limit_price"], order["qty"])


def _trace_of_request(request: dict[str, Any]) -> Trace:
    return _trace(request["symbol"], request["side"], request.get("limit_price"), request.get("qty"))


def _trace_of_ask(ask: dict[str, Any]) -> Trace:
    return _trace(ask["symbol"], ask["side"], ask["limit_price"], ask["qty"])


def _trace(symbol: str, side: str, limit_price: str | None, qty: str | None) -> Trace:
    """What no two requests of an epoch share: the limit price, or at the market the quantity."""
    if limit_price:
        return symbol, side, "limit", f"{Decimal(limit_price).normalize():f}"
    return symbol, side, "market", f"{Decimal(qty or 0).normalize():f}"


def _signed(one: dict[str, Any]) -> Decimal:
    return Decimal(one["qty"]) * (1 if one["side"] == "buy" else -1)
