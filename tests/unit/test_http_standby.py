"""Standby, failover, migration and /v1/backends over HTTP, with two fake backends."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import ALGORITHMS
from kmsjwks.domain.errors import (
    BackendThrottled,
    BackendUnavailable,
    CredentialsExpired,
    KeyDisabled,
    KeyPendingDeletion,
    MessageTooLarge,
    StoreUnavailable,
    WrongAccount,
)
from kmsjwks.http.app import create_app
from tests.support.lifecycle import DAY, T0, SetClock
from tests.support.wiring import LastingBackend, install_backends, write_config

GONE = BackendUnavailable("socket 4711 is gone")
KEYSET = {"algorithm": "ES256", "backend": "fake"}


def _client(name: str, actions: str, keysets: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return (
        f'[clients.{name}]\ntoken_sha256 = ["{digest}"]\n'
        f"grants = [{{ actions = [{actions}], keysets = [{keysets}] }}]\n"
    )


CONFIG = (
    '[backends.other]\ntype = "fake"\n[backends.idle]\ntype = "fake"\n'
    + _client("root", '"sign", "verify", "read", "rotate", "manage"', '"*"')
    + _client("reader", '"read"', '"plain", "to-come-*"')
    + _client("hopeful", '"read"', '"to-come-*"')
    + _client("signer", '"sign"', '"*"')
)


@dataclass
class Site:
    """A service whose clock is set, with the keysets demo (standby: other) and plain."""

    service: Service
    client: FlaskClient
    clock: SetClock
    fake: LastingBackend
    other: LastingBackend
    database: Path

    def ask(
        self, method: str, path: str, body: Any = None, who: str | None = "root"
    ) -> TestResponse:
        headers = {"Authorization": f"Bearer {who}"} if who else {}
        return self.client.open(path, method=method, json=body, headers=headers)

    def get(self, path: str, who: str | None = "root") -> dict[str, Any]:
        answer = self.ask("GET", path, who=who)
        assert answer.status_code == 200, answer.text
        return answer.json or {}

    def do(self, path: str, body: Any = None) -> dict[str, Any]:
        answer = self.ask("POST", f"/v1/keysets/demo/{path}", body)
        assert answer.status_code == 200, answer.text
        return answer.json or {}

    def backends(self, who: str = "root") -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.get("/v1/backends", who)["backends"]}

    def signs_in(self) -> str:
        return str(self.get("/v1/keysets/demo")["signs_in"])

    def sign(self) -> TestResponse:
        return self.ask("POST", "/v1/keysets/demo/sign/jwt", {"claims": {"sub": "a"}})

    def later(self, seconds: int) -> None:
        self.clock.seconds += seconds
        self.service.planner.tick()
        self.service.snapshots.refresh()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    clock = SetClock(T0)

    def backend(*without: str) -> LastingBackend:
        offered = frozenset(one for one in ALGORITHMS if one.id not in without)
        return LastingBackend(offered, clock=lambda: datetime.fromtimestamp(clock.seconds, UTC))

    fake, other = backend(), backend("RS256")
    install_backends(monkeypatch, {"fake": fake, "other": other, "idle": backend()})
    settings = load(write_config(tmp_path, CONFIG), environ={})
    prepare_database(settings)
    service = build(settings, {}, clock=clock)
    database = tmp_path / "var" / "kmsjwks.db"
    made = Site(service, create_app(service).test_client(), clock, fake, other, database)
    standby = {"backend": "other", "failover_after": 90, "failback_after": None}
    assert made.ask("PUT", "/v1/keysets/demo", {**KEYSET, "standby": standby}).status_code == 200
    assert made.ask("PUT", "/v1/keysets/plain", KEYSET).status_code == 200
    return made


def refused(answer: TestResponse, status: int, code: str, words: str = "") -> None:
    assert (answer.status_code, (answer.json or {})["code"]) == (status, code)
    assert words in (answer.json or {})["detail"]


def test_a_standby_is_published_at_once_and_shown(site: Site) -> None:
    shown = site.get("/v1/keysets/demo")
    assert shown["standby"] == {"backend": "other", "failover_after": 90, "failback_after": None}
    assert sorted((key["backend"], key["state"]) for key in shown["keys"]) == [
        ("fake", "active"),
        ("fake", "pre-activation"),
        ("other", "pre-activation"),
    ]
    published = site.get("/.well-known/jwks.json", None)["keys"]
    assert {key["kid"] for key in shown["keys"]} <= {key["kid"] for key in published}
    assert site.get("/v1/keysets/plain")["standby"] is None


def test_the_standby_s_defaults_and_its_end(site: Site) -> None:
    body = {**KEYSET, "standby": {"backend": "other"}}
    assert site.ask("PUT", "/v1/keysets/demo", body).status_code == 200
    standby = site.get("/v1/keysets/demo")["standby"]
    assert (standby["failover_after"], standby["failback_after"]) == (60, 3600)
    dry = {**KEYSET, "standby": None, "dry_run": True}
    assert site.ask("PUT", "/v1/keysets/demo", dry).status_code == 200
    assert site.get("/v1/keysets/demo")["standby"] is not None
    assert site.ask("PUT", "/v1/keysets/demo", {**KEYSET, "standby": None}).status_code == 200
    assert site.get("/v1/keysets/demo")["standby"] is None


@pytest.mark.parametrize(
    ("standby", "words"),
    [
        ({"backend": "fake"}, "primary"),
        ({"backend": "absent"}, "no backend"),
        ({}, "missing"),
        ({"backend": 1}, "wrong JSON type"),
        ({"backend": "other", "failover_after": True}, "wrong JSON type"),
        ({"backend": "other", "failover_after": 0}, "at least 1 s"),
        ({"backend": "other", "delay": 1}, "not known"),
        ("other", "wrong JSON type"),
    ],
)
def test_a_standby_that_cannot_be(site: Site, standby: Any, words: str) -> None:
    answer = site.ask("PUT", "/v1/keysets/new", {**KEYSET, "standby": standby})
    refused(answer, 400, "invalid-request", words)
    assert "new" not in site.service.snapshots.current().keysets


def test_a_backend_without_the_algorithm_is_the_caller_s_mistake(site: Site) -> None:
    body = {**KEYSET, "algorithm": "RS256"}
    answer = site.ask("PUT", "/v1/keysets/rsa", {**body, "standby": {"backend": "other"}})
    refused(answer, 400, "invalid-request", "RS256")
    assert site.ask("PUT", "/v1/keysets/rsa", body).status_code == 200
    answer = site.ask("POST", "/v1/keysets/rsa/migrate", {"to": "other"})
    refused(answer, 400, "invalid-request", "RS256")


def test_failover_there_and_back(site: Site) -> None:
    refused(site.ask("POST", "/v1/keysets/demo/failover"), 409, "transition-refused", "may refuse")
    site.later(DAY)
    tried = site.do("failover", {"dry_run": True})
    assert (tried["dry_run"], tried["event"], site.signs_in()) == (True, "failed-over", "fake")
    kid = (site.sign().json or {})["kid"]
    done = site.do("failover")
    assert site.signs_in() == "other"
    assert [change["state"] for change in done["changes"]] != []
    assert (site.sign().json or {})["kid"] != kid
    published = {key["kid"] for key in site.get("/.well-known/jwks.json", None)["keys"]}
    assert kid in published
    answer = site.ask("POST", "/v1/keysets/demo/failover", {"to": "other"})
    refused(answer, 400, "invalid-request", "already")
    site.do("failover", {"to": "fake"})
    assert site.signs_in() == "fake"


def test_nothing_goes_to_a_backend_that_is_down(site: Site) -> None:
    site.other.break_with(GONE)
    answer = site.ask("POST", "/v1/keysets/demo/failover", {"now": True})
    refused(answer, 503, "backend-unavailable")
    assert "4711" not in answer.text
    assert site.signs_in() == "fake"
    site.other.break_with(None)
    site.do("failover", {"now": True})
    assert site.signs_in() == "other"


def test_migration_and_its_progress(site: Site) -> None:
    path = "/v1/keysets/plain"
    assert site.get(f"{path}/migration")["stage"] == "settled"
    tried = site.ask("POST", f"{path}/migrate", {"to": "other", "dry_run": True})
    assert (tried.json or {})["dry_run"] is True
    assert site.get(path)["backend"] == "fake"
    for wanted in ("other", "fake", "other"):  # turned round twice
        assert site.ask("POST", f"{path}/migrate", {"to": wanted}).status_code == 200
        assert site.get(path)["backend"] == wanted
    shown = site.get(f"{path}/migration", "reader")
    assert (shown["stage"], shown["signs_in"], shown["done"]) == ("scheduled", "fake", False)
    assert shown["takes_over_at"] == T0 + DAY
    assert {key["backend"] for key in shown["left_behind"]} == {"fake"}
    site.later(DAY)
    shown = site.get(f"{path}/migration")
    assert (shown["stage"], shown["signs_in"]) == ("retiring", "other")
    assert {key["state"] for key in shown["left_behind"]} == {"deactivated", "pre-activation"}
    answer = site.ask("POST", f"{path}/migrate", {"stop": True})
    refused(answer, 400, "invalid-request", "No migration is under way")


def test_a_migration_is_stopped(site: Site) -> None:
    site.do("migrate", {"to": "idle"})
    assert site.do("migrate", {"stop": True})["event"] == "migration-stopped"
    assert site.get("/v1/keysets/demo")["backend"] == "fake"
    for body in ({}, {"to": "idle", "stop": True}, {"to": None}, {"stop": False}):
        assert site.ask("POST", "/v1/keysets/demo/migrate", body).status_code == 400


def test_grants(site: Site) -> None:
    for path, body in (("failover", {}), ("migrate", {"to": "other"})):
        for who in ("reader", "signer"):
            answer = site.ask("POST", f"/v1/keysets/plain/{path}", body, who)
            refused(answer, 403, "forbidden")
    assert site.ask("GET", "/v1/keysets/plain/migration", who="signer").status_code == 403
    assert site.ask("GET", "/v1/keysets/absent/migration").status_code == 404
    assert site.ask("GET", "/v1/backends", who="signer").status_code == 403
    assert site.ask("GET", "/v1/backends", who=None).status_code == 401


def test_backends_and_what_depends_on_them(site: Site) -> None:
    shown = site.backends()
    assert list(shown) == ["fake", "idle", "other"]
    assert {one["available"] for one in shown.values()} == {True}
    assert shown["fake"]["keysets"] == ["demo", "plain"]
    assert (shown["other"]["keysets"], shown["other"]["signing"]) == (["demo"], [])
    assert (shown["fake"]["type"], shown["fake"]["cannot_sign"]) == ("fake", [])
    site.clock.seconds += 100
    site.fake.break_with(GONE)
    down = site.backends()["fake"]
    assert (down["available"], down["since"], down["reason"]) == (False, T0 + 100, str(GONE))
    assert down["cannot_sign"] == ["demo", "plain"]
    assert site.get("/readyz", None) == {
        "status": "degraded",
        "keysets": 2,
        "backends_down": {"fake": {"since": T0 + 100, "keysets_that_cannot_sign": 2}},
        "keysets_that_cannot_sign": 2,
    }


def test_a_reader_sees_the_backends_of_its_keysets(site: Site) -> None:
    assert list(site.backends("reader")) == ["fake"]
    assert site.backends("reader")["fake"]["keysets"] == ["plain"]
    assert site.backends("hopeful") == {}


def test_backends_are_told_while_they_and_the_database_are_down(site: Site) -> None:
    site.get("/v1/backends")
    site.database.rename(site.database.with_name("away.db"))
    site.service.snapshots.refresh()
    site.fake.break_with(GONE)
    assert site.backends()["fake"]["cannot_sign"] == ["demo", "plain"]
    assert site.ask("GET", "/v1/keysets/demo/migration").status_code == 503


def test_a_standby_that_is_down_harms_nobody(site: Site) -> None:
    site.other.break_with(GONE)
    assert site.sign().status_code == 200
    ready = site.get("/readyz", None)
    assert (ready["status"], ready["keysets_that_cannot_sign"]) == ("degraded", 0)
    assert ready["backends_down"]["other"]["keysets_that_cannot_sign"] == 0


def test_throttling_is_said_to_the_caller(site: Site) -> None:
    site.fake.break_with(BackendThrottled("quota of account 4711", retry_after=0.3))
    answer = site.sign()
    refused(answer, 429, "backend-throttled", "quota of the signing backend")
    assert answer.headers["Retry-After"] == "1"
    assert "4711" not in answer.text


def test_a_token_too_long_for_the_backend(site: Site) -> None:
    said = "The token would be 5000 bytes; this backend signs 4096 with EdDSA."
    site.fake.break_with(MessageTooLarge(said))
    answer = site.sign()
    refused(answer, 413, "message-too-large", said)
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize(
    "error",
    [
        CredentialsExpired("4711"),
        WrongAccount("4711"),
        KeyDisabled("4711"),
        KeyPendingDeletion("4711"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_only_the_operator_may_know(site: Site, error: Any) -> None:
    site.fake.break_with(error)
    answer = site.sign()
    refused(answer, 503, error.code)
    assert "4711" not in answer.text
    assert answer.headers["Retry-After"] == "30"


def test_a_key_that_its_backend_refuses_is_told(site: Site) -> None:
    kid = (site.sign().json or {})["kid"]
    ref = next(key.ref for key in site.service.store.keys("demo") if key.kid == kid)
    held = site.fake._keys.pop(ref)
    assert site.sign().status_code == 503
    ready = site.get("/readyz", None)
    assert (ready["status"], ready["keysets_that_cannot_sign"]) == ("degraded", 1)
    assert ready["backends_down"] == {}
    shown = site.backends()["fake"]
    assert (shown["available"], shown["cannot_sign"]) == (True, ["demo"])
    (refused_key,) = shown["refused_keys"]
    assert (refused_key["kid"], refused_key["since"]) == (kid, T0)
    assert site.backends("reader")["fake"]["refused_keys"] == []
    site.fake._keys[ref] = held
    assert site.sign().status_code == 200
    assert site.get("/readyz", None)["status"] == "ok"
    assert site.backends()["fake"]["refused_keys"] == []


def test_a_keyset_whose_key_is_refused_fails_over(site: Site) -> None:
    site.later(DAY)
    kid = (site.sign().json or {})["kid"]
    ref = next(key.ref for key in site.service.store.keys("demo") if key.kid == kid)
    site.fake._keys.pop(ref)
    keeper = site.service.failover_keeper()
    assert site.sign().status_code == 503
    site.clock.seconds += 90
    keeper.look()
    assert site.signs_in() == "fake", "nobody has asked for it since"
    assert site.sign().status_code == 503
    keeper.look()
    assert site.signs_in() == "other"
    assert site.sign().status_code == 200


def test_a_migration_commanded_while_failed_over(site: Site) -> None:
    site.later(DAY)
    site.do("failover")
    site.fake.break_with(GONE)
    site.do("migrate", {"to": "idle"})
    shown = site.get("/v1/keysets/demo/migration")
    assert (shown["stage"], shown["signs_in"], shown["done"]) == ("scheduled", "other", False)
    site.later(DAY)
    assert site.signs_in() == "idle"
    assert site.get("/v1/keysets/demo/migration")["stage"] == "retiring"
    assert site.get("/v1/keysets/demo")["standby"] == {
        "backend": "other", "failover_after": 90, "failback_after": None,
    }  # fmt: skip


def test_an_act_is_answered_while_its_tick_hangs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.later(DAY)
    released, asked = threading.Event(), threading.Event()
    create = site.other.create_key

    def hang(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        released.wait(20)
        return create(*args, **kwargs)

    monkeypatch.setattr(site.other, "create_key", hang)
    began = time.monotonic()
    site.do("failover")
    assert asked.is_set()
    assert time.monotonic() - began < 8
    assert site.signs_in() == "other"
    released.set()


def test_an_act_that_is_recorded_is_answered_though_its_tick_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.later(DAY)

    def fail() -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(site.service.planner, "tick", fail)
    site.do("failover")
    assert site.signs_in() == "other"
