"""A second person over HTTP: proposals, who may approve them, what is answered."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.lifecycle import SetClock
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CONFIG = """
[approvals]
required_for = ["destroy", "undo-compromise"]
window = 3600
same_person = [["olga", "olga-laptop"]]
""" + "".join(
    f'[clients.{name}]\ntoken_sha256 = ["{sha256(name.encode()).hexdigest()}"]\n'
    f'grants = [{{ actions = ["{action}"], keysets = ["{keysets}"] }}]\n'
    for name, action, keysets in (
        ("olga", "destroy", "*"),
        ("olga-laptop", "destroy", "*"),
        ("paul", "destroy", "a*"),
        ("bert", "destroy", "b*"),
        ("mary", "manage", "*"),
        ("rita", "read", "*"),
    )
)


class Site:
    def __init__(self, service: Service, clock: SetClock) -> None:
        self.service, self.clock = service, clock
        self.http: FlaskClient = create_app(service).test_client()

    def kid(self, state: str, keyset: str = "a1") -> str:
        found = self.service.store.keys(keyset)
        return next(key.kid for key in found if key.state.value == state)

    def post(self, who: str, act: str, kid: str, **body: object) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {who}"}
        path = f"/v1/keysets/a1/keys/{kid}/{act}"
        answer = self.http.post(path, json=body, headers=headers)
        return answer.status_code, dict(answer.json or {})

    def published(self) -> set[str]:
        answer = self.http.get("/keysets/a1/.well-known/jwks.json")
        return {key["kid"] for key in (answer.json or {})["keys"]}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    install_backend_type(monkeypatch, LastingBackend())
    settings = load(write_config(tmp_path, CONFIG), environ={})
    prepare_database(settings)
    clock = SetClock()
    service = build(settings, {}, clock=clock)
    for name in ("a1", "b1"):
        rules = TokenRules(issuer="http://127.0.0.1:8080")
        spec = KeysetSpec(name, find_algorithm("ES256"), "fake", rules, RotationSchedule())
        service.keysets.create(spec, Actor("test"))
    return Site(service, clock)


def test_destroy_is_proposed_and_approved(site: Site) -> None:
    kid = site.kid("pre-activation")
    status, told = site.post("olga", "destroy", kid)
    assert (status, told["event"], told["changes"]) == (202, "destroy-proposed", [])
    proposal = told["proposal"]
    assert proposal == {
        "id": proposal["id"],
        "act": "destroy",
        "keyset": "a1",
        "kid": kid,
        "key_version": 0,
        "proposed_by": "olga",
        "proposed_at": int(site.clock.now()),
        "expires_at": int(site.clock.now()) + 3600,
        "state": "proposed",
        "approved_by": None,
        "approved_at": None,
    }
    status, told = site.post("paul", "approve", kid, proposal=proposal["id"], dry_run=True)
    assert (status, told["dry_run"], told["changes"][0]["kid"]) == (200, True, kid)
    status, told = site.post("paul", "approve", kid, proposal=proposal["id"])
    assert (status, told["event"], told["proposal"]["state"]) == (
        200,
        "destruction-begun",
        "approved",
    )
    assert told["changes"][0]["destroy_at"] is not None
    assert site.service.store.events("a1", 3)[0].event != "destroy-proposed"


@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        ("olga", 409, "approval-refused"),
        ("olga-laptop", 409, "approval-refused"),
        ("bert", 403, "forbidden"),
        ("mary", 403, "forbidden"),
        ("rita", 403, "forbidden"),
        ("nobody", 401, "unauthenticated"),
    ],
)
def test_who_is_no_second_person(site: Site, who: str, status: int, code: str) -> None:
    kid = site.kid("pre-activation")
    _, told = site.post("olga", "destroy", kid)
    answer, problem = site.post(who, "approve", kid, proposal=told["proposal"]["id"])
    assert (answer, problem["code"]) == (status, code)
    assert [one.state.value for one in site.service.store.approvals()] == ["proposed"]


def test_what_is_approved_is_named_exactly(site: Site) -> None:
    kid, other = site.kid("pre-activation"), site.kid("active")
    _, told = site.post("olga", "destroy", kid)
    proposal = told["proposal"]["id"]
    for body, at, status, code in (
        ({}, kid, 400, "invalid-request"),
        ({"proposal": 1}, kid, 400, "invalid-request"),
        ({"what": "destroy"}, kid, 400, "invalid-request"),
        ({"proposal": "none"}, kid, 404, "approval-not-found"),
        ({"proposal": proposal}, other, 404, "approval-not-found"),
        ({"proposal": proposal}, site.kid("active", "b1"), 404, "key-not-found"),
    ):
        answer, problem = site.post("paul", "approve", at, **body)
        assert (answer, problem["code"]) == (status, code), body


def test_who_may_read_sees_what_waits(site: Site) -> None:
    kid = site.kid("pre-activation")

    def waiting() -> list[dict[str, Any]]:
        answer = site.http.get("/v1/keysets/a1/proposals", headers={"Authorization": "Bearer rita"})
        assert answer.status_code == 200
        found: list[dict[str, Any]] = (answer.json or {})["proposals"]
        return found

    assert waiting() == []
    _, told = site.post("olga", "destroy", kid)
    assert waiting() == [told["proposal"]]
    site.clock.seconds += 3600
    assert waiting() == []
    status, problem = site.post("paul", "approve", kid, proposal=told["proposal"]["id"])
    assert (status, problem["code"]) == (409, "approval-refused")


def test_a_compromise_by_mistake(site: Site) -> None:
    kid = site.kid("active")
    status, _ = site.post("olga", "compromise", kid)
    assert status == 200
    assert kid not in site.published()
    status, told = site.post("olga", "undo-compromise", kid)
    assert status == 202
    assert kid not in site.published()
    status, told = site.post("paul", "approve", kid, proposal=told["proposal"]["id"])
    assert (status, told["event"]) == (200, "compromise-undone")
    assert told["changes"][0]["state"] == "deactivated"
    assert kid in site.published()


def test_a_dry_run_proposes_nothing(site: Site) -> None:
    status, told = site.post("olga", "destroy", site.kid("pre-activation"), dry_run=True)
    assert (status, told["dry_run"]) == (200, True)
    assert list(site.service.store.approvals()) == []
