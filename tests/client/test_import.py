"""Importing the client is quick and light: every strategy pays for it."""

import subprocess
import sys

import pytest

HEAVY = [
    *("grpc", "pandas", "pydantic", "asyncio", "httpx", "requests", "numpy", "ssl", "hashlib", "http.client"),
    *("urllib3", "fastapi", "msgspec", "desk_server", "dataclasses", "random", "desk.v1.service_pb2"),
]


@pytest.mark.parametrize("module", ["desk_client", "desk_client.run"])
def test_nothing_heavy_is_imported(module):
    """Neither by the client nor by a container's entry."""
    code = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    imported = set(done.stdout.split())
    assert "desk.v1.orders_pb2" in imported
    assert imported.isdisjoint(HEAVY), imported & set(HEAVY)


def test_an_order_imports_nothing_heavy_either(desk, strategies):
    """Placing one with a line in hand loads no OpenSSL and no event loop."""
    code = (
        "import sys\nfrom desk_client import market, place_order\n"
        "for line in market():\n    print(place_order(line['symbol'], 0.5, 'buy').status)\n"
        f"print(sorted(set(sys.modules) & {set(HEAVY) - {'random', 'dataclasses'}!r}))"
    )
    process = strategies.start(code, via=(), stdin=subprocess.PIPE)
    out, err = process.communicate('{"symbol": "AAPL", "seq": 1}\n', timeout=20)
    assert (out, err) == ("success\n[]\n", "")


def test_every_name_that_is_exported_stays_what_it_is():
    """No module of the package hides a function of the same name once it is imported; each function has its help."""
    code = (
        "import desk_client, importlib, pkgutil\n"
        "for found in pkgutil.iter_modules(desk_client.__path__):\n"
        "    importlib.import_module('desk_client.' + found.name)\n"
        "print(*(name for name in desk_client.__all__ if not callable(getattr(desk_client, name))))\n"
        "print(*(name for name in desk_client.__all__ if name.islower() and not getattr(desk_client, name).__doc__))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "\n\n"
