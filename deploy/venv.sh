#!/usr/bin/env bash
# Makes .venv with everything in constraints.txt and this project (editable). Quick when nothing changed.
# PYTHON=python3.12 chooses the interpreter; otherwise the first of python3, python3.13 ... that is new enough.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer."
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer found. Debian/Ubuntu: apt-get install python3 python3-venv. Then: make install"
}

# Debian and Ubuntu ship python3 without the module that puts pip into a new environment.
need_venv_module() {
    local python=$1 package
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing $package (this python has no ensurepip) ..."
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$package" \
            || fail "apt-get could not install $package; its messages are above."
    else
        fail "$python cannot make virtual environments. As root: apt-get install $package. Then: make install"
    fi
}

python=$(find_python)
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    need_venv_module "$python"
    say "Making .venv with $("$python" --version) ..."
    "$python" -m venv --clear .venv || fail "$python -m venv failed; its messages are above."
fi
new_enough .venv/bin/python || fail ".venv has an old Python. Remove it (make clean) and run: make install"

# One line a package is enough to see that it goes on.
readonly chatter='^ *(Requirement already|Processing|Downloading|Using cached|Looking in|Attempting uninstall|Found existing|Uninstalling|Successfully)'
say "Installing the pinned dependencies, hashes checked (a minute or two the first time) ..."
.venv/bin/python -m pip install --disable-pip-version-check --progress-bar "$([ -t 1 ] && echo on || echo off)" \
    --require-hashes --only-binary :all: -r constraints.txt |
    { grep --line-buffered -vE "$chatter" || true; }
# setuptools warns at length about editable installs; that is of interest only if it fails.
log=$(mktemp)
.venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable . >"$log" 2>&1 \
    || { cat "$log" >&2; fail "pip could not install the project itself; its messages are above."; }
rm -f "$log"
cksum constraints.txt pyproject.toml >.venv/.installed
say "Installed: $(.venv/bin/python --version) in .venv"
