"""Quotas: who may send how much, exactly, and what a refusal says."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import ConfigurationError, QuotaExceeded
from kmsjwks.domain.quotas import Quota, QuotaPlan, QuotaRule, parse_quota
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.http.quotas import Quotas
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from kmsjwks.services.snapshot import Snapshot
from tests.support.wiring import LastingBackend, install_backend_type, write_config

_ACTIONS = '["sign", "verify", "read", "rotate", "manage"]'
CONFIG = f"""
[quotas]
default = "3/hour"
management = "4/hour"

[[quotas.rules]]
clients = ["free-*"]
limit = "unlimited"

[[quotas.rules]]
clients = ["*"]
keysets = ["wide"]
limit = "1/hour"
burst = 5

[clients.alice]
token_sha256 = ["{hashlib.sha256(b"alice").hexdigest()}"]
grants = [{{ actions = {_ACTIONS}, keysets = ["*"] }}]

[clients.bob]
token_sha256 = ["{hashlib.sha256(b"bob").hexdigest()}"]
grants = [{{ actions = {_ACTIONS}, keysets = ["*"] }}]

[clients.free-one]
token_sha256 = ["{hashlib.sha256(b"free").hexdigest()}"]
grants = [{{ actions = ["sign"], keysets = ["demo"] }}]
"""


@pytest.fixture
def backend() -> LastingBackend:
    return LastingBackend()


@pytest.fixture
def service(backend: LastingBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    install_backend_type(monkeypatch, backend)
    settings = load(write_config(tmp_path, CONFIG), environ={})
    prepare_database(settings)
    service = build(settings, {})
    for name in ("demo", "wide"):
        rules = TokenRules(issuer="http://127.0.0.1:8080")
        spec = KeysetSpec(name, find_algorithm("ES256"), "fake", rules, RotationSchedule())
        service.keysets.create(spec, Actor("test"))
    return service


@pytest.fixture
def client(service: Service) -> FlaskClient:
    return create_app(service).test_client()


def _sign(client: FlaskClient, token: str, keyset: str = "demo", claims: object = None) -> int:
    answer = client.post(
        f"/v1/keysets/{keyset}/sign/jwt",
        json={"claims": claims or {}},
        headers={"Authorization": f"Bearer {token}"},
    )
    return answer.status_code


def test_the_quota_is_exact_and_each_clients_and_keysets_own(client: FlaskClient) -> None:
    assert [_sign(client, "alice") for _ in range(5)] == [200, 200, 200, 429, 429]
    assert [_sign(client, "bob") for _ in range(4)] == [200, 200, 200, 429]
    assert [_sign(client, "alice", "wide") for _ in range(6)] == [200] * 5 + [429]
    assert [_sign(client, "free") for _ in range(10)] == [200] * 10


def test_the_refusal_says_when_to_come_back(client: FlaskClient) -> None:
    for _ in range(3):
        _sign(client, "alice")
    answer = client.post(
        "/v1/keysets/demo/verify", json={"token": "x"}, headers={"Authorization": "Bearer alice"}
    )
    assert answer.status_code == 429, "verifying counts as signing does"
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    assert answer.json["code"] == "quota-exceeded"
    assert "3/hour" in answer.json["detail"]
    assert "quotas.default" in answer.json["detail"]
    assert 1190 <= int(answer.headers["Retry-After"]) <= 1200


def test_a_refused_request_never_reaches_the_backend(
    client: FlaskClient, backend: LastingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed: list[bytes] = []
    sign = backend.sign

    def counting(key: object, message: bytes) -> bytes:
        signed.append(message)
        return sign(key, message)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "sign", counting)
    assert [_sign(client, "bob") for _ in range(6)].count(200) == 3
    assert len(signed) == 3


def test_who_is_not_authenticated_or_granted_uses_up_nothing(client: FlaskClient) -> None:
    for number in range(20):
        assert _sign(client, f"guess-{number}") == 401
        assert _sign(client, "free", "wide") == 403
    assert [_sign(client, "alice") for _ in range(4)] == [200, 200, 200, 429]


def test_a_rejected_claim_counts(client: FlaskClient) -> None:
    assert [_sign(client, "bob", claims={"iss": "x"}) for _ in range(4)] == [422, 422, 422, 429]


def test_names_of_keysets_that_do_not_exist_share_a_counter(client: FlaskClient) -> None:
    statuses = [_sign(client, "alice", f"made-up-{number}") for number in range(6)]
    assert statuses == [404, 404, 404, 429, 429, 429]
    assert _sign(client, "alice") == 200, "keysets that exist have their own"


def test_the_count_is_exact_while_the_database_is_slow_to_answer(
    client: FlaskClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = service.snapshots._take

    def slow(now: float) -> Snapshot:
        time.sleep(0.6)  # longer than a verifier waits for what is known
        return take(now)

    monkeypatch.setattr(service.snapshots, "_take", slow)
    assert [_sign(client, "alice") for _ in range(5)] == [200, 200, 200, 429, 429]


def test_the_first_use_of_a_keyset_made_elsewhere_counts_as_its_own(
    client: FlaskClient, service: Service
) -> None:
    assert _sign(client, "alice") == 200
    rules = TokenRules(issuer="http://127.0.0.1:8080")
    spec = KeysetSpec("late", find_algorithm("ES256"), "fake", rules, RotationSchedule())
    service.keysets.create(spec, Actor("test"))
    assert [_sign(client, "alice", "late") for _ in range(4)] == [200, 200, 200, 429]


def test_management_has_its_own_quota_over_all_keysets(client: FlaskClient) -> None:
    paths = ("", "/demo", "/wide", "/made-up", "/demo", "")
    headers = {"Authorization": "Bearer alice"}
    statuses = [client.get(f"/v1/keysets{path}", headers=headers).status_code for path in paths]
    assert statuses == [200, 200, 200, 404, 429, 429]
    assert client.post("/v1/keysets/demo/rotate", headers=headers).status_code == 429
    assert client.put("/v1/keysets/demo", json={}, headers=headers).status_code == 429
    assert _sign(client, "alice") == 200


def test_the_jwks_and_health_have_no_quota(client: FlaskClient) -> None:
    for path in ("/.well-known/jwks.json", "/healthz"):
        assert {client.get(path).status_code for _ in range(20)} == {200}


def test_without_quotas_nothing_is_counted() -> None:
    quotas = Quotas(QuotaPlan(), lambda _: pytest.fail("asked for a keyset"))
    for _ in range(100):
        quotas.count_use("alice", "demo")
        quotas.count_management("alice")


def test_exact_under_many_threads() -> None:
    quotas = Quotas(QuotaPlan(use=Quota(100, 86400, 100)), lambda _: True)
    start, admitted = threading.Barrier(8), list[int]()

    def hammer() -> None:
        start.wait()
        for _ in range(50):
            try:
                quotas.count_use("alice", "demo")
                admitted.append(1)
            except QuotaExceeded:
                pass

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 100


def test_after_retry_after_the_request_is_served() -> None:
    quotas = Quotas(QuotaPlan(use=Quota(10, 1, 1)), lambda _: True)
    quotas.count_use("alice", "demo")
    with pytest.raises(QuotaExceeded) as caught:
        quotas.count_use("alice", "demo")
    assert 0 < caught.value.retry_after <= 0.1
    time.sleep(caught.value.retry_after + 0.001)
    quotas.count_use("alice", "demo")


@given(
    count=st.integers(1, 10**9 - 1),
    unit=st.sampled_from(["second", "minute", "hour", "day"]),
    burst=st.none() | st.integers(1, 10**9),
)
def test_a_quota_is_read_as_it_is_written(count: int, unit: str, burst: int | None) -> None:
    quota = parse_quota(f"{count}/{unit}", burst)
    assert quota is not None
    assert str(quota) == f"{count}/{unit}"
    assert quota.burst == (count if burst is None else burst)


@pytest.mark.parametrize(
    "text", ["", "0/second", "5", "5/week", "-1/minute", "5 / minute", "1.5/hour", "none", "05/day"]
)
def test_what_is_no_quota_is_an_error_of_the_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(write_config(tmp_path, f'[quotas]\ndefault = "{text}"\n'), environ={})
    assert "quotas.default: must be a number per second" in str(caught.value)


def test_the_first_rule_that_covers_both_decides() -> None:
    first = QuotaRule(("team-*",), ("*",), Quota(1, 60, 1), "quotas.rules[0]")
    second = QuotaRule(("*",), ("demo",), None, "quotas.rules[1]")
    plan = QuotaPlan(use=Quota(9, 1, 9), rules=(first, second))
    assert plan.for_use("team-a", "demo") == (first.quota, "quotas.rules[0]")
    assert plan.for_use("alice", "demo") == (None, "quotas.rules[1]")
    assert plan.for_use("alice", "other") == (Quota(9, 1, 9), "quotas.default")
