"""`make demo`'s program, as a person sees it: it trades, shows it, and leaves nothing behind, however it ends."""

import contextlib
import fcntl
import json
import os
import pty
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import PROJECT, DeskProcess, until

pytestmark = pytest.mark.timeout(180)

EXAMPLES = sorted(path.name for path in (PROJECT / "strategies").iterdir() if (path / "strategy.py").exists())
COLUMNS, LINES = 80, 24
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    pass
"""


class Demo:
    """The demo on directories of its own, with the examples under names that no other test uses."""

    def __init__(self, runtime: str) -> None:
        # Not pytest's own directory: the path of a unix socket has room for about a hundred characters.
        self.directory = Path(tempfile.mkdtemp(prefix="desk-demo-"))
        self.directory.chmod(0o755)
        self.runtime = runtime
        self.tag = secrets.token_hex(3)
        self.run_dir = self.directory / "run"
        self.strategies = self.directory / "strategies"
        for example in EXAMPLES:
            shutil.copytree(PROJECT / "strategies" / example, self.strategies / f"{example}-{self.tag}")
        self.env = os.environ | {
            "DESK_RUN_DIR": str(self.run_dir),
            "STRATEGIES_DIR": str(self.strategies),
            "PORT": "0",
            "GRPC_PORT": "0",
        }
        for name in ("COLUMNS", "LINES", "NO_COLOR", "TERM"):
            self.env.pop(name, None)
        self.process: subprocess.Popen[bytes] | None = None
        self._written = b""

    def command(self, *arguments: str) -> list[str]:
        chosen = ["--runtime", self.runtime, "--speed", "20"]
        return [sys.executable, "-m", "desk_manager.demo", *chosen, *arguments]

    def start_on_terminal(self) -> int:
        """The terminal's other end, which this process reads all the while."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", LINES, COLUMNS, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            self.command(),
            cwd=PROJECT,
            env=self.env | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=take_terminal,  # noqa: PLW1509 - what is forked here starts no thread
        )
        os.close(theirs)
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        return ours

    def _read(self, terminal: int) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 65536):
                self._written += chunk

    def written(self) -> str:
        return self._written.decode("utf-8", "replace")

    def shown(self) -> list[str]:
        """The picture drawn last on the whole screen, line by line, without colours."""
        last = self.written().rpartition("\x1b[H")[2]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).split("\r\n")

    def trades(self) -> bool:
        assert self.process.poll() is None, self.written()
        return f"sma_cross-{self.tag}" in self.written() and " running " in self.written()

    def manager(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(PROJECT / "strategy_manager.py"), "--runtime", self.runtime, *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    def deployed(self) -> list[str]:
        rows = json.loads(self.manager("status", "--json"))["strategies"]
        return [row["strategy"] for row in rows if row["state"] != "not deployed"]

    def processes(self) -> list[str]:
        """Every process that has this demo's directory in its environment or command: desk, strategies, supervisors."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                about = command + (path / "environ").read_bytes().decode("utf-8", "replace")
                if str(self.directory) in about:
                    found.append(command)
        return found

    def nothing_is_left(self) -> None:
        """No strategy, no process, no socket; every token revoked; the ledger kept."""
        assert self.deployed() == []
        until(lambda: not self.processes(), "every process of the demo is gone", 15)
        assert not list((self.run_dir / "desk").glob("*"))
        assert not list((self.run_dir / "deployments").glob("*"))
        assert (self.run_dir / "ledger" / "desk.db").stat().st_size > 0

    def good_tokens(self) -> list[dict]:
        """Every deployment whose token a desk on the same ledger would still take."""
        desk = DeskProcess(self.run_dir)
        desk.start()
        try:
            return desk.get("/v1/deployments")["deployments"]
        finally:
            desk.stop()

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.manager("stop")
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
def demo(request):
    made = Demo(request.param)
    yield made
    made.close()


@pytest.fixture
def plain_demo():
    made = Demo("process")
    yield made
    made.close()


def test_unattended_it_trades_and_shows_it(demo):
    """With --seconds it exits 0 after every example traded, shows each one, and leaves nothing behind."""
    done = subprocess.run(
        demo.command("--seconds", "15"), cwd=PROJECT, env=demo.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for example in EXAMPLES:
        row = re.search(rf"^{example}-{demo.tag} +\S+ +running ", done.stdout, re.MULTILINE)
        assert row, done.stdout
    for user in ("alice", "bob", "carol", f"dave-{demo.tag}"):
        assert re.search(rf"^{user} +[\d,.]+ ", done.stdout, re.MULTILINE), done.stdout
    assert ("NOT SANDBOXED" in done.stdout) == (demo.runtime == "process")
    assert "Every example strategy was running" in done.stdout
    demo.nothing_is_left()


def test_ctrl_c_stops_and_removes_everything(demo):
    """Ctrl-C, pressed again and again while it stops things, still stops all of them; exit code 0."""
    terminal = demo.start_on_terminal()
    until(demo.trades, "the table shows running strategies")
    os.write(terminal, b"\x03")
    until(lambda: "Stopping the strategies" in demo.written(), "it says that it stops")
    os.write(terminal, b"\x03")
    os.write(terminal, b"\x03")
    assert demo.process.wait(60) == 0, demo.written()
    assert "Still stopping" in demo.written()
    demo.nothing_is_left()
    assert demo.good_tokens() == []


def test_ctrl_c_while_strategies_start_leaves_none(demo):
    """A start that is interrupted half-way leaves neither strategies nor tokens."""
    terminal = demo.start_on_terminal()
    until(lambda: "strategies start" in demo.written(), "strategies begin to start")
    until(lambda: list((demo.run_dir / "deployments").glob("*")), "one has its token")
    os.write(terminal, b"\x03")
    assert demo.process.wait(60) == 0, demo.written()
    demo.nothing_is_left()
    assert demo.good_tokens() == []


def test_a_closed_terminal_stops_everything(plain_demo):
    """Who closes the window gets the same as by Ctrl-C."""
    terminal = plain_demo.start_on_terminal()
    until(plain_demo.trades, "the table shows running strategies")
    # The reader holds the terminal open until it is woken; a hang-up reaches the demo in any case.
    os.kill(plain_demo.process.pid, signal.SIGHUP)
    assert plain_demo.process.wait(60) == 128 + signal.SIGHUP
    os.close(terminal)
    plain_demo.nothing_is_left()


def test_a_strategy_that_ignores_sigterm_is_ended_too(plain_demo):
    """What does not end when asked is ended by force, and the demo does not hang."""
    folder = plain_demo.strategies / f"stubborn-{plain_demo.tag}"
    folder.mkdir()
    (folder / "strategy.py").write_text(STUBBORN)
    terminal = plain_demo.start_on_terminal()
    until(plain_demo.trades, "the table shows running strategies")
    os.write(terminal, b"\x03")
    assert plain_demo.process.wait(60) == 0, plain_demo.written()
    plain_demo.nothing_is_left()


def test_killed_it_takes_the_desk_along_and_starts_again(demo):
    """After SIGKILL the desk ends by itself; the next demo takes the strategies over, and stops them."""
    demo.start_on_terminal()
    until(demo.trades, "the table shows running strategies")
    demo.process.kill()
    demo.process.wait()
    try:
        until(lambda: not list((demo.run_dir / "desk").glob("*")), "the desk has ended and removed its sockets")
    except AssertionError:
        print((demo.run_dir / "desk.log").read_text()[-5000:])
        raise
    done = subprocess.run(
        demo.command("--seconds", "8"), cwd=PROJECT, env=demo.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    demo.nothing_is_left()


def test_the_live_table_fits_80_columns_and_24_lines(plain_demo):
    """On a small terminal no line is cut of what matters: states, lines read, cash, profits, fills."""
    plain_demo.start_on_terminal()
    until(plain_demo.trades, "the table shows running strategies")
    until(lambda: "NEWEST FILLS" in plain_demo.written(), "the first whole picture")
    lines = plain_demo.shown()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS, lines
    for heading in ("STATE", "LINES", "LAST LINE", "FILLS", "MEMORY", "CASH", "EQUITY", "REALISED P&L", "POSITIONS"):
        assert any(heading in line for line in lines), (heading, lines)
    assert any("Ctrl-C" in line for line in lines)


def test_a_second_demo_on_the_same_directory_is_refused(plain_demo):
    """It names the process that runs there already, and exits 1."""
    plain_demo.start_on_terminal()
    until(plain_demo.trades, "the table shows running strategies")
    done = subprocess.run(
        plain_demo.command("--seconds", "5"),
        cwd=PROJECT,
        env=plain_demo.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    pid = re.search(r"already \(process (\d+)\)", done.stderr)[1]
    assert b"desk_server" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_taken_port_is_said(plain_demo, unused_tcp_port):
    """The desk's own words about the port reach the person, and nothing is left."""
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(unused_tcp_port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as other:
        try:
            until(lambda: _listens(unused_tcp_port), "the port is taken")
            done = subprocess.run(
                plain_demo.command("--seconds", "5"),
                cwd=PROJECT,
                env=plain_demo.env | {"PORT": str(unused_tcp_port)},
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            other.kill()
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{unused_tcp_port}" in done.stderr
    assert plain_demo.processes() == []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
