"""A desk process on a misbehaving Alpaca process, used by HTTP and desk_client."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import httpx

from desk_client import Client, Settings, Token, parse_url
from tests.alpaca.control_client import Control
from tests.e2e.conftest import PROJECT

PATIENCE_S = 40.0
KEYS = {
    "key": "PKALPACAKEYOFTESTS001",
    "secret": "tradingSecretOfTests/0123456789abcdef",
    "broker_key": "CKALPACABROKEROFTESTS",
    "broker_secret": "brokerSecretOfTests/0123456789abcdef",
}
PRICES = {"AAPL": "190", "SPY": "510", "F": "12", "BTC/USD": "60000"}
# A Wednesday, an hour after the opening.
_OPENING = datetime(2026, 11, 18, 15, 30, tzinfo=UTC)
# Faster than the defaults where a test would have to wait.
FAST = {
    "DESK_POLL_S": "1",
    "DESK_POLL_IN_DOUBT_S": "0.2",
    "DESK_RECONCILE_S": "1",
    "DESK_GRACE_S": "1",
    "DESK_LOOKUP_LAG_S": "3",
    "DESK_ALPACA_TIMEOUT_S": "3",
    "DESK_COLLAR_PERCENT": "50",
    "DESK_DRAIN_S": "2",
}


class AlpacaProcess:
    """The broker: it survives every desk. `start` may come after the desk's."""

    def __init__(self, directory: Path, *, cash: int = 100_000, accounts: int = 0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.control = Control(self.url)
        self.accounts: list[str] = []
        self._log = directory / "alpaca.log"
        keys = ":".join(KEYS.values())
        self._command = [sys.executable, "-m", "tests.alpaca", "--port", str(self.port), "--seed", "7"]
        self._command += ["--cash", str(cash), "--accounts", str(accounts), "--keys", keys]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        assert told, self._log.read_text()
        self.accounts = json.loads(told)["accounts"]
        self.control.price(PRICES)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def book(self, account: str = "") -> dict[str, Any]:
        """The truth of the shared account, or of a sub-account."""
        told = self.control.dump(posts=False, history=False)
        return dict(told["accounts"][account or told["main"]])

    def order(self, client_order_id: str, account: str = "") -> dict[str, Any]:
        return next(one for one in self.book(account)["orders"] if one["client_order_id"] == client_order_id)

    def held(self, account: str = "") -> dict[str, D]:
        return {symbol: D(one["qty"]) for symbol, one in self.book(account)["positions"].items()}


class Desk:
    """The desk, on a run directory of its own; killed and started again as a test likes."""

    def __init__(self, directory: Path, broker: AlpacaProcess, **settings: str) -> None:
        self.run_dir = directory / "run"
        self.run_dir.mkdir()
        self.broker = broker
        tape = directory / "prices.jsonl"
        tape.write_text("".join(_tape()))
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("DESK_", "APCA_"))}
        self.env = keep | {
            "DESK_BROKER": "alpaca",
            "APCA_API_KEY_ID": KEYS["key"],
            "APCA_API_SECRET_KEY": KEYS["secret"],
            "APCA_API_BASE_URL": broker.url,
            "DESK_RUN_DIR": str(self.run_dir),
            "PORT": "0",
            "GRPC_PORT": "0",
            "DESK_FEED": "replay",
            "DESK_REPLAY_FILE": str(tape),
            **FAST,
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.socket = self.run_dir / "desk" / "desk.sock"
        self._http: httpx.Client | None = None
        self.tokens: dict[str, str] = {}

    def start(self, *, ready: bool = True) -> None:
        with (self.run_dir / "desk.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "desk_server"], cwd=PROJECT, env=self.env, stdout=log, stderr=log
            )
        transport = httpx.HTTPTransport(uds=str(self.socket))
        self._http = httpx.Client(base_url="http://desk", transport=transport, timeout=10)
        self.until(lambda: self.readyz()[0] == 200 if ready else self._is_up(), "the desk is ready")

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(30)

    def readyz(self) -> tuple[int, dict[str, Any]]:
        """(0, {}) while nobody answers."""
        assert self.process and self._http
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(httpx.TransportError):
            answer = self._http.get("/readyz")
            return answer.status_code, answer.json()
        return 0, {}

    def _is_up(self) -> bool:
        return bool(self.readyz()[0])

    def admin(self, method: str, path: str, **body: Any) -> Any:
        assert self._http
        token = (self.run_dir / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = self._http.request(method, path, headers=headers, **({"json": body} if body else {}))
        assert answer.status_code < 300, answer.text
        return answer.json()

    def user(self, name: str) -> Client:
        """As a strategy of this user, with a token from the API."""
        if name not in self.tokens:
            self.tokens[name] = self.admin("POST", "/v1/tokens", user_id=name, role="trade")["token"]
        return Client(Settings(parse_url(f"unix://{self.socket}"), Token(self.tokens[name])))

    def forget_tokens(self) -> None:
        """They are the ledger's: a new one knows none."""
        self.tokens.clear()

    def position(self, user: str, symbol: str = "AAPL") -> D:
        return next((D(one.qty) for one in self.user(user).positions() if one.symbol == symbol), D(0))

    def accounts(self) -> dict[str, dict[str, Any]]:
        return {one["user_id"]: one for one in self.admin("GET", "/v1/accounts")["accounts"]}

    def positions(self) -> dict[tuple[str, str], D]:
        every = self.admin("GET", "/v1/positions?user_id=*")["positions"]
        return {(one["user_id"], one["symbol"]): D(one["qty"]) for one in every if D(one["qty"])}

    def orders(self) -> list[dict[str, Any]]:
        return list(self.admin("GET", "/v1/orders?user_id=*&status=all&limit=500")["orders"])

    def fills(self) -> list[dict[str, Any]]:
        return list(self.admin("GET", "/v1/fills?user_id=*&limit=500")["fills"])

    def order(self, user: str, order_id: str, status: str, patience_s: float = PATIENCE_S) -> Any:
        """The order, when it has come to this status."""
        client = self.user(user)
        seen = []

        def is_so() -> bool:
            seen[:] = [client.get_order(order_id)]
            return bool(seen[0].status == status)

        self.until(is_so, lambda: f"the order is {status}: {seen}", patience_s)
        return seen[0]

    def agrees(self, account: str = "") -> bool:
        """Whether positions and executed quantities are the broker's, and nobody's shares are told twice."""
        book = self.broker.book(account)
        ours: Counter[str] = Counter()
        for (_, symbol), qty in self.positions().items():
            ours[symbol.replace("/", "")] += qty
        theirs = {symbol: D(one["qty"]) for symbol, one in book["positions"].items()}
        filled = {one["id"]: D(one["filled_qty"]) for one in book["orders"]}
        return {symbol: qty for symbol, qty in ours.items() if qty} == theirs and all(
            D(one["filled_qty"]) == filled.get(one["broker_order_id"], D(one["filled_qty"])) for one in self.orders()
        )

    def until(self, is_so: Callable[[], object], what: str | Callable[[], str], patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not is_so():
            if time.monotonic() > deadline:
                told = what if isinstance(what, str) else what()
                raise AssertionError(f"in vain for {patience_s} s: {told}\n{self.log()[-6000:]}")
            time.sleep(0.05)

    def log(self) -> str:
        """ "" where it was never started."""
        file = self.run_dir / "desk.log"
        return file.read_text() if file.exists() else ""

    def said(self, text: str) -> list[dict[str, Any]]:
        """The log's lines with this text."""
        return [json.loads(line) for line in self.log().splitlines() if text in line]


class Ground:
    def __init__(self, directory: Path, *, cash: int, accounts: int, **settings: str) -> None:
        self.directory = directory
        self.alpaca = AlpacaProcess(directory, cash=cash, accounts=accounts)
        self.control = self.alpaca.control
        self.desk = Desk(directory, self.alpaca, **settings)


@contextlib.contextmanager
def grounds(**settings: str) -> Iterator[Callable[..., Ground]]:
    """Make a ground; what was started on it ends with it. No secret ever stands in the log."""
    made: list[Ground] = []

    def make(*, cash: int = 100_000, accounts: int = 0, start: bool = True, **more: str) -> Ground:
        # Not pytest's own directory: the path of a unix socket has room for about a hundred characters.
        directory = Path(tempfile.mkdtemp(prefix="desk-alpaca-"))
        ground = Ground(directory, cash=cash, accounts=accounts, **settings, **more)
        made.append(ground)
        if start:
            ground.alpaca.start()
            ground.desk.start()
        return ground

    try:
        yield make
        for ground in made:
            process = ground.desk.process
            if process is not None and process.poll() is None:
                assert ground.desk.stop() == 0, ground.desk.log()[-3000:]
            written = ground.desk.log()
            assert not [name for name, secret in KEYS.items() if "secret" in name and secret in written]
            assert not [user for user, token in ground.desk.tokens.items() if token in written]
            assert "Traceback" not in written, written
    finally:
        for ground in made:
            process = ground.desk.process
            if process is not None and process.poll() is None:
                process.kill()
            ground.alpaca.stop()
            shutil.rmtree(ground.directory, ignore_errors=True)


def _tape() -> Iterator[str]:
    """Two hours of prices that do not move, a line of each symbol every second."""
    for second in range(7200):
        at = (_OPENING + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")
        for symbol, price in PRICES.items():
            yield f'{{"type":"trade","symbol":"{symbol}","timestamp":"{at}","price":{price}}}\n'
