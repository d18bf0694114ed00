"""The command line of `strategy_manager.py`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from desk_manager import config, folders, logs, settings, table, watch
from desk_manager.admin import DeskAdmin
from desk_manager.deploy import Deployer, Outcome
from desk_manager.errors import ExitCode, ManagerError, UsageError
from desk_manager.runtimes import Runtime
from desk_manager.runtimes.docker import DockerRuntime
from desk_manager.runtimes.process import ProcessRuntime
from desk_manager.settings import Settings
from desk_manager.status import Board

WATCH_EVERY_S = 2.0
TEMPLATE_DIR = Path(__file__).parent / "template"

EPILOG = """\
exit codes:
  0  everything asked for was done
  1  a strategy failed (which one, why and what to do is said)
  2  wrong usage, or a folder or config.json that is refused
  3  no desk answers, or it does not take our admin token
  4  no container engine that we may use

environment:
""" + "\n".join(f"  {name:22} {text}" for name, text in settings.HELP.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Everything that can be foreseen ends in a message, not in a traceback."""
    options = _parser().parse_args(arguments)
    try:
        chosen = settings.from_env(runtime=options.runtime)
        return int(options.act(options, chosen))
    except ManagerError as error:
        _complain(str(error))
        return int(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.FAILED)
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror}\n    Next: check its rights and free space")
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="strategy_manager.py",
        description="Runs the folders in strategies/, each in a sandbox of its own, connected to the desk.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    for holder, default in ((parser, None), (shared, argparse.SUPPRESS)):
        holder.add_argument(
            "--runtime", choices=settings.RUNTIMES, default=default, help="docker (default), or process: NO SANDBOX"
        )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, act: Callable[[argparse.Namespace, Settings], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(act=act)
        return made

    for name, act, text in (
        ("start", _start, "check, stage, register and start strategies; all of them when none is named"),
        ("stop", _stop, "stop and remove strategies; all of them when none is named"),
        ("restart", _restart, "stop and start strategies, taking what their folders hold now"),
        ("validate", _validate, "check folders as start would, without running anything"),
    ):
        command(name, act, text).add_argument("targets", nargs="*", metavar="PATH|NAME")
    made = command("status", _status, "show how every strategy is")
    made.add_argument("targets", nargs="*", metavar="NAME")
    made.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    made.add_argument("--json", action="store_true", help="for programs: one JSON object (with --watch: one a line)")
    made = command("logs", _logs, "show what a strategy printed")
    made.add_argument("name", metavar="NAME")
    made.add_argument("-f", "--follow", action="store_true", help="go on as it prints more, until Ctrl-C")
    made.add_argument("--tail", type=_count, metavar="N", help="only the last N lines")
    command("list", _list, "list the folders, sound or not")
    command("new", _new, "make a strategy's folder to begin with").add_argument("name", metavar="NAME")
    command("build", _build, "build the image that strategies run in")
    command("watch", _watch, "run what is dropped into the directory, take changes, stop what is removed")
    made = command("verify-ledger", _verify_ledger, "check that no event of the desk's ledger was changed or removed")
    made.add_argument("--expect", metavar="SEQ:HASH", help="an event noted earlier, which must still be there")
    return parser


def _start(options: argparse.Namespace, chosen: Settings, restart: bool = False) -> ExitCode:
    paths = folders.choose(options.targets, chosen.strategies_dir)
    if not paths:
        raise UsageError(
            f"there are no strategies in {chosen.strategies_dir}", "make one: ./strategy_manager.py new NAME"
        )
    _, deployer = _ready(chosen)
    deployer.tend(revive=True)
    return deployer.start(paths, _Progress(len(paths)), restart=restart)


def _restart(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    return _start(options, chosen, restart=True)


def _stop(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    runtime = _runtime(chosen)
    deployer = Deployer(chosen, runtime, _desk(chosen, runtime), _complain)
    running = runtime.instances()
    paths = folders.choose(options.targets, chosen.strategies_dir) if options.targets else []
    for path in paths:
        config.check_name(path.name)
        if path.name not in running and not path.exists():
            raise UsageError(f"there is no strategy {path.name}, running or not", "see `strategy_manager.py status`")
    names = [path.name for path in paths] if options.targets else sorted(running)
    if not names:
        print("nothing is running")
    return deployer.stop(names, _Progress(len(names)))


def _validate(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    code = ExitCode.OK
    for found in map(folders.examine, folders.choose(options.targets, chosen.strategies_dir)):
        try:
            if found.error:
                raise found.error
            folders.check_syntax(found.path)
        except ManagerError as error:
            code = ExitCode.INVALID
            _complain(str(error))
        else:
            assert found.config
            print(f"{found.name}: sound (user {found.config.user_id})")
    return code


def _status(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    runtime = _runtime(chosen)
    desk = _desk(chosen, runtime)
    board, deployer = Board(chosen, runtime, desk), Deployer(chosen, runtime, desk, _complain)

    def look() -> tuple[object, str]:
        deployer.tend(revive=False)
        rows, trouble = board.rows(options.targets)
        missing = set(options.targets) - {row.strategy for row in rows}
        if missing:
            raise UsageError(f"there is no strategy {', '.join(sorted(missing))}", "see `strategy_manager.py list`")
        if options.json:
            content = {
                "runtime": runtime.name,
                "sandboxed": runtime.sandboxed,
                "trouble": trouble,
                "strategies": [row.as_json() for row in rows],
            }
            return json.dumps(content, indent=None if options.watch else 2), trouble
        return table.render(rows, "" if runtime.sandboxed else runtime.notices()[0]), trouble

    if options.watch:
        table.show_live(look, WATCH_EVERY_S, plain=options.json)
        return ExitCode.OK
    shown, trouble = look()
    table.show(shown)
    if trouble:
        _complain(trouble)
        return ExitCode.NO_DESK
    return ExitCode.OK


def _logs(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    name = Path(options.name).name
    config.check_name(name)
    path = chosen.log_file(name)
    runtime = _runtime(chosen)
    instance = runtime.instance(name)
    if instance is None and not path.exists():
        raise UsageError(f"{name} has never run here", "see `strategy_manager.py status`")
    size = path.stat().st_size if path.exists() else 0
    raw = logs.tail(path)
    early = runtime.early_log(name)
    shown = logs.last_lines(early + raw, options.tail)
    _write(shown)
    if options.follow:
        for chunk in logs.follow(path, size, stop=lambda: runtime.instance(name) is None):
            _write(chunk)
    return ExitCode.OK


def _list(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    found = [folders.examine(path) for path in folders.everything(chosen.strategies_dir)]
    table.show(table.render_folders(found))
    return ExitCode.OK


def _new(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    config.check_name(options.name)
    target = chosen.strategies_dir / options.name
    if target.exists():
        raise UsageError(f"{target} is there already", "choose another name")
    target.mkdir(parents=True)
    for source in ("strategy.py", "config.json"):
        shutil.copyfile(TEMPLATE_DIR / source, target / source)
    print(f"made {target}\n    Next: look at its strategy.py, then `./strategy_manager.py start {options.name}`")
    return ExitCode.OK


def _build(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    if shutil.which("make") is None:
        raise UsageError("there is no `make`", "install it, or build with: docker build -f Dockerfile.strategy .")
    done = subprocess.run(["make", "images", f"DOCKER_IMAGE={chosen.image}"], cwd=chosen.project_dir, check=False)
    if done.returncode:
        raise ManagerError("the image was not built", "the reason stands above; correct it and build again")
    return ExitCode.OK


def _watch(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    runtime, deployer = _ready(chosen)
    print(f"watching {chosen.strategies_dir} (Ctrl-C ends the watch; strategies keep running)", flush=True)
    watch.run(watch.Watch(chosen, runtime, deployer, _Progress(0)), time.sleep, _complain)
    return ExitCode.OK


def _verify_ledger(options: argparse.Namespace, chosen: Settings) -> ExitCode:
    """The server's own check, in a process of its own: the manager knows no ledger."""
    words = [sys.executable, "-m", "desk_server", "verify-ledger"]
    if options.expect:
        words += ["--expect", options.expect]
    environment = {**os.environ, "DESK_RUN_DIR": str(chosen.run_dir)}
    code = subprocess.run(words, cwd=chosen.project_dir, env=environment, check=False).returncode
    return ExitCode.OK if code == 0 else ExitCode.INVALID if code == int(ExitCode.INVALID) else ExitCode.FAILED


def _ready(chosen: Settings) -> tuple[Runtime, Deployer]:
    """A runtime and a desk that answer; what is weaker than it should be is said."""
    runtime = _runtime(chosen)
    for notice in runtime.notices():
        _complain(notice)
    desk = _desk(chosen, runtime)
    ready = desk.readiness()
    if not ready.get("ready"):
        reasons = "; ".join(map(str, ready.get("reasons") or ["it does not say why"]))
        _complain(f"the desk is not ready for orders yet: {reasons}")
    return runtime, Deployer(chosen, runtime, desk, _complain)


def _runtime(chosen: Settings) -> Runtime:
    return DockerRuntime(chosen) if chosen.runtime == "docker" else ProcessRuntime(chosen)


def _desk(chosen: Settings, runtime: Runtime) -> DeskAdmin:
    return DeskAdmin(chosen, lambda: runtime.desk_file(chosen.admin_token_file))


class _Progress:
    """Says what became of each strategy, as it happens."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0

    def __call__(self, outcome: Outcome) -> None:
        self.done += 1
        counted = f"[{self.done}/{self.count}] " if self.count else ""
        if outcome.error:
            _complain(f"{counted}{outcome.error}")
        else:
            print(f"{counted}{outcome.strategy}: {outcome.message} ({outcome.seconds:.1f} s)", flush=True)


def _write(raw: bytes) -> None:
    sys.stdout.write(logs.printable(raw))
    sys.stdout.flush()


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("a number of lines, 0 or more")
    return int(text)
