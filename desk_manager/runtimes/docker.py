"""Strategies in Docker containers, under the sandbox of `policy`. The one place that speaks to Docker."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from desk_manager import policy, uids
from desk_manager.errors import ManagerError, NoEngine
from desk_manager.policy import Launch
from desk_manager.runtimes import Instance, State, Usage
from desk_manager.settings import Settings

NAME_PREFIX = "strategy-"
API_TIMEOUT_S = 120
EARLY_LOG_BYTES_MAX = 2**20

Result = TypeVar("Result")


class DockerRuntime:
    """A Runtime on the Docker engine that DOCKER_HOST or the default socket names."""

    name = "docker"
    sandboxed = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = _connect()
        self._is_root = os.geteuid() == 0
        self._seccomp = policy.seccomp_profile()

    def check(self) -> None:
        image = self._settings.image
        try:
            self._call(lambda: self._api.inspect_image(image))
        except ManagerError as error:
            if isinstance(error.__cause__, ImageNotFound):
                raise ManagerError(
                    f"the strategies' image {image} is not there",
                    "build it with `./strategy_manager.py build`, or set DOCKER_IMAGE to one that is there",
                ) from None
            raise
        options = " ".join(self._call(self._api.info).get("SecurityOptions") or [])
        if "seccomp" not in options:
            raise NoEngine(
                "this Docker engine has no seccomp, so the sandbox would have a hole",
                "use an engine and a kernel with seccomp",
            )

    def notices(self) -> Sequence[str]:
        if self._is_root:
            return ()
        return (
            f"strategies run as your own uid {os.geteuid()}, not as one uid each: kernel limits that count per "
            "uid are shared between them. Everything else of the sandbox holds. As root, each gets its own.",
        )

    def ids(self, strategy: str) -> tuple[int, int]:
        if not self._is_root:
            return os.geteuid(), os.getegid()
        # Every container counts here, those of other desks on this machine too.
        in_use = {
            one["Labels"].get("desk.run_dir", "") + "\0" + one["Labels"][policy.LABEL]: int(one["Labels"]["desk.uid"])
            for one in self._listed()
            if one["Labels"].get("desk.uid", "").isdecimal()
        }
        mine = f"{self._settings.run_dir}\0"
        named = {name.removeprefix(mine): uid for name, uid in in_use.items()}
        uid = uids.allocate(self._settings.manager_dir / "uids.json", strategy, named)
        return uid, uid

    def instances(self) -> dict[str, Instance]:
        found: dict[str, Instance] = {}
        for listed in self._listed(f"desk.run_dir={self._settings.run_dir}"):
            if instance := self._inspect(listed["Id"]):
                found[instance.strategy] = instance
        return found

    def instance(self, strategy: str) -> Instance | None:
        found = self._inspect(NAME_PREFIX + strategy)
        return found if found and found.strategy == strategy else None

    def start(self, launch: Launch) -> None:
        name = NAME_PREFIX + launch.strategy
        request = policy.container(launch, self._settings.image, self._seccomp)
        try:
            created = self._call(lambda: self._api.create_container_from_config(request, name))
        except ManagerError as error:
            if isinstance(error.__cause__, APIError) and error.__cause__.status_code == 409:
                raise self._name_taken(name) from None
            raise
        self._call(lambda: self._api.start(created["Id"]))

    def stop(self, strategy: str, grace_s: float) -> None:
        if self.instance(strategy) is None:
            return
        container = NAME_PREFIX + strategy
        try:
            self._call(lambda: self._api.stop(container, timeout=round(grace_s)))
            self._call(lambda: self._api.remove_container(container, force=True, v=True))
        except _Gone:
            pass

    def usage(self, strategy: str) -> Usage | None:
        try:
            stats = self._call(lambda: self._api.stats(NAME_PREFIX + strategy, stream=False, one_shot=True))
        except _Gone:
            return None
        memory = stats.get("memory_stats", {})
        if "usage" not in memory:
            return None
        details = memory.get("stats", {})
        # File cache is given back when memory runs short: as `docker stats` does, it is not counted.
        cache_bytes = details.get("total_inactive_file", details.get("inactive_file", 0))
        return Usage(memory["usage"] - cache_bytes, stats["cpu_stats"]["cpu_usage"]["total_usage"])

    def early_log(self, strategy: str) -> bytes:
        if self.instance(strategy) is None:
            return b""
        try:
            said: bytes = self._call(lambda: self._api.logs(NAME_PREFIX + strategy, tail=1000))
        except _Gone:
            return b""
        return said[-EARLY_LOG_BYTES_MAX:]

    def allow(self, instance: Instance, restarts_max: int, again: bool = False) -> None:
        name = NAME_PREFIX + instance.strategy
        try:
            self._call(lambda: self._api.update_container(name, restart_policy=policy.restart_policy(restarts_max)))
            if again:
                self._call(lambda: self._api.start(name))
        except _Gone:
            pass

    def desk_file(self, path: Path) -> str | None:
        """Read through the engine: the desk's own container has the run directory mounted somewhere."""
        for listed in self._call(lambda: self._api.containers(all=True)):
            if policy.LABEL in (listed.get("Labels") or {}):
                continue
            for mount in listed.get("Mounts", []):
                source = Path(mount.get("Source", "/nowhere"))
                if path.is_relative_to(source) and source != Path("/"):
                    inside = Path(mount["Destination"]) / path.relative_to(source)
                    return self._read_inside(listed["Id"], inside)
        return None

    def _read_inside(self, container: str, path: Path) -> str | None:
        try:
            chunks, _ = self._call(lambda: self._api.get_archive(container, str(path)))
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.next()
                file = archive.extractfile(member) if member and member.isfile() else None
                return file.read(4096).decode("ascii") if file else None
        except (ManagerError, tarfile.TarError, UnicodeDecodeError):
            return None

    def _listed(self, label: str = policy.LABEL) -> list[Mapping[str, Any]]:
        listed: list[Mapping[str, Any]] = self._call(
            lambda: self._api.containers(all=True, filters={"label": [policy.LABEL, label]})
        )
        return listed

    def _inspect(self, container: str) -> Instance | None:
        try:
            facts = self._call(lambda: self._api.inspect_container(container))
        except _Gone:
            return None
        ours = (facts["Config"]["Labels"] or {}).get("desk.run_dir") == str(self._settings.run_dir)
        return _instance(facts) if ours else None

    def _name_taken(self, name: str) -> ManagerError:
        owner = self._call(lambda: self._api.inspect_container(name))["Config"]["Labels"] or {}
        whose = f"of the desk at {owner['desk.run_dir']}" if "desk.run_dir" in owner else "that is not ours"
        return ManagerError(
            f"there is already a container {name} {whose}",
            f"stop it there, or remove it: docker rm -f {name}",
        )

    def _call(self, request: Callable[[], Result]) -> Result:
        try:
            return request()
        except NotFound as error:
            if isinstance(error, ImageNotFound):
                raise ManagerError(f"Docker: {error.explanation}", "build the image") from error
            raise _Gone(f"Docker: {error.explanation}", "it vanished meanwhile; try again") from error
        except APIError as error:
            raise ManagerError(
                f"Docker refused: {error.explanation or error}", "correct what it names (sizes: config.json)"
            ) from error
        except (DockerException, requests.RequestException) as error:
            raise NoEngine(
                f"the Docker engine does not answer: {error}", "look at `docker info` and the engine's log"
            ) from error


class _Gone(ManagerError):
    """The container is not there any more."""


@cache
def _connect() -> Any:
    try:
        return docker.APIClient(**docker.utils.kwargs_from_env(), version="auto", timeout=API_TIMEOUT_S, num_pools=32)
    except (DockerException, requests.RequestException) as error:
        raise _no_engine(error) from error


def _no_engine(error: Exception) -> NoEngine:
    where = f" at DOCKER_HOST={os.environ['DOCKER_HOST']}" if os.environ.get("DOCKER_HOST") else ""
    if "Permission denied" in str(error):
        return NoEngine(
            f"no Docker engine that we may use{where}", "run this as root or as a member of the group docker"
        )
    if where:
        return NoEngine(f"no Docker engine answers{where}", "unset DOCKER_HOST to use this machine's, or correct it")
    return NoEngine(
        "no Docker engine answers",
        "install and start one (as root on Debian or Ubuntu: make engine), or, for your own code only and without "
        "a sandbox, use --runtime process",
    )


def _instance(facts: Mapping[str, Any]) -> Instance:
    labels = facts["Config"]["Labels"]
    state = facts["State"]
    limits = facts["HostConfig"]
    retries = limits["RestartPolicy"].get("MaximumRetryCount", 0)
    ended = state["Status"] in ("exited", "dead", "created")
    return Instance(
        strategy=labels[policy.LABEL],
        user_id=labels["desk.user"],
        deployment_id=labels["desk.deployment"],
        code_hash=labels["desk.code_hash"],
        folder=Path(labels["desk.folder"]),
        state=_state(state, facts["RestartCount"], retries),
        started_at=_time(state["StartedAt"]),
        finished_at=_time(state["FinishedAt"]),
        restarts=facts["RestartCount"],
        restarts_max=retries,
        max_crashes=int(labels["desk.restart.max_crashes"]),
        window_s=int(labels["desk.restart.window_s"]),
        exit_code=state["ExitCode"] if ended or state["Restarting"] else None,
        out_of_memory=bool(state["OOMKilled"]),
        memory_limit_bytes=limits["Memory"],
        complaint=state["Error"],
    )


def _state(state: Mapping[str, Any], restarts: int, retries: int) -> State:
    if state["Restarting"]:
        return State.RESTARTING
    if state["Running"]:
        return State.RUNNING
    if state["Status"] == "created" and not state["Error"]:
        return State.STOPPED
    if state["ExitCode"] == 0 and not state["Error"]:
        return State.EXITED
    return State.QUARANTINED if restarts >= retries else State.STOPPED


def _time(text: str) -> datetime | None:
    """Docker's RFC 3339 with nanoseconds; year 1 stands for never."""
    if text.startswith("0001"):
        return None
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6] or '0'}+00:00")
