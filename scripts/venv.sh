#!/bin/sh
# Builds .venv from requirements-dev.lock and puts this checkout into it. Does nothing when .venv
# is up to date. `--fresh` only tells, by its exit code, whether it is.
set -eu
cd "$(dirname -- "$0")/.."
here=$(pwd)
lock=requirements-dev.lock
stamp=.venv/.kmsjwks

# Environments cannot be moved, so the place is part of what must match.
same_environment() {
    cmp -s "$lock" "$stamp/$lock" || return 1
    [ "$(cat "$stamp/place" 2>/dev/null)" = "$here" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(scripts/find-python.sh)" = "$(cat "$stamp/python")" ] || return 1
    .venv/bin/python -I -c '' 2>/dev/null
}

same_project() {
    cmp -s pyproject.toml "$stamp/pyproject.toml"
}

fresh() {
    same_environment && same_project
}

pip() {
    PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip "$@"
}

# Every package comes as a wheel whose hash is in the lock file; nothing is compiled here.
install_environment() {
    python=$(scripts/find-python.sh)
    printf 'kmsjwks: building .venv with %s\n' "$python" >&2
    "$python" -m venv --clear .venv
    if ! pip install --quiet --require-hashes --only-binary :all: -r "$lock" >&2; then
        printf 'kmsjwks: .venv could not be filled from %s (see above). It covers CPython 3.11 to\n3.14 on Linux, x86_64 and aarch64.\n' "$lock" >&2
        exit 1
    fi
    mkdir -p "$stamp"
    printf '%s\n' "$python" >"$stamp/python"
    printf '%s\n' "$here" >"$stamp/place"
    cp "$lock" "$stamp/$lock"
}

# No build isolation: that would fetch a setuptools that is not pinned.
install_project() {
    pip install --quiet --no-deps --no-build-isolation --editable . >&2
    cp pyproject.toml "$stamp/pyproject.toml"
}

if [ "${1:-}" = --fresh ]; then
    fresh
    exit
fi
if command -v flock >/dev/null; then
    exec 9<scripts/venv.sh
    flock 9
fi
if fresh; then exit 0; fi
same_environment || install_environment
install_project
