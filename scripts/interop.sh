#!/bin/sh
# Has node's jose verify tokens of a running service: tests/interop.
set -eu
cd "$(dirname -- "$0")/.."
scripts/require.sh node

major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
if [ "$major" -lt 18 ]; then
    printf 'node %s is too old for jose: install node 18 or newer and put it first on PATH.\n' \
        "$(node --version)" >&2
    exit 1
fi
(cd tests/interop && npm ci --ignore-scripts --no-audit --no-fund)
exec .venv/bin/python -m pytest tests/interop "$@"
