"""The bare peers: raw C; a WSGI callable, FastAPI and Node services on SoftHSM; boto3 alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import children
from bench.model import Absent, Metrics
from bench.places import BENCH, CACHE, NODE, PEERS
from bench.wrk import Request
from tests.support.service import free_port
from tests.support.softhsm import Token

_PEERS = BENCH / "peers"


@dataclass(frozen=True, slots=True)
class Raw:
    """The C loop, on a token of its own."""

    program: Path
    token: Token

    def measure(self, algorithm: str, processes: int, seconds: int) -> Metrics:
        words = [str(self.program), self.token.module, self.token.label,
                 str(self.token.pin_file), algorithm, str(processes), str(seconds)]  # fmt: skip
        return _rate(children.output(words, {"SOFTHSM2_CONF": str(self.token.conf)}))


def compile_raw(token: Token) -> Raw:
    """
    Raises:
        Absent: there is no C compiler.
        Refused: it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Absent("there is no C compiler (apt-get install gcc libc6-dev)")
    CACHE.mkdir(exist_ok=True)
    program = CACHE / "sign"
    source = str(BENCH / "raw" / "sign.c")
    words = [compiler, "-O2", "-std=c11", "-D_GNU_SOURCE", "-o", str(program), source, "-ldl"]
    children.output(words)
    raw = Raw(program, token)
    raw.measure("ES256", 1, 1)  # makes the key that the services below use too
    return raw


@contextmanager
def fastapi(raw: Raw, directory: Path) -> Iterator[Request]:
    """FastAPI on uvicorn with uvloop and httptools, two processes behind one port."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        raise Absent("the peers' virtual environment is missing")
    port, log = free_port(), directory / "fastapi.log"
    words = [str(python), "-m", "uvicorn", "fastapi_app:app", "--port", str(port), "--workers",
             "2", "--no-access-log", "--log-level", "warning",
             "--app-dir", str(_PEERS)]  # fmt: skip
    with children.running(words, log, _environ(raw.token)) as child:
        children.wait_for(child, port, "/", log)
        yield _request(port)


@contextmanager
def node(raw: Raw, directory: Path) -> Iterator[Request]:
    program = shutil.which("node")
    if program is None or not (NODE / "node_modules" / "pkcs11js").is_dir():
        raise Absent("node, or pkcs11js and fastify from npm, are not installed")
    shutil.copy(_PEERS / "node" / "server.js", NODE / "server.js")
    port, log = free_port(), directory / "node.log"
    environ = {**_environ(raw.token), "BENCH_PORT": str(port), "BENCH_WORKERS": "2"}
    with children.running([program, str(NODE / "server.js")], log, environ) as child:
        children.wait_for(child, port, "/", log)
        yield _request(port)


@contextmanager
def callable_app(raw: Raw, algorithm: str, directory: Path) -> Iterator[Request]:
    """The server and the library that we use, with two processes, and nothing of ours."""
    raw.measure(algorithm, 1, 1)  # makes the key
    port, log = free_port(), directory / "callable.log"
    words = [str(Path(sys.executable).with_name("granian")), "callable_app:app", "--interface",
             "wsgi", "--workers", "2", "--blocking-threads", "16", "--port", str(port),
             "--log-level", "error", "--working-dir", str(_PEERS)]  # fmt: skip
    environ = {**_environ(raw.token), "BENCH_KEY": algorithm}
    with children.running(words, log, environ) as child:
        children.wait_for(child, port, "/", log)
        yield _request(port)


def _environ(token: Token) -> dict[str, str]:
    return {
        "SOFTHSM2_CONF": str(token.conf),
        "BENCH_MODULE": token.module,
        "BENCH_LABEL": token.label,
        "BENCH_PIN_FILE": str(token.pin_file),
        "BENCH_KEY": "ES256",
    }


def _request(port: int) -> Request:
    claims = {"sub": "user-4711", "aud": "https://api.example.com", "scope": "orders:read"}
    body, headers = json.dumps({"claims": claims}), {"Content-Type": "application/json"}
    return Request(port, "/sign", "POST", body, headers)


@contextmanager
def kms_stub(fake_port: int, state: Path, latency_ms: int, directory: Path) -> Iterator[int]:
    """The port of an endpoint that signs after ``latency_ms``."""
    python, port = _boto3_python(), free_port()
    log = directory / "kms-stub.log"
    words = [str(python), str(_PEERS / "kms_stub.py"), str(port), str(fake_port),
             str(latency_ms), str(state)]  # fmt: skip
    with children.running(words, log) as child:
        children.wait_for(child, port, "/", log, below=600)
        yield port


def boto3_alone(endpoint: str, key: str, processes: int, threads: int, seconds: int) -> Metrics:
    """``threads`` are those of one process."""
    words = [str(_boto3_python()), str(_PEERS / "boto3_loop.py"), endpoint, key, str(processes),
             str(threads), str(seconds)]  # fmt: skip
    return _rate(children.output(words))


def _boto3_python() -> Path:
    python = PEERS / "bin" / "python"
    if not python.exists():
        raise Absent("the peers' virtual environment is missing")
    return python


def _rate(text: str) -> Metrics:
    said: Mapping[str, float] = json.loads(text)
    return {"rate": said["count"] / said["seconds"]}
