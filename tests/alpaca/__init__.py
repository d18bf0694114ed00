"""A misbehaving Alpaca: a real HTTP, websocket and SSE server with a book of its own, for the unmodified alpaca-py.

It answers as Alpaca does (Trading API under /v2, Broker API under /v1, trade updates at /stream), keeps orders,
executions, positions and cash of its own, and shows faults when told to: singly, or at random from a seed. What
its book says is the truth that a checker compares from outside.

Starting it
    as a process:  python -m tests.alpaca --port 0 --seed 7 --cash 1000000 --accounts 3
                   prints one JSON line: {"url", "stream_url", "control", "key", "secret", "broker_key",
                   "broker_secret", "accounts": [ids of sub-accounts], "pid", "seed"}; ends on SIGTERM or SIGINT
    in a test:     with running_alpaca(seed=7) as alpaca: TradingClient("key", "secret", url_override=alpaca.url)
                   its own thread and event loop; `alpaca.control` is a Control, `alpaca.stream_url` the websocket's
    from Python:   Control(url) (tests/alpaca/control_client.py) wraps every call below; standard library only

Keys: Trading API `key` / `secret`; Broker API `broker-key` / `broker-secret` (Basic). --keys a:b:c:d sets others.

The control API: JSON in and out, no auth, loopback only. Every amount may be a number or a string; none is a float
in answers. An unknown field or name is answered 400 with a sentence. All are POST but the GETs marked so.
    /control/settings   {any of: "work_ms": [lo, hi]     from acceptance (pending_new) to the market (new); [0, 0]
                                 "cancel_ms": [lo, hi]   from 204 to `canceled`; [0, 0]
                                 "fills": "auto"|"held"  held: nothing fills but by /control/fill
                                 "partial": 0.1          how often a fill is only a random part of the rest; 0
                                 "again_ms": [lo, hi]    when the rest of a partial is looked at again; [5, 30]
                                 "session": "regular"|"closed"|"pre"|"post"|"real"   regular. For opg and cls it is
                                                         12:00, 21:00, 8:00, 17:00 in New York then
                                 "rate_limit": 200       requests a minute and account; 0 = none (headers are sent)
                                 "stop_leg": "new"|"held"  a released stop leg's status; new
                                 "activity_ids": "own"|"execution"  whether the uuid in a FILL activity's id is the
                                                         stream's execution_id (Alpaca does not say); own
                                 "keep_events": false    stored for SSE replay also for the Trading API's account
                         } → all settings. GET shows them
    /control/price      {"AAPL": "190.5", "BTC/USD": 60000} sets prices; a new symbol becomes an asset; resting
                         orders are matched at once. GET → all prices
    /control/walk       {"every_ms": 50, "step_bps": 15, "symbols": [...]?} prices walk by themselves, seeded;
                         {"every_ms": 0} stops it
    /control/fill       {"order": id or client_order_id, "qty": "1"?, "price": "10"?} an execution by hand
    /control/reject     {"order", "reason"?}   the order becomes `rejected`, as it can after a 200; where it was to
                         replace another one and is pending_new still (see work_ms), that one works on
    /control/expire     {"order"?}             that order, or every open day order
    /control/tell       {"order", "event": "restated"|"done_for_day"|anything, "status"?} an update with that event; the
                         order takes the status, where one is given
    /control/external   {"symbol", "side", "qty", "type"?: "market", "limit_price"?, "client_order_id"?, "account"?,
                         "force"?: true} an order that the account's owner placed by hand: no prefix. Refused (400)
                         where the broker would refuse it, unless forced
    /control/activity   {"activity_type": "DIV"|"FEE"|"CFEE"|"SPLIT"|"JNLC"|…, "net_amount"?, "symbol"?, "qty"?,
                         "per_share_amount"?, "price"?, "description"?, "account"?} cash moves by net_amount, the
                         symbol's position by qty (so a 2:1 split of 10 shares is qty 10; cost stays)
    /control/bust       {"execution": id}  undone; stream: trade_bust with previous_execution_id
    /control/correct    {"execution": id, "price"?, "qty"?}  stream: trade_correct, a new execution_id and the
                         previous one. In FILL activities a bust disappears, a correction stands in the place of
                         the old line under a new id. (Alpaca documents the events, not the activities: an assumption.)
    /control/faults     {"seed"?: 7, "probabilities": {"503": 0.02, "*": 0.01}?, "params": {"slow_success":
                         {"delay_ms": [50, 400]}}?} probabilities are per matching request or event, and replace
                         all earlier ones; "*" is every fault not named, "half_open_tcp@event" that fault on that
                         kind alone. At most one fault per request or event. A stream that went mute or froze
                         stays so until it is reconnected or healed.
                         GET → the table: each fault's name, where it applies, what it does, its params and count
    /control/arm        {"fault": "accepted_then_dropped", "times": 1, "on": "submit"?, "client_order_id"?,
                         "prefix"?, "symbol"?, …params of that fault} the next `times` matching ones show it,
                         surely. → {"armed": n}
    /control/heal       {} all faults off, armed ones too: mute streams and stuck cancels recover, hung and
                         half-open connections close, late landings still land. Counts stay. → counts
    /control/disconnect {"how": "close"|"reset"} every stream (websocket, SSE) is cut. → {"closed": n}
    /control/account    {"id"?, "cash"?, "multiplier"?, "shorting"?: bool, "blocked"?: bool} changes the Trading
                         account (id left out) or a sub-account, which is made if unknown. → {"id", …}
    /control/reset      {"seed"?, "cash"?, "accounts"?: n} forgets everything; settings, prices too
    /control/dump       GET (?account=ID for one; ?posts=0&history=0 to leave out the long parts) →
                         {"now", "seed", "counts": {fault: times really shown}, "prices", "pending_landings": n,
                          "accounts": {id: {"cash", "positions": {symbol: {"qty", "avg_entry_price"}},
                            "orders": [{…as in the API…, "external": bool, "parent": id or null,
                                        "history": [[at, event, status, filled_qty], …]}, …],
                            "executions": [{"execution_id", "activity_id", "order_id", "client_order_id", "symbol",
                                "side", "qty", "price", "fee", "fee_asset", "at", "cum_qty", "busted": bool,
                                "corrects": id or null, "corrected_by": id or null}, …],
                            "activities": […as in the API…]}},
                          "posts": [every POST …/orders that arrived: {"at", "at_ns" (time.time_ns), "account",
                                "client_order_id", "body", "fault" or null, "answer": HTTP status, or "dropped",
                                "reset", "hung", "never read" or, of a late landing, "landing" and then the
                                status nobody was told; "code", "order_id" or null, "landed_at_ns" or null}],
                                An order was accepted by this POST exactly where its order_id is set.
                          "changes": [the same for PATCH and DELETE: with "method", "path"],
                          "requests": {kind: n}, "connections": {"streams": n, "open": n}}
    /control/counts     GET → {fault: times really shown}, every fault of the table
A position's qty in the dump is signed. Positions are keyed as Alpaca's positions are (BTCUSD), orders by BTC/USD.
"""
