#!/usr/bin/env bash
# Runs every benchmark, one after another; each prints its own figures. One that knows --quick is run with it.
set -uo pipefail
cd "$(dirname "$0")/.."

code=0
for file in benchmarks/[!_]*.py; do
    [ -e "$file" ] || { echo "No benchmarks here yet."; exit 0; }
    printf '\n== %s\n' "$file"
    quick=()
    grep -q -- '"--quick"' "$file" && quick=(--quick)
    timeout 600 .venv/bin/python "$file" "${quick[@]}" || { echo "bench: $file failed" >&2; code=1; }
done
exit "$code"
