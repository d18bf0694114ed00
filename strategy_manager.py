#!/usr/bin/env python3
"""Runs the folders in strategies/, each in a sandbox of its own. `./strategy_manager.py --help` says how."""

import importlib.util
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
OUR_PYTHON = PROJECT / ".venv" / "bin" / "python"

sys.path.insert(0, str(PROJECT))

if __name__ == "__main__":
    if sys.version_info < (3, 11) or not all(map(importlib.util.find_spec, ("docker", "httpx", "rich"))):
        if OUR_PYTHON.exists() and Path(sys.prefix) != OUR_PYTHON.parent.parent:
            os.execv(OUR_PYTHON, [str(OUR_PYTHON), str(PROJECT / "strategy_manager.py"), *sys.argv[1:]])
        sys.exit(f"strategy_manager.py: what it needs is not installed.\n    Next: run `make install` in {PROJECT}")
    from desk_manager.cli import main

    sys.exit(main())
