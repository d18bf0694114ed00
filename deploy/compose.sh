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

readonly container=${DESK_SERVER_CONTAINER:-desk-server}

# The server runs as 10001:20000; strategies and the manager reach it through this directory. The engine gives it the
# right owner (a container may, even where this user is not root), and with it what a server run directly on this
# machine has left there.
prepare() {
    local directory
    mkdir -p "${DESK_HOST_RUN_DIR:-run}"
    directory=$(cd "${DESK_HOST_RUN_DIR:-run}" && pwd)
    [ "$(docker inspect --format '{{.State.Running}}' "$container" 2>/dev/null)" != true ] || return 0
    echo "Giving $directory to the server (10001:20000) ..."
    docker run --rm --network none --user 0:0 --cap-drop ALL --cap-add CHOWN --cap-add DAC_READ_SEARCH \
        --volume "$directory:/run-dir" --entrypoint sh desk-server:latest -c \
        'cd /run-dir && chown 10001:20000 . && for part in desk ledger tape admin.token; do
            [ ! -e "$part" ] || chown -R 10001:20000 "$part"; done' \
        || fail "could not change the owner of $directory. As root: chown 10001:20000 $directory"
}

case ${1:-} in
    up)
        prepare
        "${compose[@]}" up --detach --no-build
        echo "Waiting for the desk to answer on http://127.0.0.1:${PORT:-8080}/healthz ..."
        for _ in $(seq 60); do
            health=$(docker inspect --format '{{.State.Health.Status}}' "$container" 2>/dev/null || echo gone)
            case $health in
                healthy) echo "The desk is up. Next: ./strategy_manager.py start     Stop it: make down"; exit ;;
                gone) break ;;
            esac
            [ "$(docker inspect --format '{{.RestartCount}}' "$container")" -lt 2 ] || break
            sleep 1
        done
        "${compose[@]}" logs --tail 30
        fail "the server did not become healthy; its last words are above."
        ;;
    down) "${compose[@]}" down ;;
    *) fail "say up or down" ;;
esac
