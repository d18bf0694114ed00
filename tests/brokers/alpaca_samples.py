"""Alpaca's JSON as its documentation shows it."""


def order_json(**changes) -> dict:
    return {
        "id": "61e69015-8549-4bfd-b9c3-01e75843f47d",
        "client_order_id": "d1.alice.s.01J",
        "created_at": "2026-11-20T15:00:00.123456789Z",
        "updated_at": "2026-11-20T15:00:00.2Z",
        "submitted_at": "2026-11-20T15:00:00.123456789Z",
        "filled_at": None,
        "replaced_by": None,
        "replaces": None,
        "asset_class": "us_equity",
        "symbol": "AAPL",
        "notional": None,
        "qty": "10",
        "filled_qty": "0",
        "filled_avg_price": None,
        "order_class": "",
        "order_type": "limit",
        "type": "limit",
        "side": "buy",
        "time_in_force": "day",
        "limit_price": "50",
        "stop_price": None,
        "status": "new",
        "extended_hours": False,
        "legs": None,
        "trail_percent": None,
        "trail_price": None,
        **changes,
    }


def update(event: str, order: dict, **more) -> dict:
    return {"event": event, "order": order, "timestamp": "2026-11-20T15:00:01Z", **more}
