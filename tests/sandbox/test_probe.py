"""A strategy that attacks everything it can think of, in the sandbox and, to show that it can hit, outside of it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.manager.ground import IMAGE, READS_LINES, Ground, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.usefixtures("image")]

PROBE = Path(__file__).parent / "probe"

# A container can read where its mounts lie on the host. Nothing can be done with a path alone.
KNOWN = {"secret_host_paths_in_mountinfo"}


@pytest.fixture
def targets():
    """Things on this machine that a probe may hit: a port on every address, an abstract socket; as environment."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("0.0.0.0", 0))
        tcp.listen(64)
        name = f"desk-probe-{secrets.token_hex(4)}"
        abstract.bind(f"\0{name}")
        abstract.listen(64)
        yield {
            "PROBE_HOSTS": ",".join(own_addresses()),
            "PROBE_PORT": str(tcp.getsockname()[1]),
            "PROBE_HOST_PID": str(os.getpid()),
            "PROBE_PEERS": "172.17.0.2,172.17.0.3,172.17.0.4",
            "PROBE_ABSTRACT": name,
        }


def own_addresses() -> list[str]:
    listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    return ["172.17.0.1", *[address for address in listed if ":" not in address and address != "172.17.0.1"]]


def results(text: str) -> dict[str, dict]:
    lines = [json.loads(line[line.index("{") :]) for line in text.splitlines() if '{"probe"' in line]
    return {line["probe"]: line for line in lines}


def run_in_sandbox(ground: Ground, env: dict[str, str]) -> dict[str, dict]:
    name = ground.name("probe")
    shutil.copytree(PROBE, ground.strategies / name, ignore=shutil.ignore_patterns("__pycache__"))
    (ground.strategies / name / "config.json").write_text(json.dumps({"env": env}))
    started = ground.manager("start", name)
    assert started.returncode == 0, started.stderr
    wait_until(lambda: '{"done"' in ground.log(name), 120)
    return results(ground.log(name))


def test_nothing_gets_through(ground, targets, capsys):
    """Every attack of every class is stopped, except the one that is known and harmless."""
    neighbour = ground.write("neighbour", READS_LINES)
    assert ground.manager("start", neighbour).returncode == 0
    tried = run_in_sandbox(ground, targets)
    through = {name: line["detail"] for name, line in tried.items() if line["got_through"]}
    with capsys.disabled():
        print(f"\nsandbox: {len(tried)} probes tried, {len(through)} got through: {', '.join(through) or 'none'}")
    assert len(tried) >= 150
    assert set(through) <= KNOWN, through


def test_the_same_probes_hit_a_default_container(targets, capsys):
    """As root in a container of `docker run`, many probes get through: they can fail."""
    env = [part for name, value in targets.items() for part in ("--env", f"{name}={value}")]
    volume = f"{PROBE}:/strategy:ro"
    command = ["docker", "run", "--rm", "--user", "0", "--volume", volume, *env, "--entrypoint", "python3", IMAGE]
    done = subprocess.run(
        [*command, "-B", "/strategy/strategy.py", "--once"], capture_output=True, text=True, timeout=150, check=False
    )
    tried = results(done.stdout)
    through = {name for name, line in tried.items() if line["got_through"]}
    with capsys.disabled():
        print(f"\ndefault container: {len(tried)} probes tried, {len(through)} got through")
    assert len(tried) >= 150, done.stderr
    assert len(through) >= 40, sorted(through)
    expected = {
        *("network_host_ports", "network_interfaces", "network_udp_out", "socket_inet", "socket_netlink"),
        *("rights_are_root", "rights_capabilities", "rights_no_new_privileges_is_off", "rights_setuid_root"),
        *("process_ptrace_traceme", "kernel_memfd", "kernel_inotify", "kernel_modify_ldt", "ipc_shared_memory"),
        *("write_any_directory", "write_any_file", "execute_from_tmp", "limit_file_size", "secret_shadow"),
        *("syscall_32bit", "mount_chroot", "device_nodes", "process_docker_log_pipe"),
    }
    assert expected <= through, sorted(expected - through)


def test_a_strategy_cannot_read_anothers_token_nor_speak_as_it(ground):
    """A strategy sees its own token only, and the desk's admin token nowhere."""
    code = (
        "import glob, os, time\n"
        "print('tokens', [p for p in glob.glob('/run/**/token', recursive=True)])\n"
        "print('mine', len(open('/run/secrets/desk/token').read().strip()) > 20)\n"
        "print('desk', sorted(os.listdir('/run/desk')))\n"
        "print('end')\ntime.sleep(60)\n"
    )
    one, two = ground.write("one", code), ground.write("two", code)
    assert ground.manager("start").returncode == 0
    for name in (one, two):
        said = wait_until(lambda name=name: "end" in ground.log(name) and ground.log(name))
        assert "tokens ['/run/secrets/desk/token']" in said
        assert "mine True" in said
        assert "desk ['desk.sock']" in said
    tokens = {path.read_text() for path in (ground.run_dir / "deployments").glob("*/token")}
    assert len(tokens) == 2
