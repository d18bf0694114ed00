"""GET /v1/reconciliation and GetReconciliation: how the books and the broker's records compare, for administrators."""

from desk.v1 import admin_pb2


def test_an_administrator_reads_the_report(desk):
    """The embedded exchange has no records: nothing is in doubt, nothing differs."""
    with desk.http(desk.admin_token) as admin:
        told = admin.get("/v1/reconciliation")
    assert told.status_code == 200
    assert told.json()["problem"] == ""
    assert told.json()["differences"] == told.json()["houses"] == told.json()["foreign_orders"] == []
    assert told.json()["passes"] >= 1
    assert told.json()["last_pass_at"]


def test_users_do_not_read_it(desk, alice):
    """It tells what others do on the account."""
    with desk.http(alice) as client:
        assert client.get("/v1/reconciliation").status_code == 403
    with desk.http() as nobody:
        assert nobody.get("/v1/reconciliation").status_code == 401


def test_it_is_the_same_over_grpc(desk):
    """One verb behind both doors."""
    with desk.grpc(desk.admin_token) as stubs:
        request = admin_pb2.GetReconciliationRequest()
        told = stubs.admin.GetReconciliation(request, metadata=stubs.metadata, timeout=5)
    assert (told.problem, list(told.differences)) == ("", [])
    assert told.passes >= 1
