"""`make demo`: a desk with the paper exchange on a tape of real prices, and the example strategies trading on it.

Everything is started as a person would start it (`python -m desk_server`, `strategy_manager.py start`), shown
in one live table, and stopped and removed at the end. The ledger in run/ stays.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from desk_manager import demo_view, settings
from desk_manager.demo_view import DemoDesk, View
from desk_manager.errors import DeskUnreachable, ManagerError
from desk_manager.runtimes import Runtime
from desk_manager.runtimes.docker import DockerRuntime
from desk_manager.runtimes.process import ProcessRuntime
from desk_manager.settings import PROJECT_DIR, Settings
from desk_manager.status import Board

TAPE = PROJECT_DIR / "desk_server" / "feeds" / "tapes" / "us-equities-2013-10-07.jsonl.gz"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
LOOK_EVERY_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    chosen = settings.from_env(runtime=options.runtime)
    if _answers(chosen.socket_dir / "desk.sock"):
        print(
            f"A desk is running in {chosen.run_dir} already: stop it first, or set DESK_RUN_DIR to another directory."
        )
        return 1
    signal.signal(signal.SIGTERM, _stop_by_signal)
    try:
        return _run(options, chosen)
    except ManagerError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 0 if options.seconds is None else 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, help="run so long unattended, print the last table, judge the outcome")
    parser.add_argument("--runtime", choices=settings.RUNTIMES, default=None)
    parser.add_argument("--speed", type=float, default=10.0, help="how many times faster than recorded (default: 10)")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, chosen: Settings) -> int:
    began = time.monotonic()
    server = _start_desk(chosen, options.speed)
    try:
        desk = DemoDesk(chosen)
        runtime: Runtime = DockerRuntime(chosen) if chosen.runtime == "docker" else ProcessRuntime(chosen)
        _wait_until_ready(desk, server, chosen)
        _say(f"The desk is ready; strategies start ({chosen.runtime} runtime) …")
        if _manager(chosen, "start") != 0:
            return 1
        view = View(desk, Board(chosen, runtime, desk), sandboxed=runtime.sandboxed)
        return _watch(options, view, server, chosen, began)
    finally:
        _say("Stopping the strategies and the desk; the ledger stays …")
        _manager(chosen, "stop")
        _stop_desk(server)


def _watch(
    options: argparse.Namespace, view: View, server: subprocess.Popen[bytes], chosen: Settings, began: float
) -> int:
    """Show it until the time is over, or for ever; exit code 0 when every strategy traded."""
    console = Console()
    console = console if console.is_terminal else Console(width=demo_view.PLAIN_WIDTH)
    until = None if options.seconds is None else time.monotonic() + options.seconds
    first_fill_s = None
    with Live(console=console, auto_refresh=False, screen=console.is_terminal and until is None) as live:
        while until is None or time.monotonic() < until:
            if server.poll() is not None:
                raise ManagerError("the desk has stopped by itself", f"see its log: {_log_file(chosen)}")
            seen = view.look()
            if first_fill_s is None and seen.fills:
                first_fill_s = time.monotonic() - began
            if console.is_terminal:
                live.update(demo_view.render(seen, console.height), refresh=True)
            time.sleep(LOOK_EVERY_S)
    seen = view.look()
    if not console.is_terminal:
        console.print(demo_view.render(seen, None))
    if first_fill_s is not None:
        _say(f"First fill seen {first_fill_s:.1f} s after the demo began.")
    return _judge(view.judge(seen))


def _judge(failures: list[str]) -> int:
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not failures:
        _say("Every example strategy was running, had read lines and had fills under its own user.")
    return 1 if failures else 0


def _start_desk(chosen: Settings, speed: float) -> subprocess.Popen[bytes]:
    chosen.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    env = os.environ | {
        "DESK_RUN_DIR": str(chosen.run_dir),
        "DESK_BROKER": "paper",
        "DESK_FEED": "replay",
        "DESK_REPLAY_FILE": str(TAPE),
        "DESK_REPLAY_SPEED": str(speed),
        "DESK_LOG_FORMAT": "json",
        "PORT": _free_port("PORT", 8080),
        "GRPC_PORT": _free_port("GRPC_PORT", 50051),
    }
    log_file = _log_file(chosen)
    _say(f"Starting the desk on real prices of 2013-10-07, {speed:g} times as fast; its log: {log_file}")
    _say(f"HTTP on 127.0.0.1:{env['PORT']} (/docs), gRPC on 127.0.0.1:{env['GRPC_PORT']}.")
    with log_file.open("ab") as log:
        # A session of its own: Ctrl-C is for this process, which stops the desk when the strategies are gone.
        return subprocess.Popen(
            [sys.executable, "-m", "desk_server"],
            cwd=PROJECT_DIR,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_until_ready(desk: DemoDesk, server: subprocess.Popen[bytes], chosen: Settings) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    reasons = "it does not answer"
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ManagerError("the desk ended while it started", f"see its log: {_log_file(chosen)}")
        try:
            facts = desk.readiness()
            if facts.get("ready"):
                return
            reasons = "; ".join(facts.get("reasons", []))
        except DeskUnreachable:
            pass
        time.sleep(0.1)
    raise ManagerError(f"the desk is not ready: {reasons}", f"see its log: {_log_file(chosen)}")


def _stop_desk(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _manager(chosen: Settings, verb: str) -> int:
    """Run strategy_manager.py as a person would; a Ctrl-C while it stops things does not stop that."""
    env = os.environ | {"DESK_RUN_DIR": str(chosen.run_dir), "STRATEGIES_DIR": str(chosen.strategies_dir)}
    command = [sys.executable, str(PROJECT_DIR / "strategy_manager.py"), "--runtime", chosen.runtime, verb]
    return subprocess.run(command, env=env, check=False, start_new_session=verb == "stop").returncode


def _free_port(name: str, usual: int) -> str:
    """The port asked for in the environment, or the usual one, or any where that is taken."""
    if given := os.environ.get(name):
        return given
    for port in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return str(probe.getsockname()[1])
    raise ManagerError("no TCP port is free on 127.0.0.1", f"set {name} to one that is")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _log_file(chosen: Settings) -> Path:
    return chosen.run_dir / "desk.log"


def _stop_by_signal(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
