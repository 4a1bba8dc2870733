"""Secrets and claims through every path, then looked for in everything that the service writes."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.http import JSON, Answer
from tests.support.load import wait_until
from tests.support.postgres import PostgresServer
from tests.support.service import Installation, Server, environment, free_port
from tests.support.softhsm import Token, provision

SIGN, VERIFY = "/v1/keysets/demo/sign/jwt", "/v1/keysets/demo/verify"

# A bug wherever one can be, with a canary in its message and in the variables around it.
BUGS = """
import flask
from kmsjwks.services.planning import Planner
from kmsjwks.services.signing import SigningService

sign, tick, wsgi = SigningService.sign_jwt, Planner.{tick}, flask.Flask.wsgi_app

def buggy_sign(self, caller, keyset, request):
    if "bug" in request.claims:
        claims = request.claims
        raise RuntimeError(f"cannot sign {{claims}}") from ValueError(claims["bug"])
    return sign(self, caller, keyset, request)

def buggy_tick(self, *arguments, **named):
    raise RuntimeError("{dsn}")

def buggy_wsgi(self, environ, start):
    if "HTTP_XBUG" in environ:
        raise RuntimeError(environ["HTTP_XBUG"])
    return wsgi(self, environ, start)

SigningService.sign_jwt, Planner.{tick}, flask.Flask.wsgi_app = buggy_sign, buggy_tick, buggy_wsgi
"""


@dataclass
class Canaries:
    """What must not be seen, by what it is."""

    values: dict[str, str] = field(default_factory=dict)

    def new(self, what: str) -> str:
        self.values[what] = f"c4n4ry{secrets.token_hex(10)}"
        return self.values[what]

    def seen_in(self, text: bytes, *but: str) -> set[str]:
        """Those that are in ``text``, as they are or in base64, left out ``but``."""
        return {
            what
            for what, value in self.values.items()
            if what not in but and any(form in text for form in _forms(value.encode()))
        }


def _forms(value: bytes) -> Iterator[bytes]:
    yield value
    yield value.hex().encode()
    for before in range(3):  # wherever it stands in what is encoded
        coded = base64.urlsafe_b64encode(b"x" * before + value)
        yield coded[4:-4]


@dataclass
class Place:
    """An installation whose every secret is a canary, and all that it answered."""

    installation: Installation
    canaries: Canaries
    environ: dict[str, str]
    token: Token
    answers: list[tuple[Answer, tuple[str, ...]]] = field(default_factory=list)

    def heard(self, answer: Answer, *echoes: str) -> Answer:
        """``echoes``: canaries that the caller gave and is told again."""
        self.answers.append((answer, echoes))
        return answer

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.installation.command(*words), capture_output=True, text=True, check=False,
            timeout=60, env=environment() | self.environ,
        )  # fmt: skip
        assert self.canaries.seen_in((done.stdout + done.stderr).encode()) == set()
        return done

    def written(self) -> dict[str, bytes]:
        """Logs, audit files, state, last known good documents, anything beside them."""
        directory = self.installation.directory
        return {
            str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file() and path != self.installation.config
        }

    def leaks(self) -> dict[str, set[str]]:
        found = {name: self.canaries.seen_in(text) for name, text in self.written().items()}
        for answer, echoes in self.answers:
            text = str(answer.headers).encode() + answer.body
            found[f"{answer.status} {answer.body[:200]!r}"] = self.canaries.seen_in(text, *echoes)
        return {where: seen for where, seen in found.items() if seen}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Place:
    canaries, directory = Canaries(), tmp_path_factory.mktemp("canary")
    token = _token(directory / "token", canaries.new("PIN"))
    options = {name: one for name, one in token.options().items() if name != "pin_file"}
    installation = Installation(directory / "service", options)
    canaries.values["bearer token"] = installation.tokens["all"]
    canaries.values["other bearer token"] = installation.tokens["team"]
    with installation.config.open("a") as config:
        config.write(
            f'[metrics]\nport = {free_port()}\n[logging]\nlevel = "debug"\nformat = "text"\n'
            '[publication]\ntargets = ["s3://documents"]\n'
            f's3_endpoint = "http://127.0.0.1:{free_port()}"\n'
        )
    environ = {
        "KMSJWKS_BACKENDS__TOKEN__PIN_VALUE": canaries.values["PIN"],
        "KMSJWKS_BACKENDS__TOKEN__ALLOW_INLINE_PIN": "true",
        "KMSJWKS_DATABASE__URL": _database(postgres_server, canaries.new("DSN password")),
        "AWS_ACCESS_KEY_ID": canaries.new("AWS access key"),
        "AWS_SECRET_ACCESS_KEY": canaries.new("AWS secret"),
        "AWS_SESSION_TOKEN": canaries.new("AWS session token"),
        "AWS_REGION": "eu-central-1",
        "PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]),
    }
    made = Place(installation, canaries, environ, token)
    done = made.cli("keysets", "create", "demo", "--algorithm", "ES256")
    assert done.returncode == 0, done.stderr
    bugs = BUGS.format(dsn=environ["KMSJWKS_DATABASE__URL"], tick="tick")
    (directory / "sitecustomize.py").write_text(bugs)
    return made


def _token(directory: Path, pin: str) -> Token:
    directory.mkdir(mode=0o700)
    (directory / "user.pin").write_text(f"{pin}\n")
    (directory / "user.pin").chmod(0o600)
    return provision(directory)


def _database(server: PostgresServer, password: str) -> str:
    name = server.create_database()
    role = f"canary_{name}"
    server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    server.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    return server.url(name).replace(
        server.url(name).split("@")[0], f"postgresql://{role}:{password}"
    )


@pytest.fixture(scope="module")
def running(place: Place) -> Iterator[Server]:
    server = Server(place.installation, environ=place.environ)
    server.start()
    yield server
    server.kill_all()


def test_requests(place: Place, running: Server) -> None:
    """Signed, refused, malformed, too big, of nobody; and a bug in the middle."""
    canaries, own = place.canaries, running.http("all")
    value = canaries.new("claim value")
    name, header = canaries.new("claim name"), canaries.new("header value")
    claims = {"sub": value, name: value}
    signed = own.post(SIGN, {"claims": claims})
    assert signed.status == 200, signed.body
    token = signed.json()["token"]
    assert own.post(VERIFY, {"token": token}).json()["claims"][name] == value
    canaries.values["signature"] = token.rpartition(".")[2]

    refused = {
        403: [running.http("team").post(SIGN, {"claims": claims})],
        401: [
            running.http().request("POST", SIGN, b"{}", {"Authorization": f"{scheme} {one}"})
            for scheme in ("Bearer", "Basic", "bearer ")
            for one in (token, token[:-5], canaries.new(f"unknown token {scheme}"))
        ],
        400: [
            own.request("POST", SIGN, body % value.encode(), JSON)
            for body in (b'{"claims": {"a": "%s"', b'{"claims": {"a": "%s", "a": 1}}', b'["%s"]',
                         b'{"claims": {"a": NaN, "b": "%s"}}', b'{"claims": "%s"}', b'%s')
        ],
        413: [own.post(SIGN, {"claims": {"a": value * 100_000}})],
        415: [own.request("POST", SIGN, value.encode(), {"Content-Type": f"text/{header}"})],
    }  # fmt: skip
    for answers in refused.values():
        for answer in answers:
            assert 400 <= answer.status < 500, answer.body
            place.heard(answer)
    for body in (
        {"claims": {**claims, "exp": value}},
        {"claims": {**claims, "iss": value}},
        {"claims": {**claims, "aud": [value]}},
        {"claims": {**claims, "nbf": value}},
        {"claims": {**claims, "a": 2**70}},
        {"claims": claims, "headers": {"kid": value}},
        {"claims": claims, "headers": {name: value}},
        {"claims": claims, "ttl": 10**9},
        {"claims": claims, name: value},
    ):
        answer = own.post(SIGN, body)
        if answer.status != 200:
            place.heard(answer, "claim name")
    for one in (token[:-4], f"{token}.{value}", value, "e30.e30." + value):
        assert own.post(VERIFY, {"token": one}).status < 500
    for path in (f"/{value}", f"/v1/keysets?access_token={token}", f"/healthz?x={value}"):
        place.heard(own.get(path, {"X-Secret": header, "Cookie": header, "Client-Cert": header}))
    for path in ("/v1/keysets", "/v1/keysets/demo", "/.well-known/jwks.json", "/readyz"):
        place.heard(own.get(path))

    bug = place.heard(own.post(SIGN, {"claims": {"bug": value}}))
    assert bug.status == 500
    with suppress(OSError):  # the server may as well close
        place.heard(running.http("all").request("POST", SIGN, b"{}", {**JSON, "XBug": value}))
    wait_until(lambda: "RuntimeError" in running.logged(), 5, "bugs in the log")
    assert place.leaks() == {}


def test_the_command_line(place: Place) -> None:
    for words in (["keysets", "list"], ["doctor"], ["keys", "list", "demo"], ["jwks", "get"]):
        place.cli(*words)
    assert place.leaks() == {}


def test_metrics(place: Place, running: Server) -> None:
    port = int(place.installation.config.read_text().partition("[metrics]\nport = ")[2].split()[0])
    server = Server(place.installation, port=port)
    wait_until(lambda: place.heard(server.http().get("/metrics")).status == 200, 5, "metrics")
    assert running.process.poll() is None
    assert place.leaks() == {}


def test_the_database_and_s3_are_down(
    place: Place, running: Server, postgres_server: PostgresServer
) -> None:
    with postgres_server.down():
        wait_until(lambda: "Going on with the last known keys" in running.logged(), 10, "an error")
        assert running.sign("demo").status == 200
        failed = place.cli("keysets", "list")
        assert failed.returncode != 0
    wait_until(lambda: "Publication failed" in running.logged(), 10, "a failed publication")
    assert place.leaks() == {}


def test_the_audit_directory_is_gone(place: Place, running: Server) -> None:
    directory = place.installation.audit_directory
    aside = directory.with_name("audit-aside")
    directory.rename(aside)
    directory.touch()
    try:
        for pid in running.worker_pids():
            os.kill(pid, signal.SIGKILL)  # new ones have no open file
        claims = {"sub": place.canaries.values["claim value"]}
        wait_until(lambda: _status(running) == 503, 10, "refusal")
        place.heard(running.sign("demo", claims))
    finally:
        directory.unlink()
        aside.rename(directory)
    wait_until(lambda: _status(running) == 200, 20, "recovery")
    assert place.leaks() == {}


def _status(server: Server) -> int:
    try:
        return server.sign("demo").status
    except OSError:
        return 0


@pytest.mark.parametrize("what", ["a wrong PIN", "no token"])
def test_the_token_refuses(place: Place, what: str) -> None:
    environ = {**place.environ, "KMSJWKS_METRICS__PORT": str(free_port())}
    tokens = place.token.directory / "tokens"
    if what == "a wrong PIN":
        environ["KMSJWKS_BACKENDS__TOKEN__PIN_VALUE"] = place.canaries.new("wrong PIN")
    else:
        tokens.rename(tokens.with_name("gone"))
        tokens.mkdir(0o700)
    server = Server(place.installation, port=free_port(), environ=environ)
    server.launch()
    try:
        wait_until(lambda: _status(server) == 503, 15, "refusal")
        place.heard(server.sign("demo"))
        wait_until(lambda: "backend" in server.logged(), 5, "a log line")
    finally:
        server.kill_all()
        if what == "no token":
            shutil.rmtree(tokens)
            tokens.with_name("gone").rename(tokens)
    assert place.leaks() == {}


def test_processes_and_core_files(place: Place, running: Server) -> None:
    pids = [running.process.pid, *running.worker_pids()]
    for pid in pids:
        for name in ("environ", "cmdline", "status"):
            with suppress(PermissionError):  # the kernel keeps it even from us
                assert place.canaries.seen_in(Path(f"/proc/{pid}/{name}").read_bytes()) == set()
    before = set(Path.cwd().glob("*core*"))
    os.kill(running.worker_pids()[0], signal.SIGABRT)
    wait_until(lambda: pids[1:] != running.worker_pids(), 5, "the end of a worker")
    assert set(Path.cwd().glob("*core*")) == before
    assert place.leaks() == {}


@pytest.mark.parametrize("what", ["PIN", "DSN password", "claim value", "bearer token"])
def test_a_canary_would_be_found(place: Place, what: str) -> None:
    """Planted in a log, an audit file and an answer."""
    if what not in place.canaries.values:
        place.canaries.new(what)
    value, directory = place.canaries.values[what], place.installation.directory
    coded = base64.urlsafe_b64encode(f"..{value}..".encode()).decode()
    for file, text in (("serve-planted.log", value), ("audit/planted.jsonl", coded)):
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(f"before {text} after")
        assert place.leaks().pop(file) == {what}
        (directory / file).unlink()
