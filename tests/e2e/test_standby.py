"""A keyset outlives its backend: the primary is a token process that is killed, the standby another
SoftHSM token, and clients sign and fetch the JWKS all the while."""

from __future__ import annotations

import json
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from tests.support.load import Load, wait_until
from tests.support.p11kit import P11KitServer
from tests.support.service import Installation, Server, free_port
from tests.support.softhsm import Token, provision

FAILOVER_AFTER = 2  # seconds
NOTICING = 4.0  # seconds for the watch, the look at it, and the refresh of the other worker
SPEED = """
[rotation]
development = true
tick_interval = 0.5
grace = 2
skew = 0
[backend_watch]
interval = 0.3
[backends.standby]
type = "pkcs11"
"""


@pytest.fixture
def installation(p11kit: P11KitServer, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The primary is called ``token``."""
    directory = tmp_path_factory.mktemp("service")
    primary = p11kit.options(call_timeout=1.0, replace_after=3.0)
    made = Installation(directory / "service", primary)
    with made.config.open("a") as config:
        config.write(SPEED + _table(provision(directory / "standby")))
        config.write(f"[metrics]\nport = {free_port()}\n")
    made.create_keyset(
        "demo", "ES256", "--backend", "token", "--standby", "standby", "--propagation", "1s",
        "--failover-after", f"{FAILOVER_AFTER}s", "--failback-after", "never",
    )  # fmt: skip
    return made


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    running = Server(installation)
    running.start()
    yield running
    running.kill_all()


def _table(token: Token) -> str:
    options = token.options()
    environment = json.dumps(options.pop("environment")["SOFTHSM2_CONF"])
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    return "\n".join([*lines, f"environment = {{ SOFTHSM2_CONF = {environment} }}", ""])


def cli(server: Server, *words: str, code: int = 0) -> Any:
    done = server.installation.cli("-o", "json", *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def jwks(server: Server) -> dict[str, jwt.PyJWK]:
    document = server.http().get("/.well-known/jwks.json").json()
    return {str(key.key_id): key for key in jwt.PyJWKSet.from_dict(document).keys}


def signs_in(server: Server) -> str:
    return str(cli(server, "keysets", "show", "demo")["signs_in"])


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def tokens_since(load: Load, since: float) -> list[str]:
    return [one.answer.json()["token"] for one in load.signing(since) if one.status == 200]  # type: ignore[union-attr]


def await_signing(load: Load, kids: set[str], seconds: float) -> float:
    """Until a token of one of these keys comes, and then enough of nothing else."""

    def holds() -> bool:
        last = [one for one in load.signing() if one.ended > time.monotonic() - 0.5]
        return (
            len(last) > 5
            and {one.status for one in last} == {200}
            and {kid_of(one.answer.json()["token"]) for one in last if one.answer} <= kids
        )

    return wait_until(holds, seconds, f"signing with {kids}")


def kids_in(server: Server, backend: str) -> set[str]:
    return {
        key["kid"]
        for key in cli(server, "keysets", "show", "demo")["keys"]
        if key["backend"] == backend
    }


def scraped(server: Server) -> set[str]:
    config = tomllib.loads(server.installation.config.read_text())
    url = f"http://127.0.0.1:{config['metrics']['port']}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.removeprefix("kmsjwks_") for line in lines}


def told(server: Server, backend: str) -> dict[str, Any]:
    shown = server.http("all").get("/v1/backends").json()["backends"]
    return next(one for one in shown if one["name"] == backend)


def test_away_back_and_for_good(server: Server, p11kit: P11KitServer) -> None:
    wait_until(lambda: len(jwks(server)) == 3, 5, "the spares are published")
    time.sleep(1)  # propagation
    cached, primary, standby = jwks(server), kids_in(server, "token"), kids_in(server, "standby")
    with Load(server, "demo", signers=1, readers=1).running() as load:
        await_signing(load, primary, 5)
        p11kit.kill()
        killed = time.monotonic()
        await_signing(load, standby, FAILOVER_AFTER + NOTICING)
        _is_told(server)
        _goes_not_back_to_what_is_down(server)

        p11kit.start()
        wait_until(lambda: told(server, "token")["available"], 8, "the primary is seen again")
        assert signs_in(server) == "standby"  # on command only
        cli(server, "keysets", "failover", "demo", "--to", "token")
        await_signing(load, primary, NOTICING)
        for token in tokens_since(load, 0):  # by the JWKS from before it all
            jwt.decode(token, cached[kid_of(token)], algorithms=["ES256"])

        _migrates(server, load)
    _nobody_lost(server, load, killed)


def test_a_primary_that_hangs(server: Server, p11kit: P11KitServer) -> None:
    """Calls do not fail, they never end; a request in flight waits for `call_timeout`."""
    wait_until(lambda: len(jwks(server)) == 3, 5, "the spares are published")
    time.sleep(1)  # propagation
    cached, standby = jwks(server), kids_in(server, "standby")
    with Load(server, "demo", signers=1, readers=1).running() as load:
        await_signing(load, set(cached), 5)
        p11kit.stop()
        await_signing(load, standby, 1 + FAILOVER_AFTER + NOTICING)
    for token in load.tokens():
        jwt.decode(token, cached[kid_of(token)], algorithms=["ES256"])
    assert {one.status for one in load.signing()} == {200, 503}
    assert {one.status for one in load.reading()} == {200}


def _is_told(server: Server) -> None:
    ready = server.http().get("/readyz")
    assert ready.status == 200
    assert ready.json()["status"] == "degraded"
    assert ready.json()["keysets_that_cannot_sign"] == 0
    assert ready.json()["backends_down"]["token"]["keysets_that_cannot_sign"] == 0
    down = told(server, "token")
    assert (down["available"], down["keysets"], down["cannot_sign"]) == (False, ["demo"], [])
    assert abs(down["since"] - time.time()) < 30
    assert down["reason"]
    assert told(server, "standby")["signing"] == ["demo"]
    metrics = {'backend_up{backend="token"} 0.0', 'keyset_failed_over{keyset="demo"} 1.0'}
    wait_until(lambda: metrics <= scraped(server), 5, "the metrics")
    asked = {row["name"]: row for row in cli(server, "backends", code=3)}
    assert {name: row["state"] for name, row in asked.items()} == {"token": "down", "standby": "up"}


def _goes_not_back_to_what_is_down(server: Server) -> None:
    cli(server, "keysets", "failover", "demo", "--to", "token", code=3)
    assert signs_in(server) == "standby"


def _migrates(server: Server, load: Load) -> None:
    """It belongs to what was its standby from now on."""
    said = cli(server, "keysets", "migrate", "demo", "--to", "standby", "--dry-run")
    assert "would: " in said
    cli(server, "keysets", "migrate", "demo", "--to", "standby")
    assert cli(server, "keysets", "migrate", "demo")["stage"] in (
        "no-key-yet", "published", "scheduled", "retiring",
    )  # fmt: skip
    wait_until(lambda: signs_in(server) == "standby", 10, "the migration")
    await_signing(load, kids_in(server, "standby"), NOTICING)
    shown = cli(server, "keysets", "migrate", "demo", "--status")
    assert (shown["stage"], shown["backend"]) == ("retiring", "standby")
    assert {key["backend"] for key in shown["left_behind"]} == {"token"}


def _nobody_lost(server: Server, load: Load, killed: float) -> None:
    keys, tokens = jwks(server), load.tokens()
    assert len({kid_of(token) for token in tokens}) >= 3
    for token in tokens:
        jwt.decode(token, keys[kid_of(token)], algorithms=["ES256"])
    odd = [one for one in load.signing() if one.status != 200]
    assert {one.status for one in odd} <= {503}
    assert all(killed <= one.ended <= killed + FAILOVER_AFTER + NOTICING for one in odd)
    assert load.failed_connections() == 0
    assert {one.status for one in load.reading()} == {200}
