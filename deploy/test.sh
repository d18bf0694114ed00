#!/usr/bin/env bash
# The whole suite: lint, drift of the generated code, then pytest, with the Docker tests where an engine answers.
#
# DESK_REQUIRE_DOCKER=1    fail without an engine, and fail a Docker test that would skip
# DESK_REQUIRE_POSTGRES=1  fail a test of the PostgreSQL ledger that would skip because none is installed
# PYTEST_ARGS              further arguments, e.g. PYTEST_ARGS="-k ledger -x"
#
# pytest runs in any case and its closing line comes last; the exit code tells of all three.
set -uo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
failed=()

say "Lint: ruff, mypy, import rules"
deploy/lint.sh || failed+=(lint)

say "Generated code"
deploy/proto.sh --check || failed+=(proto-check)

say "Docker"
if deploy/engine.sh --check; then
    deploy/build-images.sh || failed+=(images)
elif [ "${DESK_REQUIRE_DOCKER:-}" = 1 ]; then
    echo "DESK_REQUIRE_DOCKER=1, but no Docker engine answers. Try: make engine" >&2
    exit 1
else
    echo "No Docker engine answers: the Docker tests skip. To run them: make engine test"
fi

say "Tests"
for part in "${failed[@]}"; do echo "FAILED before the tests: $part (see above)"; done
eval "pytest_args=(${PYTEST_ARGS:-})"   # so that quotes in it group words, as on a command line
.venv/bin/python -m pytest "${pytest_args[@]}"
code=$?
[ "${#failed[@]}" = 0 ] || exit 1
exit "$code"
