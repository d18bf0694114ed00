"""Strategies in real containers: started, seen, restarted, quarantined, watched and stopped."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import pytest

from desk_manager import settings
from desk_manager.runtimes.docker import DockerRuntime
from tests.manager.ground import CRASHES, IMAGE, PROJECT, READS_LINES, SLEEPS, Ground, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180), pytest.mark.usefixtures("image")]

CRASHES_WHEN_TOLD = """\
import signal, time
def fail(*_):
    raise RuntimeError("told to")
signal.signal(signal.SIGUSR1, fail)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\n"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspect(name: str) -> dict:
    return json.loads(docker("inspect", f"strategy-{name}"))[0]


def exists(name: str) -> bool:
    return bool(docker("ps", "-aq", "--filter", f"name=^strategy-{name}$").strip())


def test_a_strategy_starts_reads_lines_and_stops(ground):
    """Registered, staged, running, reading; then gone with its token, revoked."""
    name = ground.write("alpha", READS_LINES, {"user_id": "alice", "symbols": ["AAPL", "MSFT"]})
    started = ground.manager("start", name)
    assert (started.returncode, started.stderr) == (0, "")
    assert f"[1/1] {name}: running" in started.stdout
    wait_until(lambda: "read 10 AAPL" in ground.log(name))
    row = ground.status(name)
    assert (row["user"], row["state"], row["restarts"], row["connected"]) == ("alice", "running", 0, True)
    assert row["lines_read"] > 0 and row["last_line_age_s"] < 5
    assert 2**20 < row["memory_bytes"] < 64 * 2**20
    deployment = ground.desk.active(name)[0]
    assert (deployment["user_id"], deployment["symbols"]) == ("alice", ["AAPL", "MSFT"])
    assert deployment["code_hash"] == row["code_hash"] and (ground.run_dir / "staged" / row["code_hash"]).is_dir()
    assert ground.manager("stop", name).returncode == 0
    assert not exists(name)
    assert ground.desk.active(name) == []
    assert list((ground.run_dir / "deployments").iterdir()) == []
    assert "read 10 AAPL" in ground.manager("logs", name).stdout


def test_every_flag_of_the_sandbox_takes_effect(ground):
    """What the engine says of the container, and what the kernel says of the process."""
    name = ground.write("alpha", SLEEPS)
    assert ground.manager("start").returncode == 0
    facts = inspect(name)
    limits = facts["HostConfig"]
    assert (limits["NetworkMode"], limits["IpcMode"], limits["CgroupnsMode"]) == ("none", "none", "private")
    assert limits["CapDrop"] == ["ALL"] and not limits["CapAdd"] and not limits["Privileged"]
    assert limits["ReadonlyRootfs"] and not limits["Init"]
    assert (limits["Memory"], limits["MemorySwap"], limits["NanoCpus"]) == (256 * 2**20, 256 * 2**20, 500_000_000)
    assert (limits["PidsLimit"], limits["OomScoreAdj"]) == (64, 500)
    assert limits["GroupAdd"] == [str((ground.run_dir / "desk").stat().st_gid)]
    assert limits["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
    assert {"/proc/interrupts", "/proc/key-users", "/dev/mqueue", "/proc/kcore"} <= set(limits["MaskedPaths"])
    mounts = {mount["Destination"]: mount["RW"] for mount in facts["Mounts"]}
    assert mounts == {
        "/run/desk": False, "/run/secrets/desk": False, "/strategy": False, "/var/log/strategy.log": True
    }  # fmt: skip
    assert facts["Config"]["Labels"]["desk.user"] == name
    assert not any("TOKEN=" in entry for entry in facts["Config"]["Env"])
    lines = open(f"/proc/{facts['State']['Pid']}/status").read()  # noqa: SIM115
    kernel = dict(line.split(":\t", 1) for line in lines.splitlines())
    assert kernel["NoNewPrivs"] == "1" and kernel["Seccomp"] == "2"
    assert all(int(kernel[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    uid = int(kernel["Uid"].split()[0])
    assert uid == int(facts["Config"]["Labels"]["desk.uid"])
    if os.geteuid() == 0:
        assert uid >= 20001
        token = next((ground.run_dir / "deployments").glob("*/token")).stat()
        assert (token.st_uid, token.st_gid, token.st_mode & 0o777) == (0, uid, 0o440)


def test_two_strategies_have_two_uids_that_stay(ground):
    """One uid each, the same after a restart."""
    one, two = ground.write("one", SLEEPS), ground.write("two", SLEEPS)
    ground.manager("start")
    users = {name: inspect(name)["Config"]["User"] for name in (one, two)}
    if os.geteuid() == 0:
        assert users[one] != users[two]
    ground.manager("restart")
    assert {name: inspect(name)["Config"]["User"] for name in (one, two)} == users


def test_start_leaves_alone_what_runs_and_tells_of_a_change(ground):
    """The same folder twice is nothing; a changed one asks for restart, which rotates the token."""
    name = ground.write("alpha", SLEEPS)
    ground.manager("start")
    first = inspect(name)["Id"]
    assert "already running" in ground.manager("start").stdout
    assert inspect(name)["Id"] == first
    ground.write("alpha", SLEEPS + "# changed\n")
    told = ground.manager("start")
    assert told.returncode == 2 and "older version" in told.stderr and f"restart {name}" in told.stderr
    before = ground.desk.active(name)[0]["deployment_id"]
    assert ground.manager("restart", name).returncode == 0
    assert inspect(name)["Id"] != first
    now = [one["deployment_id"] for one in ground.desk.active(name)]
    assert len(now) == 1 and now != [before]
    assert [path.name for path in (ground.run_dir / "deployments").iterdir()] == now


def test_a_restart_into_something_broken_leaves_the_old_one_running(ground):
    """Checks come before the stop."""
    name = ground.write("alpha", SLEEPS)
    ground.manager("start")
    first = inspect(name)["Id"]
    ground.write("alpha", SLEEPS, {"nonsense": 1})
    assert ground.manager("restart", name).returncode == 2
    assert inspect(name)["Id"] == first and inspect(name)["State"]["Running"]


def test_a_crash_is_restarted_and_then_quarantined(ground):
    """As often as allowed, with the engine's backoff; the error, exit code and next step are told."""
    good = ground.write("good", SLEEPS)
    name = ground.write("crashing", CRASHES, {"restart": {"max_crashes": 2, "window_s": 60}})
    done = ground.manager("start")
    assert done.returncode == 1
    assert f"{name}: crashed with exit code 1: ValueError: the answer is wrong" in done.stderr
    assert f"logs {name}" in done.stderr
    wait_until(lambda: ground.status(name)["state"] == "quarantined", every_s=0.5)
    row = ground.status(name)
    assert (row["restarts"], row["exit_code"], row["last_error"]) == (2, 1, "ValueError: the answer is wrong")
    assert ground.log(name).count("about to fail") == 3
    assert ground.status(good)["state"] == "running"
    assert "quarantined" in ground.manager("status").stdout


def test_crashes_count_within_the_window_only(ground):
    """One crash per window goes on for ever; more than the allowance within one window is quarantine."""
    name = ground.write("sometimes", CRASHES_WHEN_TOLD, {"restart": {"max_crashes": 1, "window_s": 10}})
    assert ground.manager("start").returncode == 0

    def crash(expected: int) -> None:
        wait_until(lambda: ground.log(name).count("ready") == expected)
        docker("kill", "--signal", "USR1", f"strategy-{name}")

    crash(1)
    wait_until(lambda: ground.log(name).count("ready") == 2)
    assert inspect(name)["RestartCount"] == 1
    time.sleep(10.5)
    assert ground.status(name)["state"] == "running"
    assert inspect(name)["HostConfig"]["RestartPolicy"]["MaximumRetryCount"] == 2
    crash(2)
    wait_until(lambda: ground.log(name).count("ready") == 3)
    assert inspect(name)["RestartCount"] == 2
    crash(3)
    wait_until(lambda: ground.status(name)["state"] == "quarantined", every_s=0.5)


def test_a_policy_of_no_restart_is_kept(ground):
    """One crash and it stays down."""
    name = ground.write("crashing", CRASHES, {"restart": {"policy": "no"}})
    assert ground.manager("start").returncode == 1
    row = ground.status(name)
    assert (row["state"], row["restarts"]) == ("quarantined", 0)


def test_a_strategy_that_ends_is_exited(ground):
    """Exit code 0 is neither a crash nor restarted."""
    name = ground.write("once", "print('done')\n")
    done = ground.manager("start")
    assert done.returncode == 0 and "ran to its end" in done.stdout
    assert ground.status(name)["state"] == "exited"


def test_a_code_that_does_not_compile_is_told(ground):
    """A syntax error is a crash with a reason."""
    name = ground.write("wrong", "def f(:\n")
    done = ground.manager("start")
    assert done.returncode == 1 and "SyntaxError" in done.stderr and name in done.stderr


def test_a_missing_image_is_told(ground):
    """Before anything is touched, with the command that builds it."""
    ground.write("alpha")
    done = ground.manager("start", DOCKER_IMAGE="desk-nosuch:latest")
    assert done.returncode == 1 and "desk-nosuch:latest is not there" in done.stderr and "build" in done.stderr
    assert ground.desk.deployments == {}


def test_a_name_that_another_desk_uses_is_told(ground):
    """Containers of another run directory are neither taken over nor stopped."""
    name = ground.write("alpha", SLEEPS)
    ground.manager("start")
    other = Ground()
    try:
        folder = other.strategies / name
        folder.mkdir()
        (folder / "strategy.py").write_text(SLEEPS)
        done = other.manager("start")
        assert done.returncode == 1 and f"of the desk at {ground.run_dir}" in done.stderr
        assert other.desk.active(name) == []
        assert list((other.run_dir / "deployments").iterdir()) == []
        other.manager("stop")
        assert other.manager("stop", name).returncode == 0
        assert inspect(name)["State"]["Running"]
    finally:
        other.close()


def test_stop_works_without_a_desk_and_the_next_start_revokes(ground):
    """Stopping must never wait for a desk; its tokens die later."""
    name = ground.write("alpha", SLEEPS)
    ground.manager("start")
    ground.desk.stop()
    done = ground.manager("stop")
    assert done.returncode == 0 and "revoked at its next start" in done.stdout
    assert not exists(name)
    ground.desk.start()
    assert len(ground.desk.active(name)) == 1
    ground.manager("start")
    assert len(ground.desk.active(name)) == 1 and len(ground.desk.deployments) == 2


def test_the_desk_comes_back_and_the_strategy_never_notices(ground):
    """The socket's directory is mounted, so a new socket in it is seen."""
    name = ground.write("alpha")
    ground.manager("start")
    wait_until(lambda: "read 10" in ground.log(name))
    ground.desk.stop()
    time.sleep(1)
    ground.desk.start()
    before = ground.log(name).count("read")
    wait_until(lambda: ground.log(name).count("read") > before + 2, 30)
    assert ground.status(name)["restarts"] == 0


def test_a_strategy_that_ignores_sigterm_is_killed_after_the_grace(ground):
    """Stopping ends in any case."""
    name = ground.write("deaf", DEAF + SLEEPS)
    ground.manager("start")
    wait_until(lambda: "deaf" in ground.log(name))
    began = time.monotonic()
    assert ground.manager("stop").returncode == 0
    assert not exists(name) and time.monotonic() - began < 25


def test_stopping_is_quick_where_sigterm_is_heeded(ground):
    """desk_client.run ends at SIGTERM, so no stop takes the full grace."""
    ground.write("alpha")
    ground.manager("start")
    began = time.monotonic()
    ground.manager("stop")
    assert time.monotonic() - began < 6


def test_logs_follow_as_they_come(ground):
    """-f prints new lines, --tail limits the old ones, and it ends with the strategy."""
    name = ground.write("alpha")
    ground.manager("start")
    wait_until(lambda: "read 20" in ground.log(name))
    assert len(ground.manager("logs", name, "--tail", "1").stdout.splitlines()) == 1
    following = ground.spawn("logs", name, "-f", "--tail", "1")
    try:
        lines = [following.stdout.readline() for _ in range(4)]
        assert all("read" in line for line in lines), lines
        ground.manager("stop")
        assert following.wait(15) == 0
    finally:
        following.kill()


def test_what_fails_before_the_strategy_is_in_logs_too(ground):
    """Docker's own log is the fallback for what never reached the log file."""
    name = ground.write("alpha")
    tag = f"desk-test-broken:{secrets.token_hex(3)}"
    made = subprocess.run(
        ["/usr/bin/env", "DOCKER_BUILDKIT=0", "docker", "build", "-q", "-t", tag, "-"],
        input=f"FROM {IMAGE}\nUSER 0\nRUN rm -rf /opt/desk/app/desk_client\n",
        text=True,
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    try:
        done = ground.manager("start", DOCKER_IMAGE=tag)
        assert done.returncode == 1 and "desk_client" in done.stderr
        assert "desk_client" in ground.manager("logs", name).stdout
    finally:
        ground.manager("stop")
        docker("image", "rm", "-f", tag)


def test_watch_starts_changes_and_stops_what_the_directory_says(ground):
    """Dropped in: runs. Changed: taken anew. Broken: the old one stays. Removed: stops."""
    watching = ground.spawn("watch")
    try:
        name = ground.write("alpha", SLEEPS)
        wait_until(lambda: exists(name) and inspect(name)["State"]["Running"], 30)
        first = wait_until(lambda: ground.desk.active(name))[0]["code_hash"]
        ground.write("alpha", SLEEPS + "# changed\n")
        wait_until(lambda: (now := ground.desk.active(name)) and now[0]["code_hash"] != first, 30)
        kept = inspect(name)["Id"]
        ground.write("alpha", SLEEPS, {"nonsense": 1})
        time.sleep(4)
        assert inspect(name)["Id"] == kept
        other = ground.write("beta", SLEEPS)
        wait_until(lambda: exists(other), 30)
        for path in (ground.strategies / name).iterdir():
            path.unlink()
        (ground.strategies / name).rmdir()
        wait_until(lambda: not exists(name), 30)
        assert inspect(other)["State"]["Running"]
    finally:
        watching.send_signal(signal.SIGINT)
        said = watching.communicate(timeout=20)[0]
    assert "nonsense is not a known key" in said
    assert "Traceback" not in said, said


def test_watch_outlives_the_desk(ground):
    """While no desk answers it says so once; what was dropped in meanwhile starts when the desk is back."""
    watching = ground.spawn("watch")
    try:
        watching.stdout.readline()
        ground.desk.stop()
        name = ground.write("alpha", SLEEPS)
        said = watching.stdout.readline()
        assert "desk" in said
        ground.desk.start()
        wait_until(lambda: exists(name) and inspect(name)["State"]["Running"], 30)
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=20)


def test_more_cpus_than_there_are_is_told(ground):
    """What the engine refuses is said with the strategy's name, and nothing is left behind."""
    name = ground.write("greedy", SLEEPS, {"resources": {"cpus": 16}})
    done = ground.manager("start")
    if (os.cpu_count() or 1) >= 16:
        assert done.returncode == 0
        return
    assert done.returncode == 1 and name in done.stderr and "CPUs" in done.stderr
    assert not exists(name) and ground.desk.active(name) == []
    assert list((ground.run_dir / "deployments").iterdir()) == []


def test_watch_stops_nothing_when_the_directory_vanishes(ground):
    """An unmounted directory is no wish to stop everything."""
    name = ground.write("alpha", SLEEPS)
    watching = ground.spawn("watch")
    try:
        wait_until(lambda: exists(name) and inspect(name)["State"]["Running"], 30)
        ground.strategies.rename(ground.dir / "elsewhere")
        time.sleep(4)
        assert inspect(name)["State"]["Running"]
    finally:
        watching.send_signal(signal.SIGINT)
        said = watching.communicate(timeout=20)[0]
        (ground.dir / "elsewhere").rename(ground.strategies)
    assert "cannot be read" in said and said.count("cannot be read") == 1


def test_numpy_pandas_sqlite_and_threads_work_inside(ground):
    """The profile is tight, and what strategies use still runs."""
    code = (
        "import asyncio, sqlite3, subprocess, threading, time\n"
        "import numpy as np, pandas as pd\n"
        "assert (np.eye(200) @ np.ones((200, 200))).sum() == 40000\n"
        "assert pd.DataFrame({'a': range(50)}).rolling(5).mean()['a'].iloc[-1] == 47\n"
        "base = sqlite3.connect('/tmp/x.db'); base.execute('create table t(a)'); base.commit()\n"
        "threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(20)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert subprocess.run(['echo', 'hi'], capture_output=True).stdout == b'hi\\n'\n"
        "asyncio.run(asyncio.sleep(0.01))\n"
        "print('all work')\n"
    )
    name = ground.write("libraries", code)
    ground.manager("start")
    wait_until(lambda: "all work" in ground.log(name), 40)
    assert "Traceback" not in ground.log(name)


def test_a_strategy_can_ask_for_a_real_pipe(ground):
    """The config's stdin "pipe" gives it a file descriptor that a program not in Python can read."""
    code = "import subprocess\nprint(subprocess.run(['head', '-n', '2'], capture_output=True).stdout.decode())\n"
    name = ground.write("piped", code, {"stdin": "pipe"})
    ground.manager("start")
    said = wait_until(lambda: "AAPL" in ground.log(name) and ground.log(name))
    assert '"price"' in said


@pytest.mark.slow
def test_thirty_strategies_start_at_once(ground, capsys):
    """All of them, in one command, each reading lines; with the figures."""
    names = [ground.write(f"s{number:02}") for number in range(30)]
    began = time.monotonic()
    done = ground.manager("start", timeout_s=150)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    rows = json.loads(ground.manager("status", "--json").stdout)["strategies"]
    assert [row["state"] for row in rows] == ["running"] * 30
    wait_until(lambda: all("read 10" in ground.log(name) for name in names), 60)
    memory = sorted(row["memory_bytes"] for row in rows)[15] / 2**20
    assert len({inspect(name)["Config"]["User"] for name in names}) == (30 if os.geteuid() == 0 else 1)
    began = time.monotonic()
    ground.manager("stop", timeout_s=150)
    with capsys.disabled():
        print(f"\n30 strategies: started in {seconds:.1f} s, stopped in {time.monotonic() - began:.1f} s, "
              f"median memory {memory:.1f} MiB")  # fmt: skip


# Everything is imported first: Python itself may lie where only root can read.
AS_SOMEBODY = """\
import concurrent.futures.thread, encodings.ascii, encodings.idna, encodings.latin_1, os, shutil, sys, tarfile
import desk_manager.cli, docker, httpx, requests, rich.live
os.setgroups([int(sys.argv[1])]); os.setgid(12345); os.setuid(12345)
sys.exit(desk_manager.cli.main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs without root already")
def test_without_root_a_strategy_runs_as_the_caller_and_it_is_said():
    """Only the uid of its own is missing; the rest of the sandbox holds."""
    ground = Ground(gid=12345)
    try:
        ground.dir.chmod(0o755)
        for path in (ground.dir, ground.run_dir, ground.run_dir / "admin.token"):
            os.chown(path, 12345, 12345)
        name = ground.write("alpha", SLEEPS)
        group = str(os.stat("/var/run/docker.sock").st_gid)

        def manager(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", AS_SOMEBODY, group, *arguments]
            return subprocess.run(command, env=ground.env, cwd=PROJECT, capture_output=True, text=True, check=False)

        started = manager("start")
        assert started.returncode == 0, started.stderr
        assert "your own uid 12345" in started.stderr
        facts = inspect(name)
        assert facts["Config"]["User"] == "12345:12345"
        assert facts["HostConfig"]["CapDrop"] == ["ALL"] and facts["HostConfig"]["NetworkMode"] == "none"
        assert "awake" in manager("logs", name).stdout
        assert manager("stop").returncode == 0
    finally:
        ground.close()


def test_the_admin_token_is_read_through_the_engine_where_its_file_may_not_be(ground):
    """As with a server in a container that runs under an account of its own."""
    path = ground.run_dir / "admin.token"
    volume = f"{ground.run_dir}:/var/lib/desk"
    holder = docker("run", "-d", "--rm", "--network", "none", "--volume", volume, "--entrypoint", "sleep", IMAGE, "60")
    try:
        runtime = DockerRuntime(settings.from_env(ground.env))
        assert runtime.desk_file(path) == path.read_text()
        assert runtime.desk_file(ground.run_dir / "nosuch") is None
    finally:
        docker("rm", "-f", holder.strip())
    assert runtime.desk_file(path) is None
