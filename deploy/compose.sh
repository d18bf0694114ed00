#!/usr/bin/env bash
# deploy/compose.sh up|down: the desk server in a container, with ./run as its run directory.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'compose: %s\n' "$*" >&2; exit 1; }

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    fail "neither \`docker compose\` nor docker-compose is here. Debian/Ubuntu: apt-get install docker-compose"
fi

# The server runs as 10001:20000; strategies and the manager reach it through this directory.
prepare() {
    local directory=${DESK_HOST_RUN_DIR:-run}
    mkdir -p "$directory"
    [ "$(stat -c %u:%g "$directory")" = 10001:20000 ] && return
    [ "$(id -u)" = 0 ] || fail "$directory must belong to 10001:20000 for the server to write there.
  As root: chown 10001:20000 $directory     Then: make up"
    chown 10001:20000 "$directory"
    # What a server run directly on this machine has left there.
    for part in desk ledger tape admin.token; do
        [ ! -e "$directory/$part" ] || chown -R 10001:20000 "$directory/$part"
    done
}

case ${1:-} in
    up)
        prepare
        "${compose[@]}" up --detach --no-build
        echo "Waiting for the desk to answer on http://127.0.0.1:${PORT:-8080}/healthz ..."
        for _ in $(seq 60); do
            health=$(docker inspect --format '{{.State.Health.Status}}' desk-server 2>/dev/null || echo gone)
            case $health in
                healthy) echo "The desk is up. Next: ./strategy_manager.py start     Stop it: make down"; exit ;;
                gone) break ;;
            esac
            sleep 1
        done
        "${compose[@]}" logs --tail 30
        fail "the server did not become healthy; its last words are above."
        ;;
    down) "${compose[@]}" down ;;
    *) fail "say up or down" ;;
esac
