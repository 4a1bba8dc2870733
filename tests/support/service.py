"""The real service for tests: a configuration file, `kmsjwks serve`, and the CLI beside it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.http import Answer, Http

PROGRAM = Path(sys.executable).with_name("kmsjwks")
_START_TIMEOUT = 20.0  # seconds

# Grants of the clients that every service of the tests has.
GRANTS: Mapping[str, Sequence[Mapping[str, Sequence[str]]]] = {
    "all": [{"actions": ["sign", "verify", "read"], "keysets": ["*"]}],
    "team": [{"actions": ["sign"], "keysets": ["team-*"]}],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Installation:
    """A configuration and its state in one directory; what the CLI and servers share."""

    def __init__(self, directory: Path, backend: Mapping[str, Any], **server: Any) -> None:
        """``backend`` is the table [backends.token] without ``type``; ``server`` adds to the
        table [server]."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory, self.port = directory, free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.config = directory / "kmsjwks.toml"
        self.tokens = {name: secrets.token_urlsafe(24) for name in GRANTS}
        self.config.touch(0o600)  # tests put passwords into it
        self.config.write_text(
            _toml({"port": self.port, "base_url": self.base_url, **server}, self.tokens, backend)
        )

    @property
    def audit_directory(self) -> Path:
        return self.directory / "audit"

    @property
    def database(self) -> Path:
        return self.directory / "kmsjwks.db"

    def cli(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, check=False,
            timeout=60, env=environment(),
        )  # fmt: skip

    def command(self, *words: str) -> list[str]:
        return [str(PROGRAM), "--config", str(self.config), *words]

    def create_keyset(self, name: str, algorithm: str, *options: str) -> dict[str, Any]:
        words = ("keysets", "create", name, "--algorithm", algorithm, *options)
        done = self.cli("-o", "json", *words)
        assert done.returncode == 0, done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    def audit_lines(self) -> int:
        """Records of released tokens."""
        files = self.audit_directory.glob("*.jsonl")
        return sum(file.read_bytes().count(b'{"event":"jwt.signed"') for file in files)


def environment() -> dict[str, str]:
    """Ours without settings of the service, which would change what is tested."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KMSJWKS_")}


class Server:
    """One `kmsjwks serve` process with its workers, in a session of their own."""

    def __init__(
        self,
        installation: Installation,
        *,
        port: int | None = None,
        workers: int = 2,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``environ`` is added to its environment."""
        self.installation, self.workers, self._environ = installation, workers, dict(environ or {})
        self.port = port or installation.port
        self.log = installation.directory / f"serve-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Start it without waiting until it answers."""
        words = ("serve", "--port", str(self.port), "--workers", str(self.workers))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.installation.command(*words), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=environment() | self._environ, start_new_session=True,
            )  # fmt: skip

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def wait_ready(self, timeout: float = _START_TIMEOUT) -> None:
        """Until each worker knows its keys. Which one gets a connection is the kernel's choice;
        request ids tell them apart."""
        deadline, ready = time.monotonic() + timeout, set[str]()
        while len(ready) < self.workers:
            assert self.process.poll() is None, f"serve ended at once: {self.logged()}"
            answer = self._readiness()
            if answer is not None and answer.status == 200:
                ready.add(_worker_of(answer))
            else:
                time.sleep(0.05)
            assert time.monotonic() < deadline, f"not ready in time: {self.logged()}"

    def _readiness(self) -> Answer | None:
        try:
            return self.http().get("/readyz")
        except OSError:
            return None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill_all(self) -> None:
        """What a test leaves running, if anything."""
        if self._process is not None:
            _kill(self._process.pid)  # first, because it replaces workers
            self._process.wait(10)
            for pid in self.worker_pids():
                _kill(pid)

    def worker_pids(self) -> list[int]:
        """Every process of this server but the first, zombies left out."""
        return sorted(pid for pid in _session_members(self.process.pid) if pid != self.process.pid)

    def kill_worker(self) -> None:
        workers = self.worker_pids()
        if workers:
            _kill(secrets.choice(workers))

    def logged(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def http(self, client: str | None = None, timeout: float = 10.0) -> Http:
        """A client with its own connection; ``client`` names one of ``GRANTS``."""
        token = self.installation.tokens[client] if client else None
        return Http(self.port, token, timeout)

    def sign(self, keyset: str, claims: Mapping[str, Any] | None = None, **more: Any) -> Answer:
        body = {"claims": {"sub": "alice", **(claims or {})}, **more}
        return self.http("all").post(f"/v1/keysets/{keyset}/sign/jwt", body)

    def wait_until_each_worker_signs(self, keyset: str, timeout: float = _START_TIMEOUT) -> None:
        """Then each has opened its backend, too."""
        deadline, seen = time.monotonic() + timeout, set[str]()
        while len(seen) < self.workers:
            answer = self.sign(keyset)
            if answer.status == 200:
                seen.add(_worker_of(answer))
            assert time.monotonic() < deadline, f"only {len(seen)} workers sign: {self.logged()}"


def _worker_of(answer: Answer) -> str:
    return answer.headers["X-Request-Id"].rpartition("-")[0]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _session_members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        state, session_id = fields[0], int(fields[3])
        if session_id == session and state != "Z":
            found.append(int(entry.name))
    return found


def _toml(server: Mapping[str, Any], tokens: Mapping[str, str], backend: Mapping[str, Any]) -> str:
    clients = "\n".join(
        f"[clients.{name}]\n"
        f"token_sha256 = {_value([hashlib.sha256(token.encode()).hexdigest()])}\n"
        f"grants = {_value(GRANTS[name])}\n"
        for name, token in tokens.items()
    )
    return f"""
[server]
{_members(server)}
[database]
url = "sqlite:///kmsjwks.db"
[state]
directory = "state"
[audit]
directory = "audit"
[snapshot]
refresh_interval = 0.5
[backends.token]
type = "pkcs11"
{_members(backend)}
{clients}"""


def _members(table: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {_value(value)}" for name, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
