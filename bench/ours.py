"""The real `kmsjwks serve`, default configuration, on a SoftHSM token or a KMS endpoint."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import children, noise
from bench.model import Refused
from bench.places import ROOT
from bench.wrk import Request
from tests.support.service import free_port
from tests.support.softhsm import Token

_PROGRAM = Path(sys.executable).with_name("kmsjwks")
_CLAIMS: Mapping[str, str] = {
    "sub": "user-4711",
    "aud": "https://api.example.com",
    "scope": "orders:read",
}
_IMPORTS = {"PYTHONPATH": str(ROOT)}


@dataclass(frozen=True, slots=True)
class Keyset:
    """``issuer`` is added to the base URL."""

    name: str
    algorithm: str
    backend: str = "softhsm"
    issuer: str = ""


class Service:
    """One installation in a directory; one client with a bearer token may sign everything."""

    def __init__(self, directory: Path, tables: str, environ: Mapping[str, str] | None = None):
        """``tables``: what the configuration has beyond port, places and the client."""
        directory.mkdir(mode=0o700, parents=True)
        self.directory, self.port, self._environ = directory, free_port(), dict(environ or {})
        self.token = secrets.token_urlsafe(32)
        self._config = directory / "kmsjwks.toml"
        self._config.touch(0o600)
        self._config.write_text(
            f"""[server]
port = {self.port}
[database]
url = "sqlite:///kmsjwks.db"
[state]
directory = "state"
[clients.bench]
token_sha256 = ["{hashlib.sha256(self.token.encode()).hexdigest()}"]
grants = [{{ actions = ["sign"], keysets = ["*"] }}]
{tables}
"""
        )

    def make_keysets(self, keysets: Sequence[Keyset]) -> None:
        wanted = self.directory / "keysets.json"
        wanted.write_text(
            json.dumps([[one.name, one.algorithm, one.backend, one.issuer] for one in keysets])
        )
        words = [sys.executable, "-m", "bench.make_keysets", str(self._config), str(wanted)]
        children.output(words, _IMPORTS | self._environ, timeout=3600)

    @contextmanager
    def serving(self, keyset: str, workers: int = 2) -> Iterator[subprocess.Popen[bytes]]:
        """Until every worker of it signs with ``keyset``."""
        words = [str(_PROGRAM), "--config", str(self._config), "serve", "--workers", str(workers)]
        log = self.directory / "serve.log"
        with children.running(words, log, _IMPORTS | self._environ) as child:
            children.wait_for(child, self.port, "/readyz", log)
            self.check(self.sign(keyset))
            yield child

    def seconds_to_first_token(self, keyset: str) -> float:
        words = [str(_PROGRAM), "--config", str(self._config), "serve", "--workers", "2"]
        request, log, began = self.sign(keyset), self.directory / "start.log", time.monotonic()
        with children.running(words, log, _IMPORTS | self._environ):
            while time.monotonic() < began + 60:
                try:
                    answer = children.ask(
                        self.port, "POST", request.path, request.body, request.headers
                    )
                except OSError:
                    time.sleep(0.005)
                    continue
                if answer[0] == 200:
                    return time.monotonic() - began
                time.sleep(0.005)
        raise Refused(f"no token within 60 s: {log.read_text('utf-8', 'replace')[-500:]}")

    def sign(self, keyset: str, claims: Mapping[str, str] = _CLAIMS) -> Request:
        path, body = f"/v1/keysets/{keyset}/sign/jwt", json.dumps({"claims": claims})
        return Request(self.port, path, "POST", body, self._headers())

    def sign_batch(self, keyset: str, items: int) -> Request:
        body = {"items": [{"reference": str(n), "claims": _CLAIMS} for n in range(items)]}
        path = f"/v1/keysets/{keyset}/sign/jwt/batch"
        return Request(self.port, path, "POST", json.dumps(body), self._headers(), refuse='"error"')

    def jwks(self) -> Request:
        return Request(self.port, "/.well-known/jwks.json")

    def jwks_not_modified(self) -> Request:
        _, _, headers = children.ask(self.port, "GET", "/.well-known/jwks.json")
        path = "/.well-known/jwks.json"
        return Request(self.port, path, headers={"If-None-Match": headers["etag"]}, expect=(304,))

    def check(self, request: Request) -> bytes:
        """One answer as it should be.

        Raises:
            Refused: it is not.
        """
        status, body, _ = children.ask(
            request.port, request.method, request.path, request.body, request.headers
        )
        if status not in request.expect or (request.refuse and request.refuse in body.decode()):
            raise Refused(f"{request.path} answers {status}: {body[:300].decode(errors='replace')}")
        return body

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}


def softhsm_tables(token: Token) -> str:
    options = token.options()
    environment = options.pop("environment")
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    inline = ", ".join(f"{name} = {json.dumps(value)}" for name, value in environment.items())
    lines.append(f"environment = {{ {inline} }}")
    return "\n".join(
        ["[audit]", 'directory = "audit"', "[backends.softhsm]", 'type = "pkcs11"', *lines]
    )


def worker_megabytes(server: subprocess.Popen[bytes]) -> float:
    """Resident memory (VmRSS) of the largest worker, in units of 10^6 bytes."""
    sizes = []
    for pid in noise.descendants(server.pid):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        sizes += [int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmRSS:"]
    if not sizes:
        raise Refused("the server has no workers")
    return max(sizes) * 1024 / 1e6
