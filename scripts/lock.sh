#!/bin/sh
# Regenerates requirements.lock (what the service needs) and requirements-dev.lock (that, the tools
# and tests, and what builds the package). Pins that still fit are kept; UPGRADE=1 takes the newest.
set -eu
cd "$(dirname -- "$0")/.."
uv_version=0.13.9

if [ -z "${UV:-}" ]; then
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT INT TERM
    "$(scripts/find-python.sh)" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
    UV="$tools/bin/uv"
fi

# --universal: one file for every interpreter and machine, with the hashes of all their wheels.
# Without the machine's uv configuration, and writing no header, index or link.
compile() {
    env -u UV_FIND_LINKS -u UV_INDEX -u UV_EXTRA_INDEX_URL \
        "$UV" pip compile --quiet --no-config --universal --python-version 3.11 \
        --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
        --custom-compile-command 'make lock' ${UPGRADE:+--upgrade} "$@" >/dev/null
}

build_requirements() {
    "$(scripts/find-python.sh)" -c '
import pathlib, tomllib
print("\n".join(tomllib.loads(pathlib.Path("pyproject.toml").read_text())["build-system"]["requires"]))
'
}

compile pyproject.toml -o requirements.lock
build_requirements | compile --extra dev -c requirements.lock pyproject.toml - -o requirements-dev.lock

if grep -nE '://|--(index|extra-index|find-links)' requirements.lock requirements-dev.lock; then
    echo 'lock: a lock file names a download address' >&2
    exit 1
fi
