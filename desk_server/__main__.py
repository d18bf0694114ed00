"""`python -m desk_server`: settings → app.build() → serve → drain.

`verify-ledger`, `backup` and `restore` are for the ledger (docs/ledger.md), `settings` prints the page of settings.
"""

import argparse
import asyncio
import difflib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import uvloop
from pydantic import ValidationError

from desk_server import app, interpreter, logs
from desk_server.api.serve import Addresses, CannotServe, serve
from desk_server.ledger import LedgerUnavailable
from desk_server.settings import Settings, page, table

log = structlog.get_logger("desk")

LEDGER_COMMANDS = ("verify-ledger", "backup", "restore")
# What a stop may take besides the drain time.
_STOP_S_MAX = 15.0
# What the client, the manager and the scripts read.
NOT_OURS = {
    *("DESK_ADMIN_TOKEN_FILE", "DESK_AFTER", "DESK_BASE_IMAGE", "DESK_ENGINE_WAIT_S", "DESK_HOST_RUN_DIR"),
    *("DESK_LOG_FILE", "DESK_LOG_FILE_MAX", "DESK_MANAGER_DIR", "DESK_MEMORY", "DESK_PULL_TIMEOUT_S"),
    *("DESK_REQUIRE_DOCKER", "DESK_REQUIRE_POSTGRES", "DESK_RUNTIME", "DESK_SERVER_CONTAINER", "DESK_SERVER_URL"),
    *("DESK_STRATEGY", "DESK_SYMBOLS", "DESK_TOKEN", "DESK_TOKEN_FILE"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a clean stop, 1 when the desk cannot run any more (or the ledger is not sound), 2 for wrong settings."""
    options = _options(arguments)
    if options.command == "settings":
        print(page(), end="")
        return 0
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"{problem['loc'][0] if problem['loc'] else 'settings'}: {problem['msg']}", file=sys.stderr)
        print("`python -m desk_server --help` lists every setting.", file=sys.stderr)
        return 2
    try:
        if options.command in LEDGER_COMMANDS:
            return app.look_after_ledger(settings, options.command, options.file, options.expect)
        logs.configure(settings)
        _warn_of_unknown_settings()
        _warn_of_made_up_prices(settings)
        return uvloop.run(_run(settings))
    except (app.CannotBuild, CannotServe, LedgerUnavailable) as error:
        print(f"The desk cannot run: {error}", file=sys.stderr)
        return 1


def _warn_of_unknown_settings() -> None:
    """A limit whose name is misspelt would silently not be set."""
    known = {name for name, _, _ in table()}
    for name in sorted(os.environ):
        if name.startswith("DESK_") and name not in known | NOT_OURS:
            near = difflib.get_close_matches(name, known, 1)
            log.warning("unknown setting, ignored: see --help", name=name, did_you_mean=near[0] if near else None)


def _warn_of_made_up_prices(settings: Settings) -> None:
    if settings.broker != "paper" and settings.feed in ("walk", "replay"):
        log.warning("prices are not the broker's: orders are checked against them all the same", feed=settings.feed)


async def _run(settings: Settings) -> int:
    stop = _on_signals(settings)
    desk = app.build(settings)
    lost: list[str] = []

    def on_lost(why: str) -> None:
        log.critical("the ledger is another desk's now: this one ends, and sends nothing more", reason=why)
        lost.append(why)
        _stop_now(stop, settings)

    await desk.start(on_lost)
    interpreter.settle()
    try:
        await serve(desk.desk, settings, ready=partial(_announce, settings), stop=stop, report=desk.reconciler.report)
    finally:
        await desk.stop()
        log.info("stopped")
    return 1 if lost else 0


def _on_signals(settings: Settings) -> asyncio.Event:
    """Set by the first SIGTERM or Ctrl-C; the second ends the process at once (the ledger stands that), and so
    does a stop that takes longer than it may.
    """
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("stopping: what is under way is finished; a second signal ends at once")
        _stop_now(stop, settings)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


def _stop_now(stop: asyncio.Event, settings: Settings) -> None:
    stop.set()
    threading.Thread(target=_end_at_the_latest, args=(settings,), name="last resort", daemon=True).start()


def _end_at_the_latest(settings: Settings) -> None:
    """In a thread of its own, for whatever keeps the loop from ending: a disk, a library, a bug."""
    time.sleep(settings.drain_s + _STOP_S_MAX)
    log.critical("the desk has not stopped in time: it is ended, the next start clears up", drain_s=settings.drain_s)
    faulthandler.dump_traceback(all_threads=True)
    for path in settings.socket_dir.glob("*.sock"):
        path.unlink(missing_ok=True)
    os._exit(1)


def _announce(settings: Settings, addresses: Addresses) -> None:
    log.info(
        "listening: LIVE, REAL MONEY" if settings.is_live else "listening",
        live=settings.is_live,
        broker=settings.broker,
        feed=settings.feed,
        http=f"http://{addresses.host}:{addresses.http_port}",
        grpc=f"{addresses.host}:{addresses.grpc_port}",
        socket=str(addresses.http_socket),
        grpc_socket=str(addresses.grpc_socket),
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command in ("backup", "restore") and options.file is None:
        parser.error(f"{options.command} needs the backup's FILE")
    if options.command not in LEDGER_COMMANDS and (options.file is not None or options.expect):
        parser.error(f"{options.command} takes no FILE and no --expect")
    if options.command == "backup" and options.expect:
        parser.error("backup takes no --expect: verify-ledger and restore do")
    return options


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:28} {meaning} [{default or 'not set'}]" for name, default, meaning in table())
    parser = argparse.ArgumentParser(
        prog="python -m desk_server",
        description="The desk server. It is set up by environment variables:\n\n" + rows,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=("serve", *LEDGER_COMMANDS, "settings"), default="serve")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a backup of the ledger")
    parser.add_argument("--expect", default="", metavar="SEQ:HASH", help="an event that the ledger must have")
    return parser


if __name__ == "__main__":
    sys.exit(main())
