"""Starting and stopping strategies: many at once, each one step by step, each failure with its name on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from desk_manager import folders, logs, staging, status
from desk_manager.admin import DeskAdmin
from desk_manager.config import StrategyConfig
from desk_manager.config import load as load_config
from desk_manager.errors import DeskUnreachable, ExitCode, InvalidStrategy, ManagerError
from desk_manager.policy import Launch
from desk_manager.runtimes import Instance, Runtime, State
from desk_manager.settings import Settings

PARALLEL = 8
STOP_GRACE_S = 10.0
# A strategy that the desk has not heard of yet counts as alive when it has run for so long.
SETTLED_S = 3.0
ALIVE_TIMEOUT_S = 60.0
POLL_S = 0.1

Report = Callable[["Outcome"], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one strategy."""

    strategy: str
    message: str
    seconds: float = 0.0
    error: ManagerError | None = None


class Deployer:
    """Does the manager's work on one desk and one runtime."""

    def __init__(
        self, settings: Settings, runtime: Runtime, desk: DeskAdmin, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._settings = settings
        self._say = say
        self._runtime = runtime
        self._desk = desk
        self._seen = status.Deployments(desk)

    def start(self, paths: Sequence[Path], report: Report, restart: bool = False) -> ExitCode:
        """Start these folders; with `restart`, also those that run unchanged.

        Raises DeskUnreachable and NoEngine before anything is touched; what befalls one strategy is reported.
        """
        self._runtime.check()
        self._check_socket()
        if not self._runtime.sandboxed:
            self._refuse_live()
        with self._lock():
            running = self._runtime.instances()
            old = [(one["strategy"], one["deployment_id"]) for one in self._desk.deployments()]

            work = {
                path.name: partial(
                    self._start,
                    path,
                    running.get(path.name),
                    [deployment for strategy, deployment in old if strategy == path.name],
                    restart,
                )
                for path in paths
            }
            code = _in_parallel(work, report)
            in_use = frozenset(instance.code_hash for instance in self._runtime.instances().values())
            staging.prune(self._settings.staged_dir, in_use)
        return code

    def stop(self, names: Sequence[str], report: Report) -> ExitCode:
        """Stop and remove these. Works without a desk, then their tokens are revoked at the next start."""
        with self._lock():
            running = self._runtime.instances()
            return _in_parallel({name: partial(self._stop, name, running.get(name)) for name in names}, report)

    def tend(self, revive: bool) -> None:
        """Count crashes per window: who has run longer than its window since the last crash has a clean sheet.

        The engine counts restarts without regard to time, so its allowance is raised instead. With `revive`,
        one that went down by the count although it had run for a whole window is started again.
        """
        for instance in self._runtime.instances().values():
            fresh = instance.restarts + instance.max_crashes
            if fresh <= instance.restarts_max or not instance.max_crashes:
                continue
            if instance.state is State.RUNNING and status.seconds_up(instance) > instance.window_s:
                self._runtime.allow(instance, fresh)
            elif instance.state is State.QUARANTINED and revive and status.seconds_up(instance) > instance.window_s:
                # Starting it anew makes the engine count from zero.
                self._runtime.allow(instance, instance.max_crashes, again=True)

    def _start(self, path: Path, present: Instance | None, before: Sequence[str], restart: bool) -> str:
        folders.load(path)
        staged = staging.stage(path, self._settings.staged_dir)
        # The folder may have changed meanwhile; what was copied is what counts.
        config = load_config(staged.directory, path.name)
        alive = present is not None and present.state in (State.RUNNING, State.RESTARTING)
        if present is not None and alive and not restart:
            if present.code_hash == staged.code_hash:
                return "already running"
            raise InvalidStrategy(
                "an older version of its folder is running",
                f"take the new one with `strategy_manager.py restart {config.strategy}`",
            )
        if present is not None:
            self._runtime.stop(config.strategy, STOP_GRACE_S)
        self._end(before)
        deployment_id, token = self._desk.create(config, staged.code_hash)
        try:
            launch = self._prepare(config, path, staged, deployment_id, token)
            self._runtime.start(launch)
        except BaseException:
            self._abandon(config.strategy, deployment_id)
            raise
        return self._see_alive(config, deployment_id)

    def _prepare(
        self, config: StrategyConfig, path: Path, staged: staging.Staged, deployment_id: str, token: str
    ) -> Launch:
        uid, gid = self._runtime.ids(config.strategy)
        log_file = self._settings.log_file(config.strategy)
        token_dir = self._settings.deployments_dir / deployment_id
        as_root = os.geteuid() == 0
        logs.begin(log_file, gid if as_root else None)
        _write_token(token_dir, token, gid if as_root else None)
        return Launch(
            config=config,
            deployment_id=deployment_id,
            code_hash=staged.code_hash,
            folder=path,
            staged_dir=staged.directory,
            token_dir=token_dir,
            log_file=log_file,
            run_dir=self._settings.run_dir,
            socket_dir=self._settings.socket_dir,
            socket_gid=self._socket_gid(),
            uid=uid,
            gid=gid,
        )

    def _see_alive(self, config: StrategyConfig, deployment_id: str) -> str:
        """Wait until the desk hears it, or it has run for a while. Raises ManagerError when it ends before."""
        deadline = time.monotonic() + ALIVE_TIMEOUT_S
        while time.monotonic() < deadline:
            instance = self._runtime.instance(config.strategy)
            if instance is None:
                raise ManagerError("it vanished while it started", "was it stopped? Start it again")
            if instance.state is State.EXITED:
                return "ran to its end (exit code 0)"
            if instance.restarts or instance.state is not State.RUNNING:
                raise self._crashed(instance)
            if self._seen.heard(deployment_id):
                return "running"
            if status.seconds_up(instance) > SETTLED_S:
                return "running; it has not asked the desk for anything yet"
            time.sleep(POLL_S)
        raise ManagerError("it did not come up in time", f"see `strategy_manager.py logs {config.strategy}`")

    def _crashed(self, instance: Instance) -> ManagerError:
        error = status.last_error(instance, self._settings, self._runtime)
        code = "" if instance.exit_code is None else f" with exit code {instance.exit_code}"
        return ManagerError(
            f"crashed{code}: {error or 'it gave no reason'}",
            f"see `strategy_manager.py logs {instance.strategy}`; it is tried again up to "
            f"{instance.restarts_max} times, then quarantined",
        )

    def _stop(self, name: str, instance: Instance | None) -> str:
        if instance is None:
            return "was not running"
        self._runtime.stop(name, STOP_GRACE_S)
        _remove_token(self._settings.deployments_dir / instance.deployment_id)
        try:
            self._desk.revoke(instance.deployment_id)
        except DeskUnreachable:
            return "stopped; no desk answers, so its token is revoked at its next start"
        return "stopped"

    def _end(self, deployments: Sequence[str]) -> None:
        for deployment_id in deployments:
            self._desk.revoke(deployment_id)
            _remove_token(self._settings.deployments_dir / deployment_id)

    def _abandon(self, strategy: str, deployment_id: str) -> None:
        """Nothing ran: take back what was made for it. The first error is the one that is told."""
        with contextlib.suppress(ManagerError):
            self._runtime.stop(strategy, 0)
        with contextlib.suppress(ManagerError):
            self._desk.revoke(deployment_id)
        _remove_token(self._settings.deployments_dir / deployment_id)

    def _check_socket(self) -> None:
        socket = self._settings.socket_dir / "desk.sock"
        if socket.parent.is_symlink() or not socket.is_socket():
            raise DeskUnreachable(
                f"the desk's socket {socket} is not there; strategies have no network and need it",
                "start the desk on this machine, with the same DESK_RUN_DIR",
            )
        if self._runtime.sandboxed and os.geteuid() == 0 and self._socket_gid() == 0:
            raise ManagerError(
                f"{socket.parent} belongs to the group root, which no strategy may be in",
                "start the desk with DESK_SOCKET_GID=20000",
            )

    def _socket_gid(self) -> int:
        return self._settings.socket_dir.stat().st_gid

    def _refuse_live(self) -> None:
        facts = self._desk.readiness()
        if facts.get("live") is not False:
            raise ManagerError(
                "the desk trades a live account, or does not say that it does not; "
                "strategies without a sandbox are not started there",
                "use --runtime docker, or a desk with a paper broker",
            )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One manager at a time changes what runs from this run directory."""
        directory = self._settings.manager_dir
        directory.mkdir(parents=True, exist_ok=True)
        if directory.is_symlink() or directory.stat().st_uid not in (0, os.geteuid()):
            raise ManagerError(
                f"{directory} belongs to somebody else, who could change what is run from there",
                "set DESK_MANAGER_DIR to a directory of your own",
            )
        with open(directory / "manager.lock", "a", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("another strategy_manager is at work here; waiting for it …")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _in_parallel(work: Mapping[str, Callable[[], str]], report: Report) -> ExitCode:
    """Do it all, report each, and sum up: what failed by itself weighs more than what was refused."""
    codes = {ExitCode.OK}
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(_timed, name, act) for name, act in work.items()]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                codes.add(outcome.error.exit_code if outcome.error else ExitCode.OK)
                report(outcome)
        except BaseException:
            # Ctrl-C: what is under way is finished, so that nothing is left half-done; the rest is not begun.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = (ExitCode.NO_ENGINE, ExitCode.NO_DESK, ExitCode.FAILED, ExitCode.INVALID, ExitCode.OK)
    return next(code for code in order if code in codes)


def _timed(strategy: str, act: Callable[[], str]) -> Outcome:
    began = time.monotonic()
    try:
        message = act()
    except ManagerError as error:
        error.strategy = strategy
        return Outcome(strategy, error.cause, time.monotonic() - began, error)
    except OSError as error:
        failure = ManagerError(
            f"{error.strerror}: {error.filename}", "check this directory's rights and free space", strategy
        )
        return Outcome(strategy, failure.cause, time.monotonic() - began, failure)
    return Outcome(strategy, message, time.monotonic() - began)


def _write_token(directory: Path, token: str, gid: int | None) -> None:
    """A token that root writes and only this strategy's group reads."""
    directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700)
    descriptor = os.open(directory / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        os.write(descriptor, token.encode("ascii") + b"\n")
        if gid is not None:
            os.fchown(descriptor, -1, gid)
            os.chown(directory, -1, gid)
        os.fchmod(descriptor, 0o440)
    finally:
        os.close(descriptor)
    directory.chmod(0o750)


def _remove_token(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
