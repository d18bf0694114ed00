#!/usr/bin/env bash
# Finds a Docker engine; where none answers, and this is root on Debian or Ubuntu, installs docker.io and starts it.
#
#   deploy/engine.sh          find, or install and start
#   deploy/engine.sh --check  find only; silent
#
# ENGINE=auto (default) as above; ENGINE=found never installs or starts one; ENGINE=none declines any engine.
# Exit: 0 an engine answers; 3 declined; 4 none, and it cannot be installed from here; 5 installed, does not start.
set -uo pipefail

readonly declined=3 impossible=4 broken=5
readonly log=/var/log/desk-dockerd.log wait_s=${DESK_ENGINE_WAIT_S:-60}

say() { printf 'engine: %s\n' "$*"; }
fail() { local code=$1; shift; printf 'engine: %s\n' "$*" >&2; exit "$code"; }

answers() { timeout 10 docker info >/dev/null 2>&1; }

wait_until_answers() {
    local deadline=$((SECONDS + $1))
    until answers; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.5
    done
}

# The daemon's own process, whoever started it: a second one would fight over the same files.
dockerd_runs() {
    local comm
    for comm in /proc/[0-9]*/comm; do
        [ "$(cat "$comm" 2>/dev/null)" = dockerd ] && return 0
    done
    return 1
}

# After a kill their numbers stay in these files. Once another process has such a number, dockerd would not start,
# or would wait for a containerd that is not there.
forget_the_dead() {
    local name file pid
    while read -r name file; do
        pid=$(cat "$file" 2>/dev/null) || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ] || rm -f "$file"
    done <<END
dockerd /var/run/docker.pid
containerd /var/run/docker/containerd/containerd.pid
END
}

is_debian_or_ubuntu() {
    command -v apt-get >/dev/null && grep -qsE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release
}

install_docker() {
    say "No Docker engine here. Installing docker.io from this machine's package source (a minute or two) ..."
    apt-get update -q || say "apt-get update failed; trying with the lists that are there."
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends docker.io iptables \
        || fail "$impossible" "apt-get could not install docker.io; its messages are above."
    # Since Debian 13 the command is a package of its own.
    command -v docker >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends docker-cli \
        || fail "$impossible" "apt-get could not install docker-cli; its messages are above."
}

start_docker() {
    if [ -d /run/systemd/system ]; then
        say "Starting Docker with systemd ..."
        systemctl start docker && wait_until_answers "$wait_s" && return
        fail "$broken" "Docker does not start. Its last words:
$(journalctl -u docker -n 20 --no-pager 2>&1)"
    fi
    forget_the_dead
    say "Starting dockerd (log: $log) ..."
    setsid dockerd >"$log" 2>&1 </dev/null 9>&- &
    local pid=$! deadline=$((SECONDS + wait_s))
    until answers; do
        if ! kill -0 "$pid" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
            fail "$broken" "dockerd does not start here. It needs root with the right to mount, to make cgroups and to \
change iptables: a plain container usually lacks that. The end of $log:
$(tail -n 20 "$log")"
        fi
        sleep 0.5
    done
}

[ "${ENGINE:-auto}" = none ] && { [ "${1:-}" = --check ] || say "ENGINE=none: no Docker engine is used."; exit "$declined"; }
if [ "${1:-}" = --check ]; then
    answers && exit 0
    exit "$impossible"
fi

if ! answers; then
    if [ "${ENGINE:-auto}" = found ]; then
        fail "$declined" "No Docker engine answers, and ENGINE=found allows none to be installed."
    elif [ "$(id -u)" != 0 ]; then
        fail "$impossible" "No Docker engine answers to $(id -un). Either start Docker and let this user use it \
(as root: usermod -aG docker $(id -un), then log in again), or run this as root, or do without: ENGINE=none."
    elif [ -n "${DOCKER_HOST:-}" ]; then
        fail "$impossible" "DOCKER_HOST=$DOCKER_HOST does not answer. Unset it to use an engine on this machine."
    fi
    exec 9>/run/desk-engine.lock
    flock 9    # two of us at once: the second finds what the first has started
    if answers || { dockerd_runs && say "dockerd is running; waiting for its answer ..." && wait_until_answers "$wait_s"; }; then
        :
    elif dockerd_runs; then
        fail "$broken" "A dockerd runs here but has not answered for $wait_s s. Look at its log, or stop it and try again."
    else
        if ! command -v dockerd >/dev/null; then
            is_debian_or_ubuntu || fail "$impossible" "No Docker engine answers, and only Debian and Ubuntu are installed \
automatically. Install Docker, or do without: ENGINE=none."
            install_docker
        fi
        # Installing the package may have started it.
        answers || { dockerd_runs && wait_until_answers "$wait_s"; } || start_docker
    fi
fi
say "Docker $(docker version --format '{{.Server.Version}}' 2>/dev/null) answers."
