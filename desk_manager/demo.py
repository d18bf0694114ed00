"""`make demo`: a desk with the paper exchange on a tape of real prices, and the example strategies trading on it.

Everything is started as a person would start it (`python -m desk_server`, `strategy_manager.py start`), shown
in one live table, and stopped and removed at the end. The ledger in run/ stays.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import TextIO

from rich.console import Console
from rich.live import Live

from desk_manager import demo_view, settings
from desk_manager.demo_desk import DeskProcess, refuse_second
from desk_manager.demo_view import DemoDesk, View
from desk_manager.errors import ExitCode, ManagerError
from desk_manager.runtimes import Runtime
from desk_manager.runtimes.docker import DockerRuntime
from desk_manager.runtimes.process import ProcessRuntime
from desk_manager.settings import PROJECT_DIR, Settings
from desk_manager.status import Board

STOP_TIMEOUT_S = 20.0
LOOK_EVERY_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all went well (without --seconds: until Ctrl-C), 1 when it did not, 128 + the signal that ended it."""
    options = _options(arguments)
    interrupts = Interrupts()
    try:
        chosen = settings.from_env(runtime=options.runtime)
        # The demo's desk is on its socket, whatever desk the caller's own strategies use.
        chosen = replace(chosen, server_url=f"unix://{chosen.socket_dir}/desk.sock")
        refuse_second(chosen)
        return _run(options, chosen, interrupts)
    except ManagerError as error:
        _say(f"FAILED: {error}", sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        wanted = options.seconds is None and interrupts.received == signal.SIGINT
        return 0 if wanted else 128 + interrupts.received


class Interrupts:
    """The first Ctrl-C, SIGTERM or hang-up ends the show. What stops things then is not interrupted again."""

    def __init__(self) -> None:
        self.received = 0
        self._stopping = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def hold(self) -> None:
        """From here on, signals are heard but change nothing."""
        self._stopping = True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._stopping:
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(1, "Still stopping; a strategy may take 10 s …\n".encode())
            return
        self._stopping, self.received = True, number
        raise KeyboardInterrupt


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=_seconds, help="run so long unattended, print the last table, judge it")
    parser.add_argument("--runtime", choices=settings.RUNTIMES, default=None)
    parser.add_argument("--speed", type=_seconds, default=10.0, help="how many times as fast as recorded (default: 10)")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _run(options: argparse.Namespace, chosen: Settings, interrupts: Interrupts) -> int:
    began = time.monotonic()
    runtime: Runtime = DockerRuntime(chosen) if chosen.runtime == "docker" else ProcessRuntime(chosen)
    desk = DemoDesk(chosen)
    server = DeskProcess(chosen)
    http, grpc = (f"127.0.0.1:{port}" for port in server.ports.values())
    _say(f"Starting the desk on real prices of 2013-10-07, {options.speed:g} times as fast; its log: {server.log_file}")
    _say(f"HTTP on {http} (/docs), gRPC on {grpc}.")
    try:
        server.start(options.speed)
        server.wait_until_ready(desk)
        _say(f"The desk is ready; strategies start ({chosen.runtime} runtime) …")
        _start_strategies(options, chosen)
        heading = (
            f"Ctrl-C stops it all  ·  http://{http}/docs  ·  paper exchange, prices of 2013-10-07, "
            f"{options.speed:g}× speed"
        )
        view = View(desk, Board(chosen, runtime, desk), sandboxed=runtime.sandboxed, heading=heading)
        return _show(options, view, server, began)
    finally:
        interrupts.hold()
        _say("Stopping the strategies and the desk …")
        _stop(chosen, desk, server)
        _say(f"Stopped. The ledger stays in {chosen.run_dir}/ledger; the next start goes on from it.")


def _start_strategies(options: argparse.Namespace, chosen: Settings) -> None:
    """Raises ManagerError where none can start; unattended, already where one does not."""
    code = _manager(chosen, "start")
    bearable = (ExitCode.OK,) if options.seconds is not None else (ExitCode.OK, ExitCode.FAILED, ExitCode.INVALID)
    if code not in bearable:
        error = ManagerError("not every strategy started", "the reason stands above; correct it and try again")
        error.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED
        raise error


def _show(options: argparse.Namespace, view: View, server: DeskProcess, began: float) -> int:
    """Show it until the time is over, or for ever; exit code 0 when every strategy traded."""
    console = Console()
    on_terminal = console.is_terminal
    console = console if on_terminal else Console(width=demo_view.PLAIN_WIDTH)
    until = math.inf if options.seconds is None else time.monotonic() + options.seconds
    seen, first_fill_s = None, None
    try:
        with Live(console=console, auto_refresh=False, screen=on_terminal, transient=True) as live:
            while time.monotonic() < until:
                server.check()
                seen = view.look()
                if first_fill_s is None and any(row.fills for row in seen.rows):
                    first_fill_s = time.monotonic() - began
                if on_terminal and not sys.stdout.isatty():
                    # Only a session's leader hears of a terminal that closes, and that may be `make`.
                    os.kill(os.getpid(), signal.SIGHUP)
                if on_terminal:
                    live.update(view.render(seen, console.width, console.height), refresh=True)
                time.sleep(LOOK_EVERY_S)
        seen = view.look()
    finally:
        # The screen of the live table is gone with it; the last one stays.
        if seen:
            console.print(view.render(seen, console.width))
    if first_fill_s is not None:
        _say(f"First fill seen {first_fill_s:.1f} s after the demo began.")
    return _judge(view.judge(seen))


def _judge(failures: list[str]) -> int:
    for failure in failures:
        _say(f"FAILED: {failure}", sys.stderr)
    if not failures:
        _say("Every example strategy was running, had read lines and had fills under its own user.")
    return 1 if failures else 0


def _stop(chosen: Settings, desk: DemoDesk, server: DeskProcess) -> None:
    """End every strategy, every token and the desk."""
    if _manager(chosen, "stop") == ExitCode.OK and server.is_running():
        # A start that was interrupted may have left a token without a strategy.
        with contextlib.suppress(ManagerError):
            for deployment in desk.deployments():
                desk.revoke(deployment["deployment_id"])
    server.stop()


def _manager(chosen: Settings, verb: str) -> int:
    """Run strategy_manager.py as a person would. A Ctrl-C ends a start in good order, and not a stop."""
    env = os.environ | {
        "DESK_RUN_DIR": str(chosen.run_dir),
        "STRATEGIES_DIR": str(chosen.strategies_dir),
        "DESK_SERVER_URL": chosen.server_url,
    }
    command = [sys.executable, str(PROJECT_DIR / "strategy_manager.py"), "--runtime", chosen.runtime, verb]
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        process.kill()
        raise


def _leave_terminal() -> None:
    """The terminal is gone: what is still said goes nowhere, and does not keep us from stopping things."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _say(text: str, to: TextIO | None = None) -> None:
    print(text, file=to or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
