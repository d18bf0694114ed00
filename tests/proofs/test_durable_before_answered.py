"""Durable before answered: no byte of an order leaves the desk before the disk has its intent, as the kernel saw it."""

import asyncio
import re
from itertools import pairwise

import httpx
import pytest

from tests.alpaca.server import running_alpaca
from tests.proofs.recording import Call, RecordedDesk, read, strace_or_skip

_ALONE, _TOGETHER = 12, 60
_ORDER_ID = re.compile(rb"[0-9A-HJKMNP-TV-Z]{26}")


@pytest.fixture(autouse=True)
def tracing():
    with strace_or_skip():
        yield


async def trade(desk: RecordedDesk) -> list[str]:
    """Orders one by one over TCP, then many at once over TCP and the unix socket: their ids."""
    headers = {"Authorization": f"Bearer {desk.token('alice')}"}
    uds = httpx.AsyncHTTPTransport(uds=str(desk.run_dir / "desk" / "desk.sock"))
    async with (
        httpx.AsyncClient(base_url=desk.url, headers=headers, timeout=60) as tcp,
        httpx.AsyncClient(base_url="http://desk", headers=headers, transport=uds, timeout=60) as unix,
    ):

        async def place(client: httpx.AsyncClient, number: int) -> str:
            order = {"symbol": "AAPL", "side": "buy", "qty": "1", "order_type": "limit", "limit_price": "5.00"}
            answer = await client.post("/order", json=order | {"request_id": f"r{number}"})
            assert answer.is_success, answer.text
            return str(answer.json()["order_id"])

        ids = [await place(tcp, number) for number in range(_ALONE)]
        ids += await asyncio.gather(*(place((tcp, unix)[n % 2], n) for n in range(_ALONE, _ALONE + _TOGETHER)))
    return ids


def check(calls: list[Call], order_id: str) -> tuple[Call, list[Call]]:
    """The sync that covers the order's intent returned before any byte that names it was sent. That sync, and all
    that was sent."""
    name = order_id.encode()
    wal = [call for call in calls if call.file.endswith("desk.db-wal")]
    written = next(call for call in wal if call.name == "pwrite64" and name in call.data)
    synced = next(call for call in wal if call.is_sync and call.begun > written.ended)
    sent = [call for call in calls if call.is_network and name in call.data]
    assert sent, f"{order_id} was answered, and is in no answer"
    for call in sent:
        assert synced.ended < call.begun, f"{order_id} was sent at {call.begun}, synced only at {synced.ended}"
    return synced, sent


async def test_the_disk_has_an_order_before_anybody_hears_of_it(tmp_path):
    """The paper exchange: the sync returns before the first byte of the answer, for one order and for many at once."""
    with RecordedDesk(tmp_path, tmp_path / "trace") as desk:
        ids = await trade(desk)
        desk.stop()
    calls = read(tmp_path / "trace")
    syncs = {check(calls, order_id)[0].ended for order_id in ids}
    assert len(set(ids)) == _ALONE + _TOGETHER
    assert _ALONE <= len(syncs) < len(ids), "orders at the same time share a sync, orders one by one do not"


async def test_the_disk_has_an_order_before_the_broker_hears_of_it(tmp_path):
    """A real HTTP broker: the sync returns before the first byte of POST /v2/orders, which comes before the answer."""
    with running_alpaca(seed=7) as alpaca:
        settings = {
            "DESK_BROKER": "alpaca",
            "APCA_API_KEY_ID": alpaca.key,
            "APCA_API_SECRET_KEY": alpaca.secret,
            "APCA_API_BASE_URL": alpaca.url,
            "DESK_ALPACA_STREAM_URL": alpaca.stream_url,
        }
        with RecordedDesk(tmp_path, tmp_path / "trace", **settings) as desk:
            ids = await trade(desk)
            desk.stop()
    calls = read(tmp_path / "trace")
    for order_id in ids:
        _, sent = check(calls, order_id)
        to_broker = [call for call in sent if b'"client_order_id"' in call.data]
        answers = [call for call in sent if b"HTTP/1.1 20" in call.data]
        assert to_broker and answers
        assert to_broker[0].begun < answers[0].begun


def test_the_check_would_notice(tmp_path):
    """A recording in which the answer overtakes the sync does not pass."""
    order_id = "01J00000000000000000000000"
    assert _ORDER_ID.fullmatch(order_id.encode())
    page = "".join(f"\\x{byte:02x}" for byte in b"page " + order_id.encode())
    wal = "5<" + "".join(f"\\x{byte:02x}" for byte in b"/run/ledger/desk.db-wal") + ">"
    lines = [
        f'7 1.0 pwrite64({wal}, "{page}", 31, 32) = 31',
        f"7 1.1 fdatasync({wal} <unfinished ...>",
        f'8 1.2 write(9<socket:[1]>, "{page}", 31) = 31',
        "7 1.3 <... fdatasync resumed>) = 0",
    ]
    trace = tmp_path / "trace"
    trace.write_text("\n".join(lines) + "\n")
    with pytest.raises(AssertionError, match="synced only at"):
        check(read(trace), order_id)
    lines = [*lines[:2], lines[3], lines[2]]
    trace.write_text("\n".join(lines) + "\n")
    check(read(trace), order_id)
    assert all(one.begun <= other.begun for one, other in pairwise(read(trace)))
