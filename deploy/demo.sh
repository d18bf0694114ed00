#!/usr/bin/env bash
# The demo: gets an engine and the strategy image, then hands over to desk_manager.demo with the runtime that fits.
set -uo pipefail
cd "$(dirname "$0")/.."

runtime=docker
deploy/engine.sh
case $? in
    0) deploy/build-images.sh strategy || exit 1 ;;
    3 | 4 | 5) runtime=process ;;
    *) exit 1 ;;
esac
exec .venv/bin/python -m desk_manager.demo --runtime "$runtime" "$@"
