#!/usr/bin/env bash
# Runs every benchmark briefly, one after another; each prints its own figures.
set -uo pipefail
cd "$(dirname "$0")/.."

code=0
for file in benchmarks/[!_]*.py; do
    [ -e "$file" ] || { echo "No benchmarks here yet."; exit 0; }
    printf '\n== %s\n' "$file"
    .venv/bin/python "$file" --quick || { echo "bench: $file failed" >&2; code=1; }
done
exit "$code"
