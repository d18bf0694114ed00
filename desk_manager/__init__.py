"""Runs people's strategies: folders in, sandboxed containers out. Called by `strategy_manager.py`.

The way of a start: `cli` → `folders` (which) → `config` and `staging` (is it sound?) → `deploy` (register at the
desk, token, container, seen alive) → `runtimes` (Docker, or plain processes). `policy` is the sandbox, in one place.
"""
