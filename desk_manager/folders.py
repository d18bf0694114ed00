"""Which strategies a command is about: names and paths on the command line, or all of STRATEGIES_DIR."""

from __future__ import annotations

import ast
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from desk_manager import config, staging
from desk_manager.errors import InvalidStrategy, ManagerError, UsageError

# Beside strategies, a repository's folder has these; they are no attempt at a strategy.
_NOT_MEANT = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Found:
    """A folder that wants to be a strategy: sound (config) or not (error)."""

    name: str
    path: Path
    config: config.StrategyConfig | None = None
    error: ManagerError | None = None


def everything(strategies_dir: Path) -> list[Path]:
    """Every folder (or link, which will be refused) in the directory, by name. Raises UsageError."""
    try:
        entries = sorted(os.scandir(strategies_dir), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(
            f"the strategies' directory {strategies_dir} cannot be read: {error.strerror}",
            "make it, or name another one with STRATEGIES_DIR",
        ) from None
    return [
        Path(entry.path)
        for entry in entries
        if not entry.name.startswith(".")
        and entry.name not in _NOT_MEANT
        and (entry.is_symlink() or entry.is_dir(follow_symlinks=False))
    ]


def choose(targets: Sequence[str], strategies_dir: Path) -> list[Path]:
    """The folders that the targets (names or paths) mean; all of them when there are none.

    A target that is no folder still gives its path: `start` will say what is wrong with it, `stop` needs
    its name only. Raises UsageError where two targets would have one name.
    """
    if not targets:
        return everything(strategies_dir)
    chosen: dict[str, Path] = {}
    for target in targets:
        for path in _folders(target, strategies_dir):
            other = chosen.setdefault(path.name, path)
            if other != path:
                raise UsageError(f"{other} and {path} have the same name", "rename one of them")
    return list(chosen.values())


def _folders(target: str, strategies_dir: Path) -> list[Path]:
    if "/" not in target and target not in (".", ".."):
        inside = strategies_dir / target
        beside = Path(os.path.abspath(target))
        return [beside] if not os.path.lexists(inside) and (beside / "strategy.py").is_file() else [inside]
    path = Path(os.path.abspath(target))
    is_dir = os.path.lexists(path) and stat.S_ISDIR(path.lstat().st_mode)
    if is_dir and not (path / "strategy.py").exists() and _holds_strategies(path):
        return everything(path)
    return [path.parent] if path.name == "strategy.py" else [path]


def _holds_strategies(path: Path) -> bool:
    return any((folder / "strategy.py").is_file() for folder in everything(path))


def examine(path: Path) -> Found:
    """Check the folder as `start` would, without copying or running anything."""
    try:
        settled = config.load(_real_folder(path))
        staging.check(path)
    except InvalidStrategy as error:
        error.strategy = path.name
        return Found(path.name, path, error=error)
    return Found(path.name, path, config=settled)


def check_syntax(path: Path) -> None:
    """Raises InvalidStrategy where strategy.py is no Python, as far as this interpreter can tell."""
    try:
        ast.parse((path / "strategy.py").read_bytes(), "strategy.py")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"strategy.py, line {line}" if line else "strategy.py"
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InvalidStrategy(
            f"{where}: {what} (read by Python {sys.version_info[0]}.{sys.version_info[1]})",
            "correct it; Python would end at once with the same error",
            path.name,
        ) from None


def load(path: Path) -> config.StrategyConfig:
    """The folder's config. Raises InvalidStrategy."""
    return config.load(_real_folder(path))


def _real_folder(path: Path) -> Path:
    config.check_name(path.name)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise InvalidStrategy(f"there is no folder {path}", "see `strategy_manager.py list`") from None
    except OSError as error:
        raise InvalidStrategy(f"{path} cannot be read: {error.strerror}", "check its rights") from None
    if stat.S_ISLNK(mode):
        raise InvalidStrategy(f"{path} is a symbolic link", "put the real folder there")
    if not stat.S_ISDIR(mode):
        raise InvalidStrategy(f"{path} is no folder", "name the folder that holds strategy.py")
    return path


def code_hash(path: Path) -> str:
    """The hash its staged copy would have; empty where the folder would be refused."""
    try:
        return staging.check(path)
    except InvalidStrategy:
        return ""
