"""The manager's settings: environment variables, each with a default that fits a fresh clone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from desk_manager.errors import UsageError

PROJECT_DIR = Path(__file__).resolve().parent.parent

RUNTIMES = ("docker", "process")

# Environment variable → what it is. docs/strategy-manager.md shows this table; a test compares the two.
HELP = {
    "STRATEGIES_DIR": "where the strategies' folders are (default: strategies)",
    "DOCKER_IMAGE": "the image strategies run in (default: desk-strategy:latest)",
    "DESK_SERVER_URL": "the desk: unix:///path or http://host:port (default: the socket in DESK_RUN_DIR)",
    "DESK_RUN_DIR": "the runtime directory shared with the desk (default: run)",
    "DESK_ADMIN_TOKEN_FILE": "the file with the desk's admin token (default: admin.token in DESK_RUN_DIR)",
    "DESK_RUNTIME": "docker or process (default: docker)",
    "DESK_MANAGER_DIR": "the manager's own directory: staged code, tokens, logs (default: DESK_RUN_DIR)",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Absolute paths and plain values; nothing here is looked up again later."""

    strategies_dir: Path
    run_dir: Path
    image: str
    server_url: str
    admin_token_file: Path
    runtime: str
    # Ours alone: staged code, tokens, logs.
    manager_dir: Path
    project_dir: Path = PROJECT_DIR

    @property
    def socket_dir(self) -> Path:
        """The one directory of the desk that strategies see."""
        return self.run_dir / "desk"

    @property
    def staged_dir(self) -> Path:
        return self.manager_dir / "staged"

    @property
    def deployments_dir(self) -> Path:
        return self.manager_dir / "deployments"

    @property
    def logs_dir(self) -> Path:
        return self.manager_dir / "logs"

    def log_file(self, strategy: str) -> Path:
        return self.logs_dir / f"{strategy}.log"


def from_env(env: Mapping[str, str] | None = None, runtime: str | None = None) -> Settings:
    """Settings from the environment. Defaults lie in the project; given paths are relative to the caller.

    Raises UsageError for a value that cannot be used.
    """
    env = os.environ if env is None else env
    run_dir = _path(env, "DESK_RUN_DIR", PROJECT_DIR / "run")
    chosen = runtime or env.get("DESK_RUNTIME") or "docker"
    if chosen not in RUNTIMES:
        raise UsageError(f"DESK_RUNTIME is {chosen!r}", f"use one of: {', '.join(RUNTIMES)}")
    url = env.get("DESK_SERVER_URL") or f"unix://{run_dir / 'desk' / 'desk.sock'}"
    if not url.startswith(("unix:///", "http://", "https://")):
        raise UsageError(f"DESK_SERVER_URL is {url!r}", "use unix:///path/to/desk.sock or http://host:port")
    return Settings(
        strategies_dir=_path(env, "STRATEGIES_DIR", PROJECT_DIR / "strategies"),
        run_dir=run_dir,
        image=env.get("DOCKER_IMAGE") or "desk-strategy:latest",
        server_url=url.rstrip("/"),
        admin_token_file=_path(env, "DESK_ADMIN_TOKEN_FILE", run_dir / "admin.token"),
        runtime=chosen,
        manager_dir=_path(env, "DESK_MANAGER_DIR", _own_dir(run_dir)),
    )


def _own_dir(run_dir: Path) -> Path:
    """`run`, or `run-manager` beside it where the desk's server has an account of its own.

    A directory that the server owns is one where it could put a link in the place of ours, and have us write
    or mount what it likes.
    """
    try:
        owner = run_dir.stat().st_uid
    except FileNotFoundError:
        return run_dir
    return run_dir if owner in (0, os.geteuid()) else run_dir.with_name(run_dir.name + "-manager")


def _path(env: Mapping[str, str], name: str, default: Path) -> Path:
    return Path(os.path.abspath(env[name])) if env.get(name) else default
