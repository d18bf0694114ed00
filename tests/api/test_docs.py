"""The commands of docs/http-api.md, run as they stand there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from desk_server.api.orders import PATHS
from desk_server.api.routes import ROUTES

DOC = (Path(__file__).resolve().parents[2] / "docs" / "http-api.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands(desk):
    """A token made by the administrator, an order with it, an asset, a calendar, and a stream on the socket."""
    (script,) = re.findall(r"```sh\n(.*?)```", DOC, re.DOTALL)
    script = script.replace("localhost:8080", f"127.0.0.1:{desk.addresses.http_port}")
    script = script.replace("run/", f"{desk.settings.run_dir}/")
    script = script.replace("curl -N", "curl -N --max-time 2").replace("curl ", "curl -sS ")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    decoder = json.JSONDecoder()
    order, end = decoder.raw_decode(done.stdout)
    assert (order["status"], order["order"]["user_id"]) == ("success", "alice"), done
    asset, end = decoder.raw_decode(done.stdout, end)
    calendar, end = decoder.raw_decode(done.stdout, end)
    assert (asset["symbol"], len(calendar["days"])) == ("BTC/USD", 4), done
    lines = done.stdout[end:].split("\n")[:-1]
    assert lines, done
    assert {json.loads(line)["symbol"] for line in lines if line} == {"AAPL"}


def test_every_route_is_documented():
    """Each row of the table of routes, and nothing else."""
    documented = set(re.findall(r"^\| `((?:GET|POST|PATCH|DELETE) [^`]+)` \|", DOC, re.MULTILINE))
    streams = {"GET /v1/updates", "GET /v1/market/stream", "GET /healthz", "GET /readyz", "GET /metrics"}
    assert documented == {f"{r.method} {r.path}" for r in ROUTES} | {f"POST {path}" for path in PATHS} | streams
