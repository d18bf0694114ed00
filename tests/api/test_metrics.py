"""GET /metrics, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from tests.api.test_http import RESTING, place


def test_the_figures_are_those_of_the_desk(desk, alice):
    """Orders by state, what happened to orders, and whether the desk is ready; for the administrator alone."""
    before = _samples(desk)
    with desk.http(alice) as client:
        place(client)
        client.post("/v1/orders", json=RESTING | {"side": "sell", "qty": "77777"})
    now = _samples(desk)
    assert now["desk_ready", ()] == 1
    assert now["desk_broker", (("live", "false"), ("name", "paper"))] == 1
    grown = {key: now[key] - before.get(key, 0) for key in now}
    assert grown["desk_orders_open", (("state", "live"),)] == 1
    assert grown["desk_order_changes_total", (("change", "accepted"),)] == 1
    assert grown["desk_order_changes_total", (("change", "refused"),)] == 1
    assert grown["desk_ledger_events_total", ()] >= 3
    assert now["desk_differences", (("kind", "position"),)] == now["desk_symbols_frozen", ()] == 0


def test_users_do_not_read_them(desk, alice):
    """They tell what everybody does together."""
    with desk.http(alice) as client:
        assert client.get("/metrics").status_code == 403
    with desk.http() as nobody:
        assert nobody.get("/metrics").status_code == 401


def _samples(desk) -> dict:
    with desk.http(desk.admin_token) as admin:
        page = admin.get("/metrics")
    assert page.status_code == 200
    families = text_string_to_metric_families(page.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
