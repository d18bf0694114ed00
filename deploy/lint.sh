#!/usr/bin/env bash
# Style, types and import rules; all three run even where one fails.
set -uo pipefail
cd "$(dirname "$0")/.."

code=0
step() { echo "  $*"; ".venv/bin/$@" || code=1; }

step ruff check --quiet .
step mypy --no-error-summary desk_client desk_server desk_manager
step lint-imports --no-logo 2>/dev/null || code=1
exit "$code"
