"""Uids, logs, settings and the sandbox's own text: the small parts."""

import json
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from desk_manager import admin, config, deploy, logs, policy, settings, uids
from desk_manager.errors import DeskUnreachable, InvalidStrategy, ManagerError, NoEngine, UsageError

DANGEROUS = """
ptrace process_vm_readv process_vm_writev io_uring_setup io_uring_enter memfd_create memfd_secret modify_ldt
shmget semget msgget mq_open inotify_init1 fanotify_init keyctl add_key request_key bpf perf_event_open userfaultfd
unshare setns mount umount2 pivot_root chroot open_by_handle_at name_to_handle_at kcmp pidfd_getfd
personality mknod mknodat setuid setgid setgroups setresuid capset socketcall sync
syncfs init_module finit_module kexec_load reboot swapon clone3 splice vmsplice mlock
bind listen
"""

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def test_a_uid_stays_with_its_strategy(tmp_path):
    """The same at every start, another one for everybody else."""
    path = tmp_path / "uids.json"
    first = uids.allocate(path, "alpha", {})
    assert first == uids.FIRST
    assert uids.allocate(path, "beta", {}) == first + 1
    assert uids.allocate(path, "alpha", {}) == first


def test_a_uid_in_use_is_never_given_out_even_when_the_file_is_lost(tmp_path):
    """What containers have counts as much as what is written down."""
    path = tmp_path / "uids.json"
    in_use = {"alpha": uids.FIRST, "/other/run\0x": uids.FIRST + 1}
    assert uids.allocate(path, "beta", in_use) == uids.FIRST + 2
    assert uids.allocate(path, "alpha", in_use) == uids.FIRST
    path.write_text(json.dumps({"gamma": uids.FIRST + 1}))
    assert uids.allocate(path, "gamma", in_use) == uids.FIRST + 2


def test_uids_are_given_out_to_many_at_once_without_a_double(tmp_path):
    """The file's lock holds between threads."""
    given: dict[str, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: given.update({f"s{n}": uids.allocate(tmp_path / "u.json", f"s{n}", {})}))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given.values())) == 20


def test_a_broken_uid_file_is_told(tmp_path):
    """Guessing would hand out somebody's uid."""
    (tmp_path / "uids.json").write_text("{")
    with pytest.raises(ManagerError, match="not sound"):
        uids.allocate(tmp_path / "uids.json", "alpha", {})


def test_control_characters_of_a_log_never_reach_the_terminal():
    """A strategy can write escape sequences; we do not pass them on."""
    assert logs.printable(b"a\x1b[2Jb\x07\x9b\rc\td\n") == "a�[2Jb���c\td\n"
    assert "\u202e" not in logs.printable("a\u202eb".encode())


def test_the_last_error_is_the_last_tracebacks_last_line():
    """Of chained and repeated tracebacks, with the log's stamps or without."""
    plain = b"x\nTraceback (most recent call last):\n  File 'a'\nKeyError: 'x'\nmore\n"
    assert logs.last_error(plain) == "KeyError: 'x'"
    stamp = b"2026-11-20T09:35:29.497Z err "
    lines = (
        b"Traceback (most recent call last):",
        b"  File 'a', line 1",
        b"    f()",
        b"desk_client.errors.Refused: no",
    )
    assert logs.last_error(b"".join(stamp + line + b"\n" for line in lines)) == "desk_client.errors.Refused: no"
    assert logs.last_error(plain + b"Traceback (most recent call last):\n  File\nOSError: two\n") == "OSError: two"
    assert logs.last_error(b"all is well\n") == ""
    assert logs.last_error(b"no module\n", or_last_line=True) == "no module"


def test_a_log_is_read_from_its_end(tmp_path):
    """However large it is; from a line's beginning."""
    path = tmp_path / "x.log"
    path.write_bytes(b"".join(b"line %d\n" % n for n in range(100_000)))
    raw = logs.tail(path, 1000)
    assert len(raw) <= 1000 and raw.startswith(b"line ") and raw.endswith(b"line 99999\n")
    assert logs.last_lines(raw, 2) == b"line 99998\nline 99999\n"
    assert logs.last_lines(raw, 0) == b""
    assert logs.tail(tmp_path / "none.log") == b""


def test_following_survives_truncation_and_replacement(tmp_path):
    """What is written after a cut, and into a new file, comes as well."""
    path = tmp_path / "x.log"
    path.write_bytes(b"old\n")
    steps = iter([lambda: append(path, b"more\n"), lambda: path.write_bytes(b"x\n"), lambda: replace(path), None])

    def stop() -> bool:
        step = next(steps)
        if step:
            step()
        return step is None

    assert b"".join(logs.follow(path, 4, stop)) == b"more\nx\nother\n"


def append(path: Path, raw: bytes) -> None:
    with open(path, "ab") as file:
        file.write(raw)


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"other\n")
    new.replace(path)


def test_a_large_log_is_rotated_in_place(tmp_path):
    """The strategy's descriptor stays good; what was there is beside it."""
    path = tmp_path / "x.log"
    with open(path, "ab", buffering=0) as file:
        file.write(b"x" * logs.ROTATE_BYTES)
        logs.rotate(path)
        file.write(b"after\n")
    assert path.read_bytes() == b"after\n"
    assert path.with_name("x.log.1").stat().st_size == logs.ROTATE_BYTES


def test_a_fresh_log_is_no_link_and_keeps_the_last_one(tmp_path):
    """Each start begins a new file; the one before stays as .1."""
    path = tmp_path / "logs" / "x.log"
    logs.begin(path, None)
    path.write_text("first")
    logs.begin(path, None)
    assert path.read_text() == "" and path.with_name("x.log.1").read_text() == "first"
    path.unlink()
    path.symlink_to("/etc/passwd")
    logs.begin(path, None)
    assert not path.is_symlink()


@pytest.mark.parametrize(
    "env",
    [
        {"DESK_RUNTIME": "podman"},
        {"DESK_SERVER_URL": "localhost:80"},
    ],
)
def test_settings_that_cannot_be_used_are_told(env):
    """Each names the variable."""
    with pytest.raises(UsageError, match=next(iter(env))):
        settings.from_env(env)


def test_every_setting_is_documented():
    """docs/strategy-manager.md has every environment variable, and every exit code."""
    text = (DOCS / "strategy-manager.md").read_text()
    for name in settings.HELP:
        assert f"`{name}`" in text, name


def test_a_strategys_environment_cannot_override_ours():
    """Even if a reserved name slipped through, ours comes last."""
    wild = config.StrategyConfig(
        "alpha", "alice", env={"USER_ID": "bob", "DESK_SERVER_URL": "http://evil", "MINE": "1"}
    )
    found = policy.environment(wild, policy.INSIDE)
    assert (found["USER_ID"], found["MINE"]) == ("alice", "1")
    assert found["DESK_SERVER_URL"] == "unix:///run/desk/desk.sock"


def test_the_seccomp_profile_allows_no_dangerous_call():
    """Nothing of what the facts name as holes, sockets of AF_UNIX only, native system calls only."""
    profile = json.loads(policy.seccomp_profile())
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    bad = set(DANGEROUS.split())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert not allowed & bad
    assert all(one["subArchitectures"] == [] for one in profile["archMap"])
    sockets = [rule for rule in profile["syscalls"] if "socket" in rule["names"]]
    assert [rule["args"] for rule in sockets] == [[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]]


def test_an_admin_token_that_is_a_link_or_no_token_is_not_sent(tmp_path):
    """The server may own the directory: what it puts there must not make us read other files to it."""
    secret = tmp_path / "secret"
    secret.write_text("root:$6$x:1:0\nmore\n")
    link = tmp_path / "admin.token"
    link.symlink_to(secret)
    for path in (link, secret, tmp_path):
        with pytest.raises(OSError):
            admin._read_token(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        admin._read_token(tmp_path / "pipe")
    link.unlink()
    link.write_text("-abc_DEF-1234567890\n")
    assert admin._read_token(link) == "-abc_DEF-1234567890"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_beside_a_server_with_its_own_account_the_manager_keeps_its_own_directory(tmp_path):
    """Where another account owns run/, nothing that is run lies in it."""
    run_dir = tmp_path / "run"
    env = {"DESK_RUN_DIR": str(run_dir)}
    assert settings.from_env(env).staged_dir == run_dir / "staged"
    run_dir.mkdir()
    assert settings.from_env(env).staged_dir == run_dir / "staged"
    os.chown(run_dir, 10001, 20000)
    chosen = settings.from_env(env)
    assert chosen.socket_dir == run_dir / "desk"
    assert {chosen.staged_dir.parent, chosen.deployments_dir.parent, chosen.logs_dir.parent} == {
        tmp_path / "run-manager"
    }


def test_ctrl_c_finishes_what_is_under_way_and_begins_nothing_more():
    """Nothing is left half-done, and nobody waits for all the rest."""
    begun, ended = [], []

    def act(number: int) -> str:
        begun.append(number)
        time.sleep(0.05)
        ended.append(number)
        return "done"

    def interrupt(outcome: deploy.Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy._in_parallel({str(number): partial(act, number) for number in range(200)}, interrupt)
    assert sorted(begun) == sorted(ended) and len(begun) < 50


def test_the_exit_code_of_many_is_the_gravest():
    """No engine, no desk, a failure, a refusal: in this order."""

    def fail(kind: type[ManagerError]) -> str:
        raise kind("cause", "next")

    kinds = [InvalidStrategy, ManagerError, DeskUnreachable, NoEngine]
    for count, code in ((1, 2), (2, 1), (3, 3), (4, 4)):
        work = {kind.__name__: partial(fail, kind) for kind in kinds[:count]} | {"good": lambda: "running"}
        told: list[deploy.Outcome] = []
        assert deploy._in_parallel(work, told.append) == code
        assert len(told) == count + 1 and all(one.error is None or one.error.strategy for one in told)


def test_an_error_never_prints_a_name_that_plays_with_the_terminal():
    """Folders may have any name."""
    assert "\x1b" not in str(ManagerError("cause", "next", "evil\x1b[2J"))
    assert str(ManagerError("cause", "next", "good")).startswith("good: cause")
