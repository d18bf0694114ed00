#!/usr/bin/env bash
# Prints the tag of the Python base image to build on, after making sure that it is there: pulled, or, where no
# image registry answers, a stand-in made with debootstrap from the package source this machine's apt uses.
#
#   deploy/base-image.sh [TAG]     TAG: default python:3.11-slim, or the setting DESK_BASE_IMAGE
#
# The stand-in carries the Python of its Debian or Ubuntu release, so its tag may name another version than was
# asked for: read the answer. Labelled desk.base=stand-in; `docker pull TAG` replaces it. Progress goes to stderr.
set -euo pipefail

readonly wanted=${1:-${DESK_BASE_IMAGE:-python:3.11-slim}}
readonly pull_timeout_s=${DESK_PULL_TIMEOUT_S:-60} connect_timeout_s=8

say() { printf 'base image: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { docker image inspect "$1" >/dev/null 2>&1; }

# A pull from an unreachable registry can hang for minutes, so it gets some seconds to show that it has begun.
pull() {
    local log pid waited=0
    log=$(mktemp)
    say "Pulling $wanted ..."
    timeout "$pull_timeout_s" docker pull "$wanted" >"$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.5
        waited=$((waited + 1))
        if [ "$waited" -ge $((connect_timeout_s * 2)) ] && [ ! -s "$log" ]; then
            kill "$pid" 2>/dev/null || true
        fi
    done
    if wait "$pid"; then rm -f "$log"; return 0; fi
    say "Could not pull $wanted: $(tail -n 1 "$log" | tr -d '\r')"
    rm -f "$log"
    return 1
}

# apt's own answer to "where do packages come from", as lines: address, release, component.
apt_source() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -v codename="$codename" '$2 == codename && $3 == "main" { print $1, $2; exit }'
}

# make_stand_in TAG-FILE: builds the root in a temporary directory, imports it and writes its tag.
make_stand_in() {
    local source mirror release components root version tag started=$SECONDS
    [ "$(id -u)" = 0 ] || fail "Building the stand-in needs root. Run this as root, or: docker pull $wanted"
    command -v apt-get >/dev/null || fail "The stand-in needs Debian or Ubuntu. Elsewhere: docker pull $wanted"
    if ! command -v debootstrap >/dev/null; then
        say "Installing debootstrap ..."
        { apt-get update -q || true
          DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends debootstrap; } >&2 \
            || fail "apt-get could not install debootstrap; its messages are above."
    fi
    source=$(apt_source)
    [ -n "$source" ] || { apt-get update -q >&2; source=$(apt_source); }
    [ -n "$source" ] || fail "apt names no source for this release's packages. Check /etc/apt, or: docker pull $wanted"
    read -r mirror release <<<"$source"
    components=main
    grep -qs '^ID=ubuntu' /etc/os-release && components=main,universe

    root=$(mktemp -d /var/tmp/desk-base.XXXXXX)
    # shellcheck disable=SC2064
    trap "rm -rf --one-file-system '$root'" EXIT
    chmod 755 "$root"
    say "Building a stand-in from $release's packages with debootstrap (about a minute) ..."
    debootstrap --variant=minbase --components="$components" --include=python3,ca-certificates \
        "$release" "$root" "$mirror" 2>&1 |
        tee "$root.log" |
        grep --line-buffered -E '^(I: (Retrieving Packages|Resolving|Extracting|Unpacking (required|the base)|Configuring the|Base system)|[EW]:)' |
        sed -u -e 's#http[^ ]*##' -e 's/^/  /' >&2 \
        || { tail -n 20 "$root.log" >&2; rm -f "$root.log"; fail "debootstrap failed; its last messages are above."; }
    rm -f "$root.log"

    # Nothing of the machine it was built on, and nothing a container does not read.
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/var/cache/debconf/*-old \
        "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* \
        "$root"/usr/share/lintian "$root"/tmp/* "$root"/etc/apt/sources.list "$root"/debootstrap
    : >"$root/etc/machine-id"; : >"$root/etc/resolv.conf"; echo localhost >"$root/etc/hostname"

    version=$(chroot "$root" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    tag="python:$version-slim"
    tar -C "$root" --numeric-owner --one-file-system -c . |
        docker import --change 'CMD ["python3"]' --change 'ENV LANG=C.UTF-8' --change 'LABEL desk.base=stand-in' - "$tag" >/dev/null
    say "Stand-in $tag is ready ($((SECONDS - started)) s). It is not the published image of that name."
    echo "$tag"
}

# The tag of a stand-in made earlier, if there is one.
earlier_stand_in() {
    docker image ls --filter label=desk.base=stand-in --format '{{.Repository}}:{{.Tag}}' | grep '^python:.*-slim$' | head -n 1
}

if have "$wanted" || pull; then
    echo "$wanted"
elif tag=$(earlier_stand_in) && [ -n "$tag" ]; then
    say "Using the stand-in $tag made earlier."
    echo "$tag"
else
    make_stand_in
fi
