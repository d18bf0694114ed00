"""The sandbox: everything a strategy's container may and may not do, in one place.

Each value was seen to take effect (docs/sandbox.md says what each one stops). There is no setting that loosens it:
a config.json chooses sizes within bounds, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from desk_manager.config import StrategyConfig

# Where things are inside a container.
SOCKET_DIR: Final = "/run/desk"
SECRETS_DIR: Final = "/run/secrets/desk"
STRATEGY_DIR: Final = "/strategy"
LOG_FILE: Final = "/var/log/strategy.log"

ENTRYPOINT: Final = ("python3", "-I", "-m", "desk_client.run")

TMPFS: Final = {"/tmp": "rw,noexec,nosuid,nodev,size=16m,nr_inodes=1024,mode=1777"}

# What a file may grow to, the log included: nobody's disk fills up.
FILE_BYTES_MAX: Final = 8 * 2**20

ULIMITS: Final = (
    {"Name": "nofile", "Soft": 256, "Hard": 256},
    {"Name": "core", "Soft": 0, "Hard": 0},
    {"Name": "fsize", "Soft": FILE_BYTES_MAX, "Hard": FILE_BYTES_MAX},
    {"Name": "memlock", "Soft": 0, "Hard": 0},
    {"Name": "msgqueue", "Soft": 0, "Hard": 0},
    {"Name": "sigpending", "Soft": 256, "Hard": 256},
)

# Setting these replaces Docker's own lists, so the first lines repeat those.
MASKED_PATHS: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"),
    *("/proc/interrupts", "/proc/key-users", "/dev/mqueue"),
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# When the machine runs out of memory, a strategy goes before anything else does.
OOM_SCORE_ADJ: Final = 500

LABEL = "desk.strategy"


@dataclass(frozen=True, slots=True)
class Launch:
    """One strategy, ready to be started: paths are the host's and absolute."""

    config: StrategyConfig
    deployment_id: str
    code_hash: str
    folder: Path
    staged_dir: Path
    token_dir: Path
    log_file: Path
    run_dir: Path
    socket_dir: Path
    socket_gid: int
    uid: int
    gid: int

    @property
    def strategy(self) -> str:
        return self.config.strategy


def container(launch: Launch, image: str, seccomp: str) -> dict[str, Any]:
    """The whole request that creates the container, as Docker's API wants it. `seccomp` is the profile's text."""
    config = launch.config
    return {
        "Image": image,
        "Hostname": launch.strategy[:63].rstrip("-_"),
        "User": f"{launch.uid}:{launch.gid}",
        "WorkingDir": STRATEGY_DIR,
        "Entrypoint": list(ENTRYPOINT),
        "Cmd": arguments(config, f"{STRATEGY_DIR}/strategy.py"),
        "Env": [f"{name}={value}" for name, value in environment(config, INSIDE).items()],
        "Labels": labels(launch),
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": True,
        "AttachStdin": False,
        "OpenStdin": False,
        "Tty": False,
        "HostConfig": host_config(launch, seccomp),
    }


def host_config(launch: Launch, seccomp: str) -> dict[str, Any]:
    sizes = launch.config.resources
    restart = launch.config.restart
    return {
        "NetworkMode": "none",
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": [],
        "GroupAdd": [str(launch.socket_gid)],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp}"],
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": list(READONLY_PATHS),
        "ReadonlyRootfs": True,
        "Tmpfs": dict(TMPFS),
        "Mounts": [
            _bind(launch.socket_dir, SOCKET_DIR),
            _bind(launch.token_dir, SECRETS_DIR),
            _bind(launch.staged_dir, STRATEGY_DIR),
            _bind(launch.log_file, LOG_FILE, read_only=False),
        ],
        "Memory": sizes.memory_bytes,
        "MemorySwap": sizes.memory_bytes,
        "NanoCpus": round(sizes.cpus * 1e9),
        "PidsLimit": sizes.pids,
        "Ulimits": [dict(limit) for limit in ULIMITS],
        "OomScoreAdj": OOM_SCORE_ADJ,
        # desk_client.run turns to the log file at once, so only what fails before that comes here.
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
        # An init would keep Docker's log pipe open where the strategy can reach it: /proc/1/fd/1.
        "Init": False,
        "RestartPolicy": restart_policy(restart.retries),
        "AutoRemove": False,
    }


def restart_policy(retries: int) -> dict[str, Any]:
    return {"Name": "on-failure", "MaximumRetryCount": retries} if retries else {"Name": "no"}


@dataclass(frozen=True, slots=True)
class Places:
    """Where a strategy finds what it is given; differs between a container and a plain process."""

    server_url: str
    token_file: str
    log_file: str
    home: str


INSIDE: Final = Places(f"unix://{SOCKET_DIR}/desk.sock", f"{SECRETS_DIR}/token", LOG_FILE, "/tmp")


def environment(config: StrategyConfig, places: Places) -> dict[str, str]:
    """The strategy's environment: its own entries, then ours, which it cannot override."""
    return {
        # One thread each: a strategy has half a CPU, and every further thread costs it memory.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        **config.env,
        "HOME": places.home,
        "USER_ID": config.user_id,
        "DESK_STRATEGY": config.strategy,
        "DESK_SERVER_URL": places.server_url,
        "DESK_TOKEN_FILE": places.token_file,
        "DESK_SYMBOLS": ",".join(config.symbols),
        "DESK_LOG_FILE": places.log_file,
    }


def arguments(config: StrategyConfig, path: str) -> list[str]:
    """What ENTRYPOINT is given: how standard input is to be, and the strategy."""
    return [*(["--pipe"] if config.stdin == "pipe" else []), path]


def labels(launch: Launch) -> dict[str, str]:
    """What the engine remembers for us; status is derived from these and the container's state alone."""
    config = launch.config
    return {
        LABEL: launch.strategy,
        "desk.user": config.user_id,
        "desk.deployment": launch.deployment_id,
        "desk.code_hash": launch.code_hash,
        "desk.folder": str(launch.folder),
        "desk.run_dir": str(launch.run_dir),
        "desk.uid": str(launch.uid),
        "desk.version": config.version,
        "desk.restart.max_crashes": str(config.restart.retries),
        "desk.restart.window_s": str(config.restart.window_s),
    }


def seccomp_profile() -> str:
    """The profile's JSON text: the engine's API wants the text, not a path."""
    return resources.files("desk_manager").joinpath("seccomp.json").read_text(encoding="utf-8")


def _bind(source: Path, target: str, read_only: bool = True) -> Mapping[str, Any]:
    # Without CreateMountpoint a source that is missing is an error, not a new root-owned directory.
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }
