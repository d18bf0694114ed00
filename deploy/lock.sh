#!/usr/bin/env bash
# Pins everything that pyproject.toml asks for, with hashes: constraints.txt (all of it) and the two shorter
# lists of the images. No address of a registry is written: pip uses the one the machine is configured with.
set -euo pipefail
cd "$(dirname "$0")/.."

compile=(.venv/bin/python -m piptools compile --quiet --allow-unsafe --generate-hashes --strip-extras
         --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options)

# write_list FILE TITLE pip-compile-arguments: the list under a first line that says how to renew it.
write_list() {
    local file=$1 title=$2 new
    shift 2
    new=$(mktemp)
    [ -f "$file" ] && cp "$file" "$new"     # pip-compile keeps the pins it finds there
    echo "  $file ..."
    "${compile[@]}" "$@" --output-file "$new" pyproject.toml
    { echo "# $title Renew: make lock"; grep -v '^# .*Renew: make lock$' "$new"; } >"$file"
    chmod 644 "$file"
    rm -f "$new"
}

echo "Locking (a few minutes: every file's hash is looked up)"
[ "${1:-}" = --upgrade ] && compile+=(--upgrade)
write_list constraints.txt "Every dependency of the project, pinned." --all-extras
write_list deploy/server-requirements.txt "What the server image installs." --extra server --constraint constraints.txt
write_list deploy/strategy-requirements.txt "What the strategy image installs." --extra strategy --constraint constraints.txt
