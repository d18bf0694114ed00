"""Runs a strategy: `python -m desk_client.run [--stdin | --pipe] STRATEGY.py [arguments]`. A container's entry.

Standard input becomes the desk's market stream, read in this very process and resumed after a lost
connection, so that the strategy does not see a desk's restart. With --stdin, or where no DESK_SERVER_URL is
set and somebody gives lines on standard input, it is left as it is. With --pipe it is a real file descriptor,
a pipe that a thread fills: for select(), subprocesses and programs not in Python. What lies unread in a pipe is
not known, so that an order then carries a line in hand only where the strategy used desk_client.market().

DESK_SYMBOLS        only lines of these symbols ("AAPL,MSFT"); all when empty
DESK_AFTER          begin after this sequence number; with what comes from now on when empty
DESK_LOG_FILE       see desk_client.logfile; DESK_LOG_FILE_MAX bytes at most

Exit codes: 0 the strategy ended, or SIGTERM asked it to; 1 it failed (its traceback is on standard error);
what it gave to sys.exit(); 2 wrong usage; 78 the desk refuses its token, or a setting cannot be right; 130
Ctrl-C. SIGTERM raises SystemExit in the main thread, so `finally` and `with` blocks run, and ends standard
input. A second one ends the process at once with 143.
"""

from __future__ import annotations

import builtins
import faulthandler
import fcntl
import io
import os
import signal
import sys
import threading
import time
import types
from typing import NoReturn

from desk_client import logfile
from desk_client.calls import Caller
from desk_client.client import Client
from desk_client.errors import ConfigurationError, DeskClientError
from desk_client.feed import stdin_has_lines
from desk_client.hand import HAND, Hand
from desk_client.heartbeat import Heartbeat
from desk_client.market_lines import MarketLines
from desk_client.stdin import MarketStdin

USAGE = "usage: python -m desk_client.run [--stdin | --pipe] STRATEGY.py [arguments]"
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: trying again will not help
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
# As small as a pipe can be: what lies in it is old by the time it is read.
PIPE_BYTES = 4096
# For the strategy's own threads, once SIGTERM has ended its main one. Docker kills after 10 s.
THREADS_STOP_S = 5.0


class Stop:
    """The way out: SIGTERM's, and a refused token's."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.signalled = False
        self.lines: MarketLines | None = None

    def on_sigterm(self, _signal: int, _frame: types.FrameType | None) -> None:
        if self.signalled:
            os._exit(EXIT_TERMINATED)
        self.signalled = True
        self._end(0)

    def on_refused(self, error: DeskClientError) -> NoReturn:
        """Ends the strategy from whichever thread reads its standard input."""
        if self.exit_code is None:
            say(f"no market lines, and none to come: {error}")
            if threading.current_thread() is not threading.main_thread():
                self.exit_code = EXIT_CONFIG
                os.kill(os.getpid(), signal.SIGTERM)
        self._end(EXIT_CONFIG)

    def _end(self, exit_code: int) -> NoReturn:
        if self.exit_code is None:
            self.exit_code = exit_code
        if self.lines is not None:
            # Also for a strategy that catches everything: its standard input has ended.
            self.lines.stop()
        raise SystemExit(self.exit_code)


def main(arguments: list[str]) -> int:
    """Runs the strategy to its end; returns the exit code."""
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.on_sigterm)
    mode = arguments[0] if arguments[:1] in (["--stdin"], ["--pipe"]) else ""
    arguments = arguments[1:] if mode else arguments
    if not arguments or arguments[0].startswith("-"):
        say(USAGE)
        return EXIT_USAGE
    log: logfile.LogFile | None = None
    try:
        log = logfile.from_environment()
        if log:
            log.take_over()
        faulthandler.enable(file=2)
        _connect(stop, mode)
        return _run(arguments, stop, log)
    except ConfigurationError as error:
        say(str(error))
        return EXIT_CONFIG
    finally:
        _finish(stop)


def say(message: str) -> None:
    print(f"desk: {message}", file=sys.stderr)


def _connect(stop: Stop, mode: str) -> None:
    caller = Client().caller
    caller.settings.token.value()  # so that a missing token file is told before the strategy runs
    if not mode and not os.environ.get("DESK_SERVER_URL") and stdin_has_lines():
        return
    read = HAND
    if mode != "--stdin":
        stop.lines = _market_lines(caller)
        if mode == "--pipe":
            read = _pipe(stop.lines, stop)
        else:
            sys.stdin = MarketStdin(stop.lines, HAND, stop.on_refused)
    Heartbeat(caller, read).start()


def _pipe(lines: MarketLines, stop: Stop) -> Hand:
    """Puts the lines on file descriptor 0; returns what was put there so far."""
    read_end, write_end = os.pipe()
    if sys.platform == "linux":
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.dup2(read_end, 0)
    os.close(read_end)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    written = Hand()

    def pump() -> None:
        try:
            while line := lines.readline():
                written.take(line)
                rest = line
                while rest:
                    rest = rest[os.write(write_end, rest) :]
        except BrokenPipeError:
            return  # the strategy closed its standard input
        except DeskClientError as error:
            stop.on_refused(error)
        finally:
            os.close(write_end)

    threading.Thread(target=pump, name="desk-pipe", daemon=True).start()
    return written


def _market_lines(caller: Caller) -> MarketLines:
    symbols = [name.strip() for name in os.environ.get("DESK_SYMBOLS", "").split(",") if name.strip()]
    after = os.environ.get("DESK_AFTER", "")
    if after and not (after.isascii() and after.isdigit()):
        raise ConfigurationError(f"DESK_AFTER is {after!r}: give the sequence number of a market line")
    return MarketLines(caller, symbols, int(after) if after else None, notice=say)


def _run(arguments: list[str], stop: Stop, log: logfile.LogFile | None) -> int:
    """The strategy as `__main__`, which it stays while threads of its own go on."""
    path = os.path.abspath(arguments[0])
    sys.argv = [arguments[0], *arguments[1:]]
    sys.path.insert(0, os.path.dirname(path))
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = module
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        say(f"the strategy cannot be read: {error}")
        return EXIT_USAGE
    exit_code = 0
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        if not stop.signalled:
            _wait_for_threads(None)
        raise
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BaseException as error:
        # The boundary: whatever it is, it is logged, and the process ends.
        if log:
            log.last_words()
        _show(error)
        exit_code = EXIT_FAILED
    _wait_for_threads(None)
    return exit_code


def _show(error: BaseException) -> None:
    """The traceback as Python shows it, without this file's frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _finish(stop: Stop) -> None:
    """Lets threads end that the strategy has left, but not keep the process from ending."""
    if stop.exit_code is not None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
        if not _wait_for_threads(time.monotonic() + THREADS_STOP_S):
            say(f"threads of the strategy are still running {THREADS_STOP_S:g} s after SIGTERM; ended with it")
            _flush()
            os._exit(stop.exit_code)
    _flush()


def _wait_for_threads(deadline: float | None) -> bool:
    """Until no thread is left that Python would wait for; false where the deadline came first."""
    for thread in threading.enumerate():
        if thread.daemon or thread is threading.main_thread():
            continue
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            return False
    return True


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, logfile.LogStream):
            stream.finish()
        elif stream is not None and not stream.closed:
            stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
