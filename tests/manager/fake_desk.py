"""A small desk for the manager's tests: real HTTP on a real unix socket, deployments and a market stream, in memory."""

import hashlib
import json
import os
import secrets
import socketserver
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from desk.v1 import admin_pb2


class FakeDesk:
    """Serves `run_dir/desk/desk.sock` between start and stop; `deployments` shows what it was told."""

    def __init__(self, run_dir: Path, live: bool | None = False, gid: int = 20000) -> None:
        self.run_dir, self.live = run_dir, live
        self.admin_token = secrets.token_hex(16)
        self.deployments: dict[str, dict[str, Any]] = {}
        self.hashes: dict[str, str] = {}
        self.stopping = threading.Event()
        self.line_every_s = 0.05
        directory = run_dir / "desk"
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o750)
        if os.geteuid() == 0:
            os.chown(directory, -1, gid)
        (run_dir / "admin.token").write_text(self.admin_token + "\n")
        (run_dir / "admin.token").chmod(0o600)
        self.socket = directory / "desk.sock"
        self.gid = gid

    def start(self) -> "FakeDesk":
        self.stopping.clear()
        self.socket.unlink(missing_ok=True)
        self.server = _Server(str(self.socket), _Handler)
        self.server.desk = self
        self.socket.chmod(0o660)
        if os.geteuid() == 0:
            os.chown(self.socket, -1, self.gid)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.socket.unlink(missing_ok=True)

    def active(self, strategy: str) -> list[dict[str, Any]]:
        return [one for one in self.deployments.values() if one["strategy"] == strategy and not one["revoked_at"]]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    desk: FakeDesk

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        desk, path = self.server.desk, self.path.partition("?")[0]
        if path == "/readyz":
            self.answer(200, {"ready": True, "reasons": [], "broker": "paper", "live": desk.live})
        elif path == "/v1/deployments":
            if self.is_admin():
                self.answer(200, {"deployments": list(desk.deployments.values())})
        elif path == "/v1/market/stream":
            self.stream()
        else:
            self.answer(404, {"code": "NOT_FOUND", "message": "no such route"})

    def do_POST(self) -> None:
        desk = self.server.desk
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "protobuf" in self.headers.get("Content-Type", ""):
            beat = admin_pb2.HeartbeatRequest.FromString(raw)
            body = {"lines_read": str(beat.lines_read), "last_line_at": _now()}
        else:
            body = json.loads(raw or "{}")
        if self.path == "/v1/deployments":
            if not self.is_admin():
                return
            token, name = secrets.token_urlsafe(32), f"dep{len(desk.deployments):04}{secrets.token_hex(4)}"
            made = {
                **body,
                "deployment_id": name,
                "revoked_at": "",
                "connected": False,
                "lines_read": "0",
                "last_line_at": "",
                "heartbeat_at": "",
                "orders": 0,
                "fills": 0,
            }
            desk.deployments[name] = made
            desk.hashes[hashlib.sha256(token.encode()).hexdigest()] = name
            self.answer(201, {"deployment": made, "token": token})
        elif self.path == "/v1/heartbeat":
            if own := self.own_deployment():
                own.update(body, heartbeat_at=_now())
                self.answer(200, {})
        else:
            self.answer(404, {"code": "NOT_FOUND", "message": "no such route"})

    def do_DELETE(self) -> None:
        if not self.is_admin():
            return
        found = self.server.desk.deployments.get(self.path.rpartition("/")[2])
        if found is None:
            self.answer(404, {"code": "NOT_FOUND", "message": "no such deployment"})
        else:
            found["revoked_at"] = _now()
            self.answer(200, found)

    def stream(self) -> None:
        own = self.own_deployment()
        if own is None:
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Desk-First-Seq", "1")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        own["connected"] = True
        number = 0
        try:
            while not self.server.desk.stopping.is_set():
                number += 1
                line = {
                    "symbol": "AAPL",
                    "type": "trade",
                    "price": 100 + number % 7,
                    "timestamp": _now(),
                    "seq": number,
                }
                raw = json.dumps(line).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
                own.update(lines_read=str(number), last_line_at=_now())
                time.sleep(self.server.desk.line_every_s)
        except OSError:
            pass
        own["connected"] = False
        self.close_connection = True

    def is_admin(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server.desk.admin_token}":
            return True
        self.answer(401, {"code": "UNAUTHENTICATED", "message": "not the admin token"})
        return False

    def own_deployment(self) -> dict[str, Any] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        name = self.server.desk.hashes.get(hashlib.sha256(token.encode()).hexdigest())
        found = self.server.desk.deployments.get(name or "")
        if found is None or found["revoked_at"]:
            self.answer(401, {"code": "UNAUTHENTICATED", "message": "no such token"})
            return None
        return found

    def answer(self, status: int, content: object) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    import sys

    FakeDesk(Path(sys.argv[1])).start()
    while True:
        time.sleep(60)
