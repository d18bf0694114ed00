"""`watch`: a folder dropped into the strategies' directory runs, a changed one is taken anew, a removed one stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from desk_manager import folders
from desk_manager.deploy import Deployer, Report
from desk_manager.errors import ExitCode, ManagerError
from desk_manager.runtimes import Runtime, State
from desk_manager.settings import Settings
from desk_manager.staging import FILES_MAX, SKIPPED

POLL_S = 1.0
# Looks between two rounds of counting crashes.
TEND_EVERY = 5

# Names, sizes and times of all that is in a folder: cheap to take, different after any change.
Print = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A folder as it was at the last looks: acted upon once it has been the same twice (nobody is writing)."""

    now: Print
    done: Print | None = None


class Watch:
    """Call `look` again and again."""

    def __init__(self, settings: Settings, runtime: Runtime, deployer: Deployer, report: Report) -> None:
        self._settings, self._runtime, self._deployer, self._report = settings, runtime, deployer, report
        self._seen: dict[Path, Seen] = {}
        self._looks = 0

    def look(self) -> ExitCode:
        """One look: start and restart what has settled, stop what is gone, tend what runs.

        Raises UsageError while the directory itself cannot be read: then nothing is stopped. Raises
        DeskUnreachable and NoEngine while these are away: what was to be started is started when they are back.
        """
        paths = folders.everything(self._settings.strategies_dir)
        self._seen = {path: seen for path, seen in self._seen.items() if path in paths}
        settled = [path for path in paths if self._settled(path)]
        changed = [path for path in settled if not self._runs_already(path)]
        code = self._deployer.start(changed, self._report, restart=True) if changed else ExitCode.OK
        if code not in (ExitCode.NO_DESK, ExitCode.NO_ENGINE):
            for path in settled:
                self._seen[path] = Seen(self._seen[path].now, self._seen[path].now)
        gone = self._gone(paths)
        if gone:
            self._deployer.stop(gone, self._report)
        self._looks += 1
        if self._looks % TEND_EVERY == 0:
            self._deployer.tend(revive=True)
        return code

    def _settled(self, path: Path) -> bool:
        """It has changed since it was last acted upon, and not since the last look."""
        now = fingerprint(path)
        before = self._seen.get(path)
        if before is None or before.now != now:
            self._seen[path] = Seen(now, before.done if before else None)
            return False
        return before.done != now

    def _runs_already(self, path: Path) -> bool:
        """What runs this very code is left alone; so is, at first sight, what is in quarantine with it."""
        instance = self._runtime.instance(path.name)
        if instance is None:
            return False
        kept = [State.RUNNING, State.RESTARTING]
        if self._seen[path].done is None:
            kept.append(State.QUARANTINED)
        return instance.state in kept and instance.code_hash == folders.code_hash(path)

    def _gone(self, paths: list[Path]) -> list[str]:
        """What runs from this directory and has no folder any more."""
        return [
            name
            for name, instance in self._runtime.instances().items()
            if instance.folder.parent == self._settings.strategies_dir and instance.folder not in paths
        ]


def run(watch: Watch, sleep: Callable[[float], None], say: Callable[[str], None]) -> None:
    """Look until interrupted. What keeps it from looking is said once, and tried again."""
    complaint = ""
    while True:
        try:
            watch.look()
            complaint = ""
        except ManagerError as error:
            if str(error) != complaint:
                complaint = str(error)
                say(complaint)
        sleep(POLL_S)


def fingerprint(folder: Path) -> Print:
    """Never follows a link and stops counting where staging would refuse the folder anyway."""
    found: list[tuple[str, int, int, int]] = []
    todo = [folder]
    while todo and len(found) <= FILES_MAX:
        directory = todo.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name in SKIPPED or len(found) > FILES_MAX:
                        continue
                    facts = entry.stat(follow_symlinks=False)
                    is_dir = entry.is_dir(follow_symlinks=False)
                    # A directory's own time changes with __pycache__, which does not count.
                    times = (0, 0) if is_dir else (facts.st_size, facts.st_mtime_ns)
                    found.append((entry.path, facts.st_mode, *times))
                    if is_dir:
                        todo.append(Path(entry.path))
        except OSError:
            found.append((str(directory), -1, 0, 0))
    return tuple(sorted(found))
