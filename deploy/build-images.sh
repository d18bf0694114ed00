#!/usr/bin/env bash
# Builds the images: desk-strategy:latest and desk-server:latest. Quick when nothing changed.
#
#   deploy/build-images.sh [strategy] [server]     both when none is named; --force builds in any case
#
# The wheels are fetched here on the host, with hashes checked, and installed in the image without any network.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly pip=(.venv/bin/python -m pip --disable-pip-version-check)

say() { printf 'images: %s\n' "$*"; }
fail() { printf 'images: %s\n' "$*" >&2; exit 1; }

tag_of() { case $1 in strategy) echo "${DOCKER_IMAGE:-desk-strategy:latest}" ;; server) echo desk-server:latest ;; esac; }
code_of() { case $1 in strategy) echo desk_client ;; server) echo desk_client desk_server pyproject.toml deploy/write_metadata.py ;; esac; }

# One hash over everything an image is made of; stored in it as a label.
inputs_hash() {
    local kind=$1 base_id=$2
    # shellcheck disable=SC2046
    { echo "$base_id"
      find "Dockerfile.$kind" .dockerignore "deploy/$kind-requirements.txt" proto $(code_of "$kind") \
          -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d ' ' -f 1
}

# fetch_wheels KIND BASE: fills .wheels/KIND with wheels for the Python inside the base image.
fetch_wheels() {
    local kind=$1 base=$2 list=deploy/$1-requirements.txt into=.wheels/$1 version machine glibc stamp platforms=() minor
    read -r version machine glibc < <(docker run --rm --network none "$base" python3 -c \
        'import os, platform, sys
print("%d.%d" % sys.version_info[:2], platform.machine(), os.confstr("CS_GNU_LIBC_VERSION").split(".")[-1])')
    stamp="$version $machine $glibc $(cksum <"$list") $(cksum <constraints.txt)"
    [ "$(cat "$into/.complete" 2>/dev/null)" = "$stamp" ] && return
    rm -rf "$into"
    mkdir -p "$into"
    for ((minor = glibc; minor >= 5; minor--)); do platforms+=(--platform "manylinux_2_${minor}_$machine"); done
    platforms+=(--platform "manylinux2014_$machine")
    say "Fetching wheels of the $kind image for Python $version on $machine ..."
    # pip itself, as pinned, so that the image needs none of its own.
    awk '/^pip==/ { on = 1 } on { print } on && !/\\$/ { exit }' constraints.txt >"$into/pip.txt"
    for requirements in "$into/pip.txt" "$list"; do
        "${pip[@]}" download -qq --progress-bar off --require-hashes --no-deps --only-binary :all: \
            --python-version "$version" --implementation cp "${platforms[@]}" --dest "$into" -r "$requirements" \
            || fail "pip could not fetch the wheels of $list; its messages are above."
    done
    rm "$into/pip.txt"
    echo "$stamp" >"$into/.complete"
}

build() {
    local kind=$1 base=$2 tag hash previous started=$SECONDS
    tag=$(tag_of "$kind")
    hash=$(inputs_hash "$kind" "$(docker image inspect --format '{{.Id}}' "$base")")
    if [ "$force" = 0 ] && [ "$(docker image inspect --format '{{index .Config.Labels "desk.inputs"}}' "$tag" 2>/dev/null)" = "$hash" ]; then
        say "$tag is up to date ($(size_of "$tag"))."
        return
    fi
    fetch_wheels "$kind" "$base"
    say "Building $tag on $base ..."
    previous=$(docker image inspect --format '{{.Id}}' "$tag" 2>/dev/null || true)
    docker build --network none --file "Dockerfile.$kind" --build-arg BASE="$base" --label desk.inputs="$hash" \
        --tag "$tag" . 2>&1 | sed -u -n -E -e 's/^((Step [0-9]+|#[0-9]+ \[).{0,90}).*/  \1/p' -e '/[Ee]rror|ERROR|returned a non-zero/p' \
        || fail "docker build of Dockerfile.$kind failed; its messages are above."
    # The image it replaces; one that a container still uses stays.
    [ -z "$previous" ] || docker image rm "$previous" >/dev/null 2>&1 || true
    say "$tag is ready ($(size_of "$tag"), $((SECONDS - started)) s)."
}

size_of() { docker image inspect --format '{{.Size}}' "$1" | awk '{ printf "%d MB", $1 / 1000000 }'; }

force=0 kinds=()
for argument in "$@"; do
    case $argument in
        --force) force=1 ;;
        strategy | server) kinds+=("$argument") ;;
        *) fail "unknown image \"$argument\". Choose: strategy, server." ;;
    esac
done
[ "${#kinds[@]}" -gt 0 ] || kinds=(strategy server)
[ -x .venv/bin/python ] || fail "no .venv here. First: make install"
deploy/engine.sh --check || fail "no Docker engine answers. First: make engine"
# A client without the buildx plugin can only use the classic builder.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0

mkdir -p .wheels
exec 8>.wheels/.lock
flock 8    # one build at a time: a second one then finds everything up to date

base=$(deploy/base-image.sh)
for kind in "${kinds[@]}"; do build "$kind" "$base"; done
