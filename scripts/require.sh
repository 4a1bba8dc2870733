#!/bin/sh
# scripts/require.sh NEED...: makes sure that the system offers each NEED, installing the missing
# ones with apt-get. Where that cannot be done it says what to install and fails. Needs:
#   venv  softhsm  flock  curl  p11-kit  postgresql  node  nginx  wrk  gcc
# shellcheck disable=SC2086  # lists of packages and needs are split into words on purpose
set -eu
cd "$(dirname -- "$0")/.."

has_p11_kit() {
    command -v p11-kit >/dev/null || return 1
    for module in /usr/lib/*/pkcs11/p11-kit-client.so /usr/lib*/pkcs11/p11-kit-client.so \
        /opt/homebrew/lib/pkcs11/p11-kit-client.so; do
        [ ! -e "$module" ] || break
    done
    [ -e "$module" ] || return 1
    for server in /usr/libexec/p11-kit/p11-kit-server /usr/lib/p11-kit/p11-kit-server \
        /opt/homebrew/libexec/p11-kit/p11-kit-server; do
        [ ! -e "$server" ] || return 0
    done
    return 1
}

# The server's programs, in the places where tests/support/postgres.py looks.
has_postgresql() {
    for place in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/lib/postgresql*/bin \
        /usr/libexec/postgresql* /opt/homebrew/opt/postgresql@*/bin /usr/bin; do
        [ ! -e "$place/initdb" ] || [ ! -e "$place/postgres" ] || return 0
    done
    return 1
}

present() {
    case $1 in
        venv) scripts/venv.sh --fresh || "$python" -c 'import ensurepip, venv' 2>/dev/null ;;
        softhsm) softhsm/provision.sh --find-module >/dev/null 2>&1 && command -v softhsm2-util >/dev/null ;;
        p11-kit) has_p11_kit ;;
        postgresql) has_postgresql ;;
        node) command -v node >/dev/null && command -v npm >/dev/null ;;
        gcc) printf '#include <stdio.h>\n' | gcc -E - >/dev/null 2>&1 ;;
        nginx) command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# packages SYSTEM NEED: what provides NEED there.
packages() {
    case $1:$2 in
        debian:venv) venv_package ;;
        debian:softhsm) echo softhsm2 ;;
        debian:p11-kit) echo p11-kit p11-kit-modules ;;
        debian:gcc) echo gcc libc6-dev ;;
        debian:flock) echo util-linux ;;
        fedora:venv) echo python3 ;;
        fedora:flock) echo util-linux-core ;;
        fedora:p11-kit) echo p11-kit p11-kit-server ;;
        fedora:postgresql) echo postgresql-server ;;
        fedora:node) echo nodejs nodejs-npm ;;
        alpine:venv) echo python3 ;;
        alpine:p11-kit) echo p11-kit p11-kit-server ;;
        arch:venv) echo python ;;
        homebrew:venv) echo python@3.13 ;;
        homebrew:flock) echo flock ;;
        homebrew:postgresql) echo postgresql@17 ;;
        homebrew:node) echo node ;;
        *:flock) echo util-linux ;;
        *:node) echo nodejs npm ;;
        *:*) echo "$2" ;;
    esac
}

# The distribution splits ensurepip from each interpreter into a package of that version.
venv_package() {
    "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

all_packages() {
    system=$1
    shift
    for need in "$@"; do
        packages "$system" "$need"
    done | paste -s -d ' ' -
}

advise() {
    cat >&2 <<TEXT
kmsjwks needs what is missing here: $missing.
$1 Install it, then run make again:
  Debian, Ubuntu:  apt-get install $(all_packages debian $missing)
  Fedora:          dnf install $(all_packages fedora $missing)
  Alpine:          apk add $(all_packages alpine $missing)
  Arch:            pacman -S $(all_packages arch $missing)
  Homebrew:        brew install $(all_packages homebrew $missing)
TEXT
    exit 1
}

# Sets as_root to the command that runs another one as root (nothing for root itself).
become_root() {
    as_root=
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || return 1
    if ! sudo -n true 2>/dev/null; then
        [ -t 0 ] || return 1
        printf 'kmsjwks: sudo asks for your password to install: %s\n' "$wanted" >&2
        sudo -v || return 1
    fi
    as_root=sudo
}

apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >&2
}

listed() {
    for package in $wanted; do
        [ -n "$(apt-cache madison "$package" 2>/dev/null)" ] || return 1
    done
}

install_packages() {
    printf 'kmsjwks: installing %s\n' "$wanted" >&2
    if listed && apt install -y --no-install-recommends $wanted; then
        return 0
    fi
    apt update && apt install -y --no-install-recommends $wanted
}

python=
no_python=
missing=
for need in "$@"; do
    if [ "$need" = venv ] && ! scripts/venv.sh --fresh && ! python=$(scripts/find-python.sh); then
        no_python=yes
    elif ! present "$need"; then
        missing="$missing${missing:+ }$need"
    fi
done
[ -z "$no_python" ] || [ -z "$missing" ] || advise 'Python comes first (see above).'
[ -z "$no_python" ] || exit 1
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || advise 'This system has no apt-get, so make cannot install it.'
wanted=$(all_packages debian $missing)
become_root || advise 'Installing it takes root: this is neither root nor an account with sudo.'
install_packages || advise 'apt-get could not install it (see above).'
for need in $missing; do
    present "$need" || advise "The packages are installed, yet '$need' is still not found."
done
