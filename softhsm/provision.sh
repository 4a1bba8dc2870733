#!/bin/sh
# Provisions a SoftHSM token for development and tests. See softhsm/README.md.
#
#   softhsm/provision.sh DIRECTORY [LABEL]   make the token, or leave it as it is
#   softhsm/provision.sh --heal DIRECTORY    restore token.object if a crash truncated it
#   softhsm/provision.sh --find-module       print the path of SoftHSM's PKCS#11 module
#
# SOFTHSM2_MODULE names the module when it is in an unusual place; PYTHON the interpreter to use.
set -eu
umask 077

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
default_label=kmsjwks

fail() {
    printf 'provision: %s\n' "$1" >&2
    exit 1
}

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

find_module() {
    if [ -n "${SOFTHSM2_MODULE:-}" ]; then
        [ -f "$SOFTHSM2_MODULE" ] || fail "SOFTHSM2_MODULE names $SOFTHSM2_MODULE, which is no file"
        printf '%s\n' "$SOFTHSM2_MODULE"
        return
    fi
    for candidate in \
        /usr/lib/softhsm/libsofthsm2.so \
        /usr/lib/*-linux-gnu*/softhsm/libsofthsm2.so \
        /usr/lib64/pkcs11/libsofthsm2.so \
        /usr/lib64/softhsm/libsofthsm2.so \
        /usr/lib64/libsofthsm2.so \
        /usr/lib/pkcs11/libsofthsm2.so \
        /usr/lib/libsofthsm2.so \
        /usr/local/lib/softhsm/libsofthsm2.so \
        /opt/homebrew/lib/softhsm/libsofthsm2.so; do
        if [ -f "$candidate" ]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail 'libsofthsm2.so not found: install softhsm2 (Debian, Ubuntu) or softhsm, or set SOFTHSM2_MODULE'
}

# write_file PATH MODE. Standard input becomes PATH in one step, only if it differs.
write_file() {
    temporary=$(mktemp "${1%/*}/.new.XXXXXX")
    cat >"$temporary"
    if cmp -s "$temporary" "$1"; then
        rm -f "$temporary"
    else
        chmod "$2" "$temporary"
        mv -f "$temporary" "$1"
    fi
}

# 24 random bytes in hexadecimal: 48 characters, every module takes them.
random_pin() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

ensure_pin() {
    [ -s "$1" ] && return
    [ "$have_token" = no ] || fail "$1 is missing but the token exists: put it back, or remove the
directory to start anew (that destroys its keys)"
    random_pin | write_file "$1" 600
}

# The path of the token's directory, or nothing. SoftHSM makes one directory a token.
token_directory() {
    for object in "$directory"/tokens/*/token.object; do
        if [ -e "$object" ]; then
            dirname -- "$object"
            return
        fi
    done
}

write_conf() {
    {
        printf 'directories.tokendir = %s\n' "$2"
        printf 'objectstore.backend = file\n'
        printf 'log.level = ERROR\n'
        printf 'slots.removable = false\n'
    } | write_file "$1" 600
}

# The token is initialised in a directory of its own and moved into place whole, so that an
# interruption leaves either no token or a finished one.
make_token() {
    staging=$(mktemp -d "$directory/.new.XXXXXX")
    mkdir "$staging/tokens"
    write_conf "$staging/softhsm2.conf" "$staging/tokens"
    SOFTHSM2_CONF="$staging/softhsm2.conf" "${PYTHON:-python3}" "$here/init_token.py" \
        "$module" "$label" "$directory/so.pin" "$directory/user.pin" ||
        fail 'the token could not be initialised'
    mv "$staging"/tokens/* "$directory/tokens/"
    rm -rf "$staging"
}

# SoftHSM rewrites token.object in place at every C_Login. Read-only, a process that is not root
# cannot damage it (SoftHSM goes on without writing); for root there is the copy.
protect_token() {
    token=$(token_directory)
    copy="$directory/backup/${token##*/}"
    mkdir -p "$copy"
    [ -e "$copy/token.object" ] || write_file "$copy/token.object" 400 <"$token/token.object"
    chmod 400 "$token/token.object"
}

size_of() {
    wc -c <"$1"
}

# Assumes that nobody logs in meanwhile: the caller holds the lock that serialises logins.
heal() {
    for copy in "$directory"/backup/*/token.object; do
        name=${copy%/token.object}
        token="$directory/tokens/${name##*/}"
        if [ ! -e "$copy" ] || [ ! -d "$token" ]; then continue; fi
        present=0
        [ ! -e "$token/token.object" ] || present=$(size_of "$token/token.object")
        if [ "$present" -lt "$(size_of "$copy")" ]; then
            write_file "$token/token.object" 400 <"$copy"
            printf 'provision: restored a truncated token.object\n' >&2
        fi
    done
}

check_label() {
    [ "$have_token" = yes ] || return 0
    [ -s "$directory/label" ] || return 0
    made_as=$(cat "$directory/label")
    [ "$label" = "$made_as" ] || fail "$directory holds the token '$made_as', not '$label'"
}

provision() {
    module=$(find_module)
    mkdir -p "$directory/tokens"
    chmod 700 "$directory" "$directory/tokens"
    command -v flock >/dev/null || fail 'flock not found: install util-linux'
    exec 9>"$directory/.lock"
    flock 9
    rm -rf "$directory"/.new.* "$directory"/*/*/.new.*
    heal
    have_token=no
    [ -z "$(token_directory)" ] || have_token=yes
    check_label
    ensure_pin "$directory/so.pin"
    ensure_pin "$directory/user.pin"
    printf '%s\n' "$label" | write_file "$directory/label" 600
    printf '%s\n' "$module" | write_file "$directory/module.path" 600
    write_conf "$directory/softhsm2.conf" "$directory/tokens"
    [ "$have_token" = yes ] || make_token
    protect_token
}

# absolute PATH. SoftHSM resolves its token directory from wherever the process runs.
absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s/%s\n' "$(pwd)" "$1" ;;
    esac
}

case ${1:-} in
    --find-module)
        find_module
        ;;
    --heal)
        [ $# -eq 2 ] || usage
        directory=$(absolute "$2")
        [ -d "$directory" ] || fail "$directory does not exist: run $0 $2 first"
        heal
        ;;
    '' | -*)
        usage
        ;;
    *)
        [ $# -le 2 ] || usage
        directory=$(absolute "$1")
        label=${2:-$default_label}
        provision
        ;;
esac
