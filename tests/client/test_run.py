"""A strategy under `python -m desk_client.run`: its standard input, its end, and its log."""

import os
import re
import signal
import stat
import subprocess
import time

import pytest
from client_desk import until

ORDERS = "from desk_client import place_order\n"
IDIOMS = {
    "for line in sys.stdin": """
import json, sys
for line in sys.stdin:
    tick = json.loads(line)
    place_order(tick["symbol"], tick["seq"], "buy")
    if tick["seq"] == 5:
        break
""",
    "sys.stdin.readline()": """
import json, sys
while True:
    tick = json.loads(sys.stdin.readline())
    place_order(tick["symbol"], tick["seq"], "buy")
    if tick["seq"] == 5:
        sys.exit()
""",
    "input()": """
import json
for _ in range(5):
    tick = json.loads(input())
    place_order(tick["symbol"], tick["seq"], "buy")
""",
    "sys.stdin.buffer": """
import json, sys
for line in sys.stdin.buffer:
    tick = json.loads(line)
    place_order(tick["symbol"], tick["seq"], "buy")
    if tick["seq"] == 5:
        break
""",
    "market()": """
from desk_client import market
for tick in market():
    place_order(tick["symbol"], tick["seq"], "buy")
    if tick["seq"] == 5:
        break
""",
    "a thread": """
import json, sys, threading
def read():
    for _ in range(5):
        tick = json.loads(sys.stdin.readline())
        place_order(tick["symbol"], tick["seq"], "buy")
threading.Thread(target=read).start()
""",
    "asyncio": """
import asyncio, json, sys
async def main():
    for _ in range(5):
        tick = json.loads(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.to_thread(place_order, tick["symbol"], tick["seq"], "buy")
asyncio.run(main())
""",
}
FROM_THE_START = {"DESK_AFTER": "0"}


def end(process, seconds=20):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def orders(desk):
    return [request.order for request in desk.seen("/v1/orders")]


@pytest.mark.parametrize("idiom", IDIOMS)
def test_every_way_to_read_lines_works_unchanged(desk, strategies, idiom):
    """Line by line, across a restart of the desk in the middle; each order knows its line."""
    desk.publish("AAPL", "MSFT")
    process = strategies.start(ORDERS + IDIOMS[idiom], env=FROM_THE_START)
    until(lambda: len(desk.orders) == 2, what="two orders")
    desk.stop()
    desk.publish("AAPL", "MSFT")
    time.sleep(0.2)
    desk.start()
    until(lambda: len(desk.orders) == 4, what="four orders")
    desk.publish("AAPL")
    code, out, err = end(process)
    assert (code, out) == (0, ""), err
    assert "Traceback" not in err
    # An order whose answer the stop cut off came again, under the same request id.
    placed = list({order.request_id: order for order in orders(desk)}.values())
    assert [order.qty for order in placed] == ["1", "2", "3", "4", "5"]
    assert [order.line.seq for order in placed] == [1, 2, 3, 4, 5]
    assert {len(order.line.sha256) for order in placed} == {16}


def test_only_the_symbols_of_the_environment_are_read(desk, strategies):
    """DESK_SYMBOLS goes along with the question."""
    desk.publish("AAPL", "MSFT", "TSLA")
    process = strategies.start("print(input()[:10], input()[:10])", env=FROM_THE_START | {"DESK_SYMBOLS": "AAPL, TSLA"})
    assert end(process)[:2] == (0, '{"seq": 1, {"seq": 3,\n')


def test_plain_python_with_a_pipe_needs_no_container(desk, strategies):
    """echo '{"symbol": "AAPL", "price": 145.50}' | python strategy.py"""
    code = (
        "import json, sys\nfrom desk_client import place_order\n"
        "for line in sys.stdin:\n    print(place_order(json.loads(line)['symbol'], 1, 'buy').status)"
    )
    process = strategies.start(code, via=(), stdin=subprocess.PIPE)
    out, err = process.communicate('{"symbol": "AAPL", "price": 145.50}\n', timeout=20)
    assert (process.returncode, out, err) == (0, "success\n", "")


@pytest.mark.parametrize("arguments", [["--stdin"], []])
def test_a_real_standard_input_is_left_alone(desk, strategies, arguments):
    """With --stdin, and where no desk is named but lines are given."""
    env = {} if arguments else {"DESK_SERVER_URL": ""}
    code = "import sys; print(sys.stdin.fileno(), sys.stdin.read())"
    via = ("-m", "desk_client.run", *arguments)
    process = strategies.start(code, via=via, stdin=subprocess.PIPE, env=env)
    out, err = process.communicate("a\nb\n", timeout=20)
    assert (process.returncode, out) == (0, "0 a\nb\n\n"), err
    assert desk.seen("/v1/market/stream") == []


def test_a_pipe_has_a_real_file_descriptor(desk, strategies):
    """With --pipe, select() and subprocesses read the market, too; the desk hears how far; a revoked token ends it."""
    from desk.v1.admin_pb2 import HeartbeatRequest  # noqa: PLC0415

    desk.publish(*["AAPL"] * 100)
    code = (
        "import json, os, select, subprocess, sys\n"
        "from desk_client import market, place_order\n"
        "assert select.select([sys.stdin], [], [], 10)[0] == [sys.stdin] and not os.isatty(0)\n"
        "print(json.loads(input())['seq'], flush=True)\n"
        "tick = next(market())\n"
        "place_order(tick['symbol'], 1, 'buy')\n"
        "subprocess.run(['cat'])\n"
    )
    process = strategies.start(code, via=("-m", "desk_client.run", "--pipe"), env=FROM_THE_START)
    assert process.stdout.readline() == "1\n"
    until(lambda: orders(desk), what="an order")
    assert (orders(desk)[0].line.seq, list(orders(desk)[0].line.fields_read)) == (2, ["symbol"])
    until(lambda: '"seq": 100' in process.stdout.readline(), what="the last line in the subprocess")
    until(
        lambda: [1 for beat in desk.seen("/v1/heartbeat") if HeartbeatRequest.FromString(beat.body).last_seq == 100],
        what="a heartbeat",
    )
    desk.token = "another"
    desk.drop_connections()
    code, _, err = end(process)
    assert code == 78, err


def test_a_strategy_is_the_main_program(desk, strategies):
    """Its name, file, arguments and folder are as with plain Python; it can import what lies beside it."""
    (strategies.folder / "beside.py").write_text("VALUE = 42\n")
    code = "import sys, beside, __main__; print(__name__, __file__, sys.argv, beside.VALUE, __main__.code); "
    code = "code = 7\n" + code + "print(vars().get('stop'))"
    process = strategies.start(code, "--fast", "10")
    path = str(strategies.folder / "strategy.py")
    assert end(process)[:2] == (0, f"__main__ {path} ['{path}', '--fast', '10'] 42 7\nNone\n")


WAITING = {
    "for a line": "input()",
    "for a time": "import time; time.sleep(60)",
    "for an event": "import threading; threading.Event().wait()",
    "for a thread": "import threading; threading.Thread(target=threading.Event().wait).start()",
    "for nothing": "while True: pass",
    "and catching everything": """
    while True:
        try:
            input()
        except EOFError:
            break
        except BaseException:
            pass
""",
}


@pytest.mark.parametrize("waiting", WAITING)
def test_sigterm_ends_a_strategy_cleanly(desk, strategies, waiting):
    """Wherever it is: with exit code 0, its `finally` run, and no traceback."""
    code = f"try:\n    print('ready', flush=True)\n    {WAITING[waiting].strip()}\nfinally:\n    print('cleaned up')"
    process = strategies.start(code)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert (code, out) == (0, "cleaned up\n"), err
    assert "Traceback" not in err


def test_a_second_sigterm_ends_it_at_once(desk, strategies):
    """For a strategy whose cleaning up takes too long."""
    process = strategies.start(
        "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\nfinally:\n    time.sleep(60)"
    )
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143


def test_ctrl_c_exits_with_130(desk, strategies):
    """Without a traceback."""
    process = strategies.start("print('ready', flush=True)\ninput()")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert (code, "Traceback" in err) == (130, False)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def act():\n    return 1 / 0\nact()", "ZeroDivisionError: division by zero"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
    ],
)
def test_a_failing_strategy_shows_its_own_traceback(desk, strategies, code, message):
    """Exit code 1; no frame of the runner; the failing line of the strategy."""
    returncode, out, err = end(strategies.start(code))
    assert (returncode, out) == (1, "")
    assert err.splitlines()[-1].endswith(message)
    files = re.findall(r'File "([^"]+)"', err)
    assert files and set(files) == {str(strategies.folder / "strategy.py")}


def test_exit_codes_are_the_strategys_own(desk, strategies):
    """sys.exit(3), and sys.exit with a reason."""
    assert end(strategies.start("import sys; sys.exit(3)"))[0] == 3
    returncode, _, err = end(strategies.start("import sys; sys.exit('no more money')"))
    assert (returncode, err) == (1, "no more money\n")


@pytest.mark.parametrize("arguments", [[], ["--nonsense", "x.py"], ["/nowhere/strategy.py"]])
def test_wrong_usage_exits_with_2(desk, strategies, arguments):
    """And says what would be right."""
    process = subprocess.run(
        [os.sys.executable, "-I", "-m", "desk_client.run", *arguments],
        env=strategies.environment(), capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "usage:" in process.stderr or "cannot be read" in process.stderr


@pytest.mark.parametrize(
    "code",
    [
        "input()",
        "import sys\nfor line in sys.stdin: pass",
        "while True:\n    try:\n        input()\n    except Exception:\n        pass",
        "import threading, time\nthreading.Thread(target=input).start()\ntime.sleep(60)",
    ],
)
def test_a_revoked_token_exits_with_78(desk, strategies, code):
    """Also for a strategy that catches every exception, or reads in a thread: there is nothing to wait for."""
    desk.token = "another"
    returncode, _, err = end(strategies.start(code, env={"DESK_TOKEN": "revoked"}))
    assert returncode == 78
    assert "unknown or revoked" in err
    assert "Traceback" not in err
    assert len(desk.seen("/v1/market/stream")) == 1


@pytest.mark.parametrize(
    "env",
    [
        {"DESK_SERVER_URL": "desk"},
        {"DESK_TOKEN_FILE": "/nowhere"},
        {"DESK_AFTER": "x"},
        {"DESK_LOG_FILE": "/nowhere/log"},
        {"DESK_LOG_FILE": "/dev/null"},
    ],
)
def test_settings_that_cannot_be_right_exit_with_78(desk, strategies, env):
    """With the variable's name, before the strategy is loaded."""
    returncode, out, err = end(strategies.start("print('loaded')", env=env))
    assert (returncode, out) == (78, "")
    assert next(iter(env)) in err


def test_the_desk_hears_how_far_the_strategy_has_read(desk, strategies):
    """The heartbeat tells lines and the last sequence number."""
    from desk.v1.admin_pb2 import HeartbeatRequest  # noqa: PLC0415

    desk.publish("AAPL", "MSFT", "AAPL")
    strategies.start("[input() for _ in range(4)]", env=FROM_THE_START)

    def beats():
        return [HeartbeatRequest.FromString(request.body) for request in desk.seen("/v1/heartbeat")]

    until(lambda: beats() and beats()[-1].lines_read == 3, what="a heartbeat with three lines")
    assert beats()[-1].last_seq == 3


STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_output_goes_to_the_log_file_with_its_time(desk, strategies, tmp_path):
    """Text, bytes, tracebacks, unfinished lines and subprocesses; nothing reaches the old descriptors."""
    log = tmp_path / "log"
    code = (
        "import sys, os, subprocess\n"
        "print('hello', 'world')\n"
        "sys.stdout.buffer.write(b'bytes\\n')\n"
        "sys.stdout.reconfigure(line_buffering=True)\n"
        "print('\\ud800', file=sys.stderr)\n"
        "os.write(1, b'raw\\n')\n"
        "subprocess.run(['echo', 'child'])\n"
        "print(sys.stdout.isatty(), sys.stdout.fileno())\n"
        "print('x' * 20000)\n"
        "print('no end', end='')\n"
        "1 / 0\n"
    )
    returncode, out, err = end(strategies.start(code, env={"DESK_LOG_FILE": str(log)}))
    assert (returncode, out, err) == (1, "", "")
    text = log.read_text()
    plain = [re.sub(f"^{STAMP} ", "", line) for line in text.splitlines()]
    assert plain[:6] == ["out hello world", "out bytes", "err \\ud800", "raw", "child", "out False 1"]
    assert [len(line) for line in plain[6:9]] == [8196, 8196, 3620]
    assert "out no end" in plain
    assert plain[-2 if plain[-1] == "out no end" else -1] == "err ZeroDivisionError: division by zero"
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_no_descriptor_leads_to_the_old_output(desk, strategies, tmp_path):
    """Of what was a pipe nothing is left: not even under /proc."""
    log = tmp_path / "log"
    code = (
        "import os\n"
        "for fd in sorted(os.listdir('/proc/self/fd'), key=int):\n"
        "    if os.path.exists(f'/proc/self/fd/{fd}') or int(fd) < 3:\n"
        "        print(fd, os.readlink(f'/proc/self/fd/{fd}'))\n"
    )
    assert end(strategies.start(code, env={"DESK_LOG_FILE": str(log)}))[0] == 0
    leads_to = dict(line.split(" out ")[1].split(" ", 1) for line in log.read_text().splitlines())
    assert leads_to["1"] == leads_to["2"] == str(log)
    assert "pipe" not in " ".join(leads_to.values())


def test_a_flood_of_lines_is_dropped_and_counted(desk, strategies, tmp_path):
    """The last words still get through, and the file stays small."""
    log = tmp_path / "log"
    code = "for i in range(100_000):\n    print(i, 'x' * 50)\n1 / 0"
    env = {"DESK_LOG_FILE": str(log), "DESK_LOG_FILE_MAX": "65536"}
    assert end(strategies.start(code, env=env))[0] == 1
    assert log.stat().st_size <= 65536
    text = log.read_text()
    assert "ZeroDivisionError" in text
    dropped = sum(int(count) for count in re.findall(r"err (\d+) lines dropped", text))
    assert 90_000 < dropped < 98_500


def test_the_log_keeps_its_newest_half(tmp_path):
    """Cut at a line's beginning, without losing what came last."""
    from desk_client.logfile import LogFile  # noqa: PLC0415

    path = tmp_path / "log"
    log = LogFile(str(path), bytes_max=4096)
    for number in range(500):
        log.write("out", [f"line {number:04d}"])
        assert path.stat().st_size <= 4096
    lines = path.read_text().splitlines()
    assert len(lines) > 40
    assert [line.split(" out ")[1] for line in lines] == [f"line {n:04d}" for n in range(500 - len(lines), 500)]
