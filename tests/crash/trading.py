"""The client processes of an epoch, and the administrator's few calls, from the harness's side."""

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.clients import NoAnswer, Raw
from tests.crash.desks import PROJECT

USERS = ("alice", "bob", "carol", "dave")
SYMBOLS = ("AAPL", "MSFT", "SPY", "NVDA", "AMZN", "TSLA")
AT_MARKET = "TSLA"
_ACTORS = 8


class NotDone(Exception):
    """The desk did not do what its administrator asked for, in the time it had."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What clients need to know of the desk."""

    url: str
    admin: Path
    tokens: dict[str, str]
    prices: dict[str, str]


def until_answered(raw: Raw, method: str, path: str, body: Any = None, within_s: float = 20.0) -> dict[str, Any]:
    """A call of the administrator's, repeated until it succeeds."""
    deadline, last = time.monotonic() + within_s, ""
    while time.monotonic() < deadline:
        try:
            status, told = raw.call(method, path, body)
            if status < 300:
                return told
            last = f"{status} {told}"
        except NoAnswer as error:
            last = str(error)
        time.sleep(0.02)
    raise NotDone(f"{method} {path} did not succeed within {within_s} s: {last}")


def settle(url: str, run_dir: Path) -> Ground:
    """Tokens for everybody, and the prices that the desk sees."""
    admin = run_dir / "admin.token"
    raw = Raw(url, admin)
    tokens = {}
    for user in USERS:
        body = {"user_id": user, "role": "trade", "label": "crash"}
        tokens[user] = until_answered(raw, "POST", "/v1/tokens", body)["token"]
    deadline = time.monotonic() + 20
    while True:
        lines = until_answered(raw, "GET", "/v1/market/latest")["lines"]
        prices = {line["symbol"]: line["price"] for line in lines}
        if set(SYMBOLS) <= set(prices):
            return Ground(url, admin, tokens, {symbol: f"{float(prices[symbol]):.2f}" for symbol in SYMBOLS})
        if time.monotonic() > deadline:
            raise NotDone(f"no prices came: {sorted(prices)}")
        time.sleep(0.02)


class Clients:
    """Two processes: one speaks through desk_client, the other by hand; both read updates."""

    def __init__(self, ground: Ground, directory: Path, seed: str, *, pause_s: float, patience_s: float) -> None:
        """After `finish`, what is not answered within `patience_s` counts as never answered."""
        self.logs = [directory / f"clients-{name}.jsonl" for name in ("sdk", "raw")]
        actors = [
            {"user": USERS[number % len(USERS)], "speaks": "sdk" if number % 2 else "raw"} for number in range(_ACTORS)
        ]
        # Each user speaks both ways: alice by hand and through the client.
        for number in range(len(USERS), _ACTORS):
            actors[number]["speaks"] = "raw" if actors[number - len(USERS)]["speaks"] == "sdk" else "sdk"
        self._processes = []
        for place, name in enumerate(("sdk", "raw")):
            plan = {
                "url": ground.url,
                "admin": str(ground.admin),
                "tokens": ground.tokens,
                "prices": ground.prices,
                "market": AT_MARKET,
                "seed": seed,
                "pause_s": pause_s,
                "patience_s": patience_s,
                "actors": actors,
                "mine": [number for number, actor in enumerate(actors) if actor["speaks"] == name],
                "readers": list(USERS[place::2]),
                "operator": name == "raw",
                "log": str(self.logs[place]),
            }
            path = directory / f"clients-{name}.json"
            path.write_text(json.dumps(plan))
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.crash.clients", str(path)],
                    cwd=PROJECT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=(directory / f"clients-{name}.log").open("ab"),
                )
            )

    def command(self, word: str, within_s: float) -> bool:
        """Tell both; whether both have done it within the time."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(word.encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + within_s
        for process in self._processes:
            assert process.stdout is not None
            waited = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not waited[0] or process.stdout.readline().strip() != b"done":
                return False
        return True

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(20)


def all_orders(raw: Raw) -> Iterator[dict[str, Any]]:
    """Every order that the desk shows its administrator."""
    token = ""
    while True:
        page = until_answered(raw, "GET", f"/v1/orders?user_id=*&limit=500&page_token={token}")
        yield from page["orders"]
        if not (token := page["next_page_token"]):
            return
