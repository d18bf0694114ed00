"""What holds whatever is sent, whatever the market does."""

from collections import defaultdict
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st
from paper_samples import Market, make_group, make_order

from desk_server.brokers import BrokerRejected, What
from desk_server.domain import OrderChange

PRICES = st.integers(90, 110).map(Decimal)
SIDES = st.sampled_from(["buy", "sell"])
QTYS = st.sampled_from(["1", "7", "100", "0.5", "2.123456789"])


@st.composite
def orders(draw):
    """("send", order, legs) of any type, time in force and class."""
    side, qty = draw(SIDES), draw(QTYS)
    kind = draw(st.sampled_from(["market", "limit", "stop", "stop_limit", "trailing_stop", "notional", "group"]))
    if kind == "group":
        oco = draw(st.booleans())
        up = (side == "sell") is oco
        main, legs = make_group(
            "oco" if oco else "bracket",
            qty="10",
            side=side,
            profit=draw(st.integers(101, 108)) if up else draw(st.integers(92, 99)),
            loss=draw(st.integers(92, 99)) if up else draw(st.integers(101, 108)),
            tif=draw(st.sampled_from(["day", "gtc"])),
            **({} if oco else {"entry": "limit", "limit_price": "100"}),
        )
        return ("send", main, legs)
    fields = {}
    if kind == "notional":
        fields = {"type": "market", "notional": draw(st.sampled_from(["1", "99.99", "12345.67"]))}
    else:
        fields = {"type": kind}
        if kind in ("limit", "stop_limit"):
            fields["limit_price"] = draw(PRICES)
        if kind in ("stop", "stop_limit"):
            fields["stop_price"] = draw(PRICES)
        if kind == "trailing_stop":
            fields["trail_price"] = draw(st.integers(1, 8).map(Decimal))
    everything = kind in ("market", "limit")
    tif = draw(st.sampled_from(["day", "gtc", "ioc", "fok", "opg", "cls"] if everything else ["day", "gtc"]))
    return ("send", make_order(side, qty, tif=tif, **fields), ())


LINES = st.tuples(
    st.just("line"), PRICES, st.integers(0, 2), st.sampled_from([1, 60, 3600, 8 * 3600]), st.integers(1, 50)
)
STEPS = st.lists(
    st.one_of(
        orders(),
        LINES,
        LINES,
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("replace"), st.integers(0, 50), PRICES, st.sampled_from([None, 3, 50])),
    ),
    max_size=40,
)


def play(steps, seed: int) -> tuple[Market, list, dict]:
    """Let it all happen; the market, the orders sent, and the price that each buyer or seller saw at each event."""
    market = Market(partial_percent=40, size_limited=True, slippage_bps=5, seed=seed)
    sent, replacements = [], {}
    for step in steps:
        match step:
            case ("send", order, legs):
                market.send(order, legs)
                sent += [order, *legs]
            case ("line", price, spread, seconds, size):
                at = market.at.timestamp() + seconds
                at = type(market.at).fromtimestamp(at, market.at.tzinfo)
                market.line(price, price - spread, price + spread, at=at, sizes=(size, size))
            case ("cancel", which) if sent:
                try:
                    market.exchange.cancel(sent[which % len(sent)])
                except BrokerRejected:
                    pass
            case ("replace", which, price, qty) if sent:
                old = sent[which % len(sent)]
                new = make_order(old.request.side, name=f"r{len(replacements)}-{old.order_id}")
                has_limit = old.request.limit_price is not None
                change = OrderChange(
                    limit_price=price if has_limit else None, qty=None if qty is None else Decimal(qty)
                )
                try:
                    ack = market.exchange.replace(old, new, change)
                except BrokerRejected:
                    continue
                replacements[new.client_order_id] = (old, ack.qty, change.limit_price)
                sent.append(new)
    return market, sent, replacements


def limit_of(order, replacements) -> Decimal | None:
    if order.client_order_id in replacements:
        old, _, changed_to = replacements[order.client_order_id]
        return changed_to if changed_to is not None else limit_of(old, replacements)
    if order.request.limit_price is None and order.request.order_class == "oco":
        return order.request.take_profit
    return order.request.limit_price


def qty_of(order, replacements) -> Decimal | None:
    if order.client_order_id in replacements:
        return replacements[order.client_order_id][1]
    return order.request.qty


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 3))
def test_no_order_executes_too_much_or_too_dearly(steps, seed):
    """Executions never exceed the quantity nor pass the limit; ids are unique; nothing executes after its end."""
    market, sent, replacements = play(steps, seed)
    by_name = {order.client_order_id: order for order in sent}
    filled, over, ids = defaultdict(Decimal), set(), set()
    position = Decimal(0)
    for event in market.said:
        name, order = event.client_order_id, by_name[event.client_order_id]
        assert name not in over, f"{event.what} after its end"
        if event.what is What.FILL:
            filled[name] += event.qty
            position += event.qty if event.side == "buy" else -event.qty
            assert event.qty > 0 and event.price > 0
            assert event.execution_id not in ids
            ids.add(event.execution_id)
            limit = limit_of(order, replacements)
            if limit is not None:
                assert event.price <= limit if event.side == "buy" else event.price >= limit
            qty = qty_of(order, replacements)
            assert qty is None or filled[name] <= qty
            if qty is not None and qty % 1 == 0:
                assert event.qty % 1 == 0
            if event.status == "filled":
                over.add(name)
        elif event.what in (What.CANCELED, What.EXPIRED, What.REPLACED):
            over.add(name)
    assert market.exchange.positions() == ({"AAPL": position} if position else {})
    for order in sent:
        shown = market.exchange.find(order.client_order_id)
        assert shown.filled_qty == filled[order.client_order_id]
        ended = shown.status in ("filled", "canceled", "expired", "replaced")
        assert ended is (order.client_order_id in over)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 3))
def test_exits_never_exceed_what_their_group_may_sell(steps, seed):
    """The legs of a bracket together execute at most what its entry did; an OCO at most its quantity."""
    market, _, replacements = play(steps, seed)
    filled = defaultdict(Decimal)
    for event in market.said:
        if event.what is What.FILL:
            filled[event.client_order_id] += event.qty
    after = {old.client_order_id: new for new, (old, _, _) in replacements.items()}

    def total(name: str) -> Decimal:
        return filled[name] + (total(after[name]) if name in after else Decimal(0))

    for step in steps:
        if step[0] != "send" or not step[2]:
            continue
        _, main, legs = step
        exits = sum((total(leg.client_order_id) for leg in legs), Decimal(0))
        if main.request.order_class == "oco":
            assert exits + total(main.client_order_id) <= main.request.qty
        else:
            assert exits <= total(main.client_order_id)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 3))
def test_the_same_lines_and_orders_give_the_same_events(steps, seed):
    """To the last digit, and to the last id."""
    assert play(steps, seed)[0].said == play(steps, seed)[0].said
