"""Alpaca as the desk's broker: `trading.py` (one account shared by all users), `broker_api.py` (an account each).

    trading.AlpacaBroker(key_id, secret_key, base_url=…)           one account, order updates by websocket
    broker_api.AlpacaSubAccounts(key, secret, accounts={…})        a sub-account per user, order updates by SSE
    account.py   the verbs on one account, which both share
    rest.py      requests in worker threads, with deadlines       sdk.py   alpaca-py, defended
    answers.py   what an answer proves: done, rejected, unknown, throttled
    fields.py, orders.py, records.py, updates.py   Alpaca's JSON ↔ the protocol's words; pure
    watch.py     keeps a stream of order updates open           stream.py, sse.py   the two kinds of them
    base.py      what both brokers have besides: assets, clock, calendar, health, beginning and end
    assets.py, hours.py, health.py   what can be traded, and when; whether orders can be sent now

alpaca-py (88 MiB once imported) is imported when a broker is constructed, not before: see sdk.py.
"""

from msgspec import Struct


class Tuning(Struct, frozen=True):
    """Seconds and sizes. The defaults suit the real Alpaca; tests shorten them.

    A request is given up after `request_s`, whatever it is doing, or when the other side says nothing for
    `read_s`. `lookup_lag_s`: for how long a request that was given up may still land, `resend_s` for how long
    one that did not is sent again (Capabilities).
    `order_threads` send orders and replaces, `lookup_threads` cancels and lookups, `record_threads` the rest;
    `waiting_max` more may wait for each of the three, any further are refused with BrokerThrottled.
    The account is looked at every `check_s`, the list of assets every `assets_s`; the clock and a year's calendar are
    believed for `clock_s` and `calendar_s`. Orders cannot be sent when no request was answered for `stale_s`.
    A stream that does not open in `open_s` or answer a ping in `ping_s` is given up; so is one that said nothing
    for `mute_s` after an order that it should have told of, or (events of the Broker API) nothing at all for
    `idle_s`. It is opened again after `backoff_s` to `backoff_max_s`, and after `refused_s` where the key or a
    further connection is refused.
    """

    connect_s: float = 3.0
    read_s: float = 8.0
    request_s: float = 10.0
    lookup_lag_s: float = 60.0
    resend_s: float = 60.0
    order_threads: int = 8
    lookup_threads: int = 4
    record_threads: int = 3
    waiting_max: int = 512
    check_s: float = 15.0
    stale_s: float = 60.0
    assets_s: float = 1800.0
    clock_s: float = 5.0
    calendar_s: float = 3600.0
    open_s: float = 10.0
    ping_s: float = 10.0
    mute_s: float = 15.0
    idle_s: float = 60.0
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    refused_s: float = 60.0
