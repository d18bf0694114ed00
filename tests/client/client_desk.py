"""A small desk on a real socket that does what a test tells it: it answers, hangs up, stalls and restarts."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from desk.v1 import orders_pb2 as pb

from desk_client import Client, Settings, Token, parse_url
from desk_client.hand import Hand

PROTOBUF = "application/x-protobuf"
PYTHON = [sys.executable, "-I"]


class Request:
    def __init__(self, method, target, headers, body):
        self.method, self.headers, self.body = method, headers, body
        self.path = urlsplit(target).path
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}

    @property
    def order(self):
        return pb.OrderRequest.FromString(self.body)


Reply = Callable[[socket.socket, Request], None]


def answer(status, message=None, *, body=None, kind=PROTOBUF, **headers) -> Reply:
    """One whole HTTP answer."""
    body = message.SerializeToString() if message is not None else (body or b"")

    def reply(connection, _):
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return reply


def error(status, code, **fields) -> Reply:
    headers = {name: fields.pop(name) for name in list(fields) if name == "Retry_After"}
    message = fields.pop("message", "what to do about it")
    return answer(status, pb.OrderResponse(status="error", code=code, message=message, **fields), **headers)


def hang_up(connection, _):
    """Closes without an answer."""
    connection.shutdown(socket.SHUT_RDWR)


def stall(connection, _):
    """Never answers."""
    connection.recv(1)


class FakeDesk:
    """Answers what `replies` holds, in turn, and otherwise as a desk does."""

    def __init__(self, url):
        self.address = parse_url(url)
        self.url = url
        self.token = "good-token"
        self.requests: list[Request] = []
        self.connections_made = 0
        self.replies: deque[Reply] = deque()
        self.orders: dict[str, pb.OrderResponse] = {}
        self.tape: list[dict] = []
        # Bytes of market lines after which each stream is cut; None: never.
        self.cut_after = None
        self.changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._listener = None
        self.start()

    # Its life

    def start(self):
        if self.address.scheme == "unix":
            if os.path.exists(self.address.path):
                os.unlink(self.address.path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.address.path)
        else:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.address.host, self.address.port if self.address.port != 1 else 0))
            self.address = parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}")
            self.url = str(self.address)
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self):
        """As a desk that is killed: the listener and every connection go."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        self._end(listener)
        for connection in list(self._open):
            self._end(connection)
        with self.changed:
            self.changed.notify_all()

    @staticmethod
    def _end(sock):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()

    def drop_connections(self):
        for connection in list(self._open):
            self._end(connection)

    def publish(self, *symbols):
        with self.changed:
            for symbol in symbols:
                seq = self.tape[-1]["seq"] + 1 if self.tape else 1
                self.tape.append(
                    {
                        "seq": seq,
                        "symbol": symbol,
                        "type": "trade",
                        "price": 100 + seq,
                        "timestamp": f"2026-01-02T03:04:05.{seq:06d}Z",
                    }
                )
            self.changed.notify_all()

    def seen(self, path):
        return [request for request in self.requests if request.path == path]

    # Its answers

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections_made += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        file = connection.makefile("rb")
        try:
            while request := self._read(file):
                self.requests.append(request)
                self._reply_to(request)(connection, request)
        except OSError:
            pass
        finally:
            self._open.discard(connection)
            file.close()
            connection.close()

    @staticmethod
    def _read(file):
        first = file.readline()
        if not first:
            return None
        method, target, _ = first.decode().split(" ")
        headers = {}
        while (line := file.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Request(method, target, headers, file.read(int(headers.get("content-length", 0))))

    def _reply_to(self, request) -> Reply:
        if request.path == "/v1/heartbeat":
            return answer(200, body=b"")
        if self.replies:
            return self.replies.popleft()
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return error(401, "UNAUTHENTICATED", message="the token is unknown or revoked")
        if (request.method, request.path) == ("POST", "/v1/orders"):
            return self._place(request.order)
        if request.path == "/v1/market/stream":
            return self._stream
        return error(404, "NOT_FOUND")

    def _place(self, order):
        known = self.orders.get(order.request_id)
        if known is None:
            known = self.orders[order.request_id] = pb.OrderResponse(
                status="success",
                order_id=f"order-{len(self.orders) + 1}",
                symbol=order.symbol,
                qty=order.qty,
                side=order.side,
                order_status="accepted",
            )
        return answer(201, known)

    def _stream(self, connection, request):
        after = int(request.query["after"]) if "after" in request.query else len(self.tape)
        wanted = request.query.get("symbols", "")
        connection.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDesk-First-Seq: {after + 1}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        left = self.cut_after
        while True:
            with self.changed:
                lines = [line for line in self.tape if line["seq"] > after]
                if not lines:
                    self.changed.wait(0.2)
                    if self._listener is None:
                        return
                    continue
            after = lines[-1]["seq"]
            chosen = [line for line in lines if not wanted or line["symbol"] in wanted.split(",")]
            data = b"".join(json.dumps(line).encode() + b"\n" for line in chosen) + b"\n"
            if left is not None:
                data, left = data[:left], left - len(data)
            connection.sendall(b"%x\r\n%b\r\n" % (len(data), data) if data else b"")
            if left is not None and left <= 0:
                self._end(connection)
                return


def client_of(desk, hand=None, **settings):
    return Client(Settings(parse_url(desk.url), Token(desk.token), **settings), hand or Hand())


def until(condition, seconds=10.0, what="it"):
    """Polls until the condition holds; fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)
    return result


class Strategies:
    """Runs strategies as a container would: through `python -I -m desk_client.run`."""

    def __init__(self, folder, desk):
        self.folder, self.desk = folder, desk
        self.started = []

    def environment(self, **extra):
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return kept | {"DESK_SERVER_URL": self.desk.url, "DESK_TOKEN": self.desk.token, "USER_ID": "alice"} | extra

    def write(self, code):
        path = self.folder / "strategy.py"
        path.write_text(code)
        return str(path)

    def start(self, code, *arguments, env=None, via=("-m", "desk_client.run"), stdin=subprocess.DEVNULL):
        process = subprocess.Popen(
            [*PYTHON, *via, self.write(code), *arguments],
            env=self.environment(**(env or {})),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
