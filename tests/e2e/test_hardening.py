"""What a serving process keeps to itself: its environment, its memory, its files; and answers that
tell nothing about which keysets exist."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kmsjwks.http.wsgi import InFlight, wsgi_callback
from tests.support.http import Answer
from tests.support.load import wait_until
from tests.support.service import Installation, Server, free_port
from tests.support.softhsm import Token, provision

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA" + secrets.token_hex(8),
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
    "AWS_SESSION_TOKEN": secrets.token_hex(20),
    "KMSJWKS_STATE__DIRECTORY": f"state-{secrets.token_hex(8)}",
    "PGPASSWORD": secrets.token_hex(8),
    "HTTPS_PROXY": f"http://user:{secrets.token_hex(8)}@proxy.invalid:3128",
    "SOMEBODYS_OTHER_VARIABLE": secrets.token_hex(8),
}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return provision(tmp_path_factory.mktemp("hardening") / "token")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, token: Token) -> Installation:
    made = Installation(tmp_path_factory.mktemp("hardening-service") / "own", token.options())
    with made.config.open("a") as config:
        config.write(f"[metrics]\nport = {free_port()}\n")
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture(scope="module")
def running(own: Installation) -> Iterator[Server]:
    server = Server(own, environ=SECRETS)
    server.start()
    wait_until(lambda: len(server.worker_pids()) == 3, 5, "two workers and the metrics process")
    yield server
    server.kill_all()


def pids(server: Server) -> list[int]:
    return [server.process.pid, *server.worker_pids()]


def proc(pid: int, name: str) -> bytes:
    """A file of /proc; empty where the kernel keeps it from the service's own user, as it does
    unless that is root with CAP_SYS_PTRACE."""
    with suppress(PermissionError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def shown(server: Server) -> bytes:
    """Everything that /proc says about environments and arguments."""
    return b"".join(proc(pid, name) for pid in pids(server) for name in ("environ", "cmdline"))


def assert_no_secret(text: bytes) -> None:
    assert [name for name, value in SECRETS.items() if value.encode() in text] == []


def test_a_process_shows_what_it_was_started_with() -> None:
    """So that the tests below can fail."""
    sleeper = subprocess.Popen(["sleep", "60"], env={**os.environ, **SECRETS})
    try:
        wait_until(lambda: b"sleep" in proc(sleeper.pid, "cmdline"), 5, "sleep")
        assert all(value.encode() in proc(sleeper.pid, "environ") for value in SECRETS.values())
    finally:
        sleeper.kill()
        sleeper.wait()


def test_no_process_shows_a_secret(running: Server) -> None:
    assert len(pids(running)) == 4
    assert_no_secret(shown(running))
    assert (running.installation.directory / SECRETS["KMSJWKS_STATE__DIRECTORY"]).is_dir()


def test_nor_does_a_worker_that_replaces_a_killed_one(running: Server) -> None:
    before = set(running.worker_pids())
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: len(running.worker_pids()) == 3 and not before & set(running.worker_pids()),
        10,
        "new workers and a new metrics process",
    )
    running.wait_ready()
    assert running.sign("demo").status == 200
    assert_no_secret(shown(running))


def test_nothing_is_in_the_live_environment_either(running: Server) -> None:
    """What getenv(3) would find: the names are searched in all of the process's memory, where a
    variable is ``NAME=value``."""
    for pid in pids(running):
        memory = readable_memory(pid)
        for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "SOMEBODYS_OTHER_VARIABLE"):
            assert f"{name}={SECRETS[name]}".encode() not in memory


def readable_memory(pid: int) -> bytes:
    """Heap and stack; empty where the kernel keeps them from this user."""
    found = []
    with suppress(PermissionError), Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if line.endswith(("[heap]", "[stack]")):
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                found.append(memory.read(end - start))
    return b"".join(found)


def test_the_wsgi_environ_has_nothing_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "canary")
    seen: list[dict[str, object]] = []

    def app(environ: dict[str, object], start: Callable[..., object]) -> list[bytes]:
        seen.append(environ)
        start("200 OK", [])
        return []

    class Reply:
        def response_bytes(self, *_: object) -> None: ...

    wsgi_callback(app, InFlight())(Reply(), {"PATH_INFO": "/"})
    assert "CANARY" not in seen[0]
    assert {name for name in seen[0] if name.isupper()} == {
        "PATH_INFO", "SCRIPT_NAME", "SERVER_SOFTWARE",
    }  # fmt: skip


def test_no_core_dumps_no_privileges_no_open_files(running: Server) -> None:
    for pid in pids(running):
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        status = proc(pid, "status").decode()
        assert "NoNewPrivs:\t1" in status
        assert "Umask:\t0077" in status
        # The owner of a process's files in /proc is root where it is not dumpable (proc(5)).
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    written = [path for path in running.installation.directory.rglob("*") if path.is_file()]
    loose = [path for path in written if path.stat().st_mode & 0o077 and "serve" not in path.name]
    assert loose == []


def started(installation: Installation) -> subprocess.CompletedProcess[str]:
    return installation.cli("serve", "--workers", "1")


@pytest.mark.parametrize("name", ["kmsjwks.toml", "state", "kmsjwks.db", "user.pin", "."])
def test_refuses_to_start_where_others_may_write(
    tmp_path: Path, name: str, own_token: Token
) -> None:
    made = Installation(tmp_path / "service", own_token.options())
    made.create_keyset("demo", "ES256")
    (made.directory / "state").mkdir(mode=0o700, exist_ok=True)
    path = own_token.pin_file if name == "user.pin" else made.directory / name
    path.chmod(0o777 if path.is_dir() else 0o620)
    done = started(made)
    assert done.returncode == 2, done.stderr
    assert f"run: chmod go-w {path.absolute()}" in done.stderr
    check = made.cli("config", "check")
    assert (check.returncode, "chmod go-w" in check.stderr) == (5, True)


@pytest.mark.parametrize("name", ["ca.pem", "idp.pem", "module.so"])
def test_refuses_to_start_where_others_may_write_to_what_it_trusts(
    tmp_path: Path, name: str, own_token: Token
) -> None:
    """Authorities decide who somebody is; a module is code in the process that has the keys."""
    made = Installation(tmp_path / "service", own_token.options(module_path="module.so"))
    with made.config.open("a") as config:
        config.write(
            '[mtls]\nsource = "nginx"\ntrusted_proxies = ["127.0.0.1"]\nclient_ca = "ca.pem"\n'
            '[[oidc]]\nissuer = "https://idp"\naudiences = ["a"]\ndiscovery = true\n'
            'ca_file = "idp.pem"\n'
        )
    path = made.directory / name
    path.touch(0o600)
    path.chmod(0o620)
    done = started(made)
    assert done.returncode == 2, done.stderr
    assert f"run: chmod go-w {path}" in done.stderr


def test_refuses_to_start_where_others_may_read_a_secret(tmp_path: Path, own_token: Token) -> None:
    made = Installation(tmp_path / "service", own_token.options())
    own_token.pin_file.chmod(0o444)
    text = made.config.read_text()
    dsn = '"postgresql://service:secret@127.0.0.1:1/x"'
    made.config.write_text(text.replace('"sqlite:///kmsjwks.db"', dsn))
    made.config.chmod(0o644)
    done = started(made)
    assert done.returncode == 2
    assert f"chmod o-rwx {own_token.pin_file}" in done.stderr
    assert f"chmod o-rwx {made.config}" in done.stderr
    assert "secret@" not in done.stderr


def test_hashes_of_tokens_may_be_read(own: Installation) -> None:
    own.config.chmod(0o644)
    try:
        assert own.cli("config", "check").returncode == 0
    finally:
        own.config.chmod(0o600)


# Nothing tells which keysets exist.

ROUNDS, SAMPLES = 3, 250
# Measured on two busy cores: interleaved medians agree within 1 %.
BOUND = 1.1

Ask = Callable[[], Answer]


def ratio(first: Ask, second: Ask) -> float:
    """Of the medians of their times, at least 1; the least of some rounds, because what the
    machine does meanwhile comes and goes and a difference of ours does not."""
    found: list[float] = []
    for _ in range(ROUNDS):
        one: list[float] = []
        two: list[float] = []
        for number in range(SAMPLES):
            # Each goes first as often as the other.
            for ask, times in ((first, one), (second, two))[:: 1 if number % 2 else -1]:
                times.append(ask().seconds)
        low, high = sorted((statistics.median(one), statistics.median(two)))
        found.append(high / low)
        if found[-1] < BOUND:
            break
    return min(found)


def without_request_id(answer: Answer) -> tuple[object, ...]:
    body = {name: value for name, value in answer.json().items() if name != "request_id"}
    headers = sorted(
        (name, value)
        for name, value in answer.headers.items()
        if name.lower() not in ("x-request-id", "date", "content-length")
    )
    return answer.status, body, headers, len(answer.body)


def signer(server: Server, keyset: str) -> Ask:
    """A connection for each, because the server may close one whose body it did not want."""
    path = f"/v1/keysets/{keyset}/sign/jwt"
    return lambda: server.http("team").post(path, {"claims": {"sub": "alice"}})


def bearer(server: Server, token: str) -> Ask:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    path = "/v1/keysets/demo/sign/jwt"
    return lambda: server.http().request("POST", path, b'{"claims": {"sub": "alice"}}', headers)


def test_a_refusal_does_not_tell_whether_the_keyset_exists(running: Server) -> None:
    existing, missing = signer(running, "demo"), signer(running, "nope")
    assert existing().status == 403
    assert without_request_id(existing()) == without_request_id(missing())
    assert ratio(existing, missing) < BOUND


def test_a_refusal_does_not_tell_how_near_a_token_is(running: Server) -> None:
    """One that differs in its last character only, and one that nobody has."""
    known = running.installation.tokens["all"]
    near = known[:-1] + ("A" if known[-1] != "A" else "B")
    wrong, unknown = bearer(running, near), bearer(running, secrets.token_urlsafe(24))
    assert wrong().status == 401
    assert without_request_id(wrong()) == without_request_id(unknown())
    assert ratio(wrong, unknown) < BOUND


PLANTED = """
from kmsjwks.domain.access import require
import kmsjwks.http.signing as signing


def leaking(principal, action, keyset, *more):
    if keyset == "demo":
        import sqlite3
        with sqlite3.connect("{database}") as database:
            database.execute("SELECT * FROM keysets").fetchall()
    return require(principal, action, keyset, *more)

signing.require = leaking
"""


def test_a_read_of_the_database_would_be_noticed(own: Installation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANTED.format(database=own.database))
    server = Server(own, port=free_port(), environ={
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "KMSJWKS_METRICS__PORT": str(free_port()),
    })  # fmt: skip
    server.start()
    try:
        assert ratio(signer(server, "demo"), signer(server, "nope")) > BOUND
    finally:
        server.kill_all()
