#!/bin/sh
# Prints the path of the Python interpreter to build .venv with: the one PYTHON names, else the
# newest on PATH that requirements-dev.lock covers, one that can make a virtual environment first.
set -eu

# describe INTERPRETER: prints "MAJOR.MINOR CAN_MAKE_VENV PATH" if it runs and is CPython.
describe() {
    "$1" -I -c '
import importlib.util as u, platform, sys
can = all(u.find_spec(name) for name in ("venv", "ensurepip"))
if platform.python_implementation() == "CPython":
    print("%d.%d" % sys.version_info[:2], "yes" if can else "no", sys.executable)
' 2>/dev/null
}

covered() {
    case $1 in
        3.11 | 3.12 | 3.13 | 3.14) return 0 ;;
        *) return 1 ;;
    esac
}

advise() {
    cat >&2 <<'TEXT'
kmsjwks needs CPython 3.11, 3.12, 3.13 or 3.14, and finds none on PATH. Install one, or name it
with PYTHON=/path/to/python3.x, then run make again:
  Debian 12+, Ubuntu 24.04+:  apt-get install python3 python3-venv
  Ubuntu 22.04:               apt-get install python3.11 python3.11-venv   (component "universe")
  Fedora:                     dnf install python3
  Alpine:                     apk add python3
  Arch:                       pacman -S python
  Homebrew:                   brew install python@3.13
TEXT
    exit 1
}

if [ -n "${PYTHON:-}" ]; then
    found=$(describe "$PYTHON") || true
    if ! covered "${found%% *}"; then
        printf 'PYTHON=%s: %s; CPython 3.11 to 3.14 is needed.\n' "$PYTHON" "${found:-does not run}" >&2
        exit 1
    fi
    rest=${found#* }
    printf '%s\n' "${rest#* }"
    exit
fi

second_best=
for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
    command -v "$name" >/dev/null || continue
    found=$(describe "$name") || continue
    version=${found%% *}
    rest=${found#* }
    covered "$version" || continue
    if [ "${rest%% *}" = yes ]; then
        printf '%s\n' "${rest#* }"
        exit
    fi
    [ -n "$second_best" ] || second_best=${rest#* }
done
[ -n "$second_best" ] || advise
printf '%s\n' "$second_best"
