"""Waits until the service of `make run` is ready, then prints three lines to paste.

Usage: announce.py PID PORT ROOT. PID is the server's: when it is gone there is nothing to wait for.
"""

from __future__ import annotations

import http.client
import os
import shlex
import sys
import time

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 120.0

VERIFY = (
    "import jwt,sys; t=sys.stdin.read(); "
    'k=jwt.PyJWKClient("{url}/.well-known/jwks.json").get_signing_key_from_jwt(t); '
    'print(jwt.decode(t, k, algorithms=["ES256"], issuer="{url}", audience="my-api"))'
)


def lines(port: int, root: str) -> tuple[str, str, str]:
    """Get a token, see the JWKS, verify the token; no secret on a command line."""
    url = f"http://127.0.0.1:{port}"
    token_file = shlex.quote(f"{root}/var/demo-client.token")
    python = shlex.quote(f"{root}/.venv/bin/python")
    body = '{"claims":{"sub":"alice","aud":"my-api"},"ttl":300}'
    get_token = (
        f"TOKEN=$(printf 'Authorization: Bearer %s' \"$(cat {token_file})\""
        f" | curl -sS -H @- -H 'Content-Type: application/json' -d '{body}'"
        f" {url}/v1/keysets/demo/sign/jwt"
        f" | {python} -c 'import json,sys; print(json.load(sys.stdin)[\"token\"])');"
        ' echo "$TOKEN"'
    )
    see_jwks = f"curl -sS {url}/.well-known/jwks.json"
    verify = f"printf %s \"$TOKEN\" | {python} -c '{VERIFY.format(url=url)}'"
    return get_token, see_jwks, verify


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> int:
    pid, port, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_alive(pid) and time.monotonic() < deadline:
        if is_ready(port):
            print("\nReady. Paste these into another terminal:\n")
            print("\n\n".join(lines(port, root)), end="\n\n", flush=True)
            return 0
        time.sleep(POLL_SECONDS)
    return 1


if __name__ == "__main__":
    sys.exit(main())
