"""The client and the desk itself: a strategy trades through the desk's kill and restart, and does not notice."""

import json
import os
import subprocess
import sys

import pytest
from client_desk import Strategies, until
from desk.v1 import admin_pb2

from desk_client import AuthenticationError, Client, DeskUnavailable, Settings, Token, parse_url

STRATEGY = """
import json, sys, threading
from desk_client import account, fills, list_orders, place_order, updates

events = []
threading.Thread(target=lambda: [events.append(update) for update in updates()], daemon=True).start()
seqs, placed, failed = [], [], []
for line in sys.stdin:
    tick = json.loads(line)
    seqs.append(tick["seq"])
    if tick["symbol"] == "AAPL":
        response = place_order("AAPL", 1, "buy")
        (placed if response.status == "success" else failed).append(response.order_id or response.code)
    if len(seqs) % 100 == 0:
        print(len(seqs), flush=True)
    if len(seqs) == 600:
        break
orders = list(list_orders())
in_hand = sorted(order.line.seq for order in orders)
print(json.dumps({
    "missed": seqs != list(range(seqs[0], seqs[0] + 600)), "failed": failed, "orders": len(orders),
    "once": sorted(placed) == sorted(order.order_id for order in orders),
    "lines": in_hand == sorted(set(in_hand)) and set(in_hand) <= set(seqs),
    "user": account().user_id, "fills": len(list(fills())),
    "updates": [update.seq for update in events] == sorted({update.seq for update in events}),
}))
"""


class Desk:
    """`python -m desk_server` with a random walk, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.url = f"unix://{folder}/desk/desk.sock"
        self.token = ""
        self.start()

    def start(self):
        ours = {"PORT": "0", "GRPC_PORT": "0", "DESK_RUN_DIR": str(self.folder), "DESK_WALK_LINES_PER_S": "100"}
        ours["DESK_SOCKET_GID"] = str(os.getgid())
        with open(self.folder / "out", "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "desk_server"], env=os.environ | ours, stdout=out, stderr=out
            )

    def end(self, how):
        how(self.process)
        self.process.wait(timeout=30)

    def admin(self):
        return Client(Settings(parse_url(self.url), Token(path=str(self.folder / "admin.token"))))

    def is_up(self):
        try:
            return (self.folder / "admin.token").exists() and self.admin().latest(timeout=1) is not None
        except DeskUnavailable:
            return False

    def deploy(self, user_id):
        wish = admin_pb2.CreateDeploymentRequest(user_id=user_id, strategy="momentum", code_hash="a" * 64)
        response = self.admin().caller.call("POST", "/v1/deployments", wish.SerializeToString(), timeout_s=5)
        return admin_pb2.CreateDeploymentResponse.FromString(response.body)

    def revoke(self, deployment_id):
        self.admin().caller.call("DELETE", f"/v1/deployments/{deployment_id}", timeout_s=5)


@pytest.fixture
def real_desk(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    desk = Desk(folder)
    until(desk.is_up, seconds=30, what="the desk's start")
    yield desk
    if desk.process.poll() is None:
        desk.end(subprocess.Popen.kill)


@pytest.mark.slow
def test_a_strategy_trades_through_a_kill_and_a_restart(real_desk, tmp_path):
    """Every line once, every order answered, each with its line in hand, every update once."""
    real_desk.token = real_desk.deploy("alice").token
    strategies = Strategies(tmp_path, real_desk)
    strategy = strategies.start(STRATEGY)
    try:
        assert strategy.stdout.readline() == "100\n"
        real_desk.end(subprocess.Popen.kill)
        real_desk.start()
        assert strategy.stdout.readline() == "200\n"
        assert strategy.stdout.readline() == "300\n"
        real_desk.end(subprocess.Popen.terminate)
        real_desk.start()
        out, err = strategy.communicate(timeout=60)
    finally:
        strategies.end()
    assert strategy.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result.pop("orders") > 20
    assert result.pop("fills") > 20
    assert result == {"missed": False, "failed": [], "once": True, "lines": True, "user": "alice", "updates": True}
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_revoked_deployment_ends_its_strategy(real_desk, tmp_path):
    """With exit code 78 and the reason; its token is good for nothing else either."""
    deployment = real_desk.deploy("bob")
    real_desk.token = deployment.token
    strategies = Strategies(tmp_path, real_desk)
    strategy = strategies.start("for _ in iter(input, ''):\n    print('read', flush=True)", env={"USER_ID": "bob"})
    try:
        assert strategy.stdout.readline() == "read\n"
        real_desk.revoke(deployment.deployment.deployment_id)
        _, err = strategy.communicate(timeout=30)
    finally:
        strategies.end()
    assert strategy.returncode == 78
    assert "refused this token" in err
    with pytest.raises(AuthenticationError):
        Client(Settings(parse_url(real_desk.url), Token(deployment.token))).place_order("AAPL", 1, "buy")
