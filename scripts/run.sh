#!/bin/sh
# The end of `make run`: provisions the token, configures the demo under ./var and serves it in
# the foreground until interrupted.
set -eu
umask 077
cd "$(dirname -- "$0")/.."
root=$(pwd)
port=${PORT:-8080}
base_url=http://127.0.0.1:$port
python=.venv/bin/python
token=var/demo-client.token
config=var/kmsjwks.toml

kmsjwks() {
    .venv/bin/kmsjwks "$@"
}

client_hash() {
    if [ -s "$token" ]; then
        kmsjwks clients hash "$token"
    else
        kmsjwks clients token --out "$token"
    fi
}

# Relative paths in it, and {base}, start from its own directory.
write_config() {
    new=$(mktemp var/.kmsjwks.toml.XXXXXX)
    cat >"$new" <<TOML
# Written by \`make run\` at every start. To keep changes, copy it and serve the copy.

[server]
host = "127.0.0.1"
port = $port
base_url = "$base_url"

[database]
url = "sqlite:///kmsjwks.db"

[state]
directory = "state"

[audit]
directory = "audit"

[backends.softhsm]
type = "pkcs11"
module_path = "$(cat var/softhsm/module.path)"
token_label = "kmsjwks"
pin_file = "softhsm/user.pin"
environment = { SOFTHSM2_CONF = "{base}/softhsm/softhsm2.conf" }
prepare_command = ["{base}/../softhsm/provision.sh", "--heal", "{base}/softhsm"]

[clients.demo]
token_sha256 = ["$hash"]
grants = [{ actions = ["sign", "verify", "read"], keysets = ["demo"] }]
TOML
    mv -f "$new" "$config"
}

"$python" scripts/port_free.py "$port"
mkdir -p var
PYTHON=$python softhsm/provision.sh var/softhsm
hash=$(client_hash)
write_config
kmsjwks --config "$config" keysets ensure demo --algorithm ES256 --backend softhsm \
    --issuer "$base_url" --audience '*' --max-lifetime 1h >&2

# Adopted by init, so that the server, which this process becomes, has no child to reap. It ends
# when it has spoken or when this process is gone.
("$python" scripts/announce.py "$$" "$port" "$root" &)
exec .venv/bin/kmsjwks --config "$config" serve
