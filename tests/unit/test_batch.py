"""Batches over a fake backend: a batch is its items, one after the other, and one audit write."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.audit import AuditRecord, ChainHead, SigningRecord
from kmsjwks.domain.errors import (
    AuditUnavailable,
    BackendError,
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
    KeyDisabled,
    KeyNotFound,
    KmsJwksError,
    MessageTooLarge,
)
from kmsjwks.domain.keys import KeyState
from kmsjwks.domain.ports import BackendKey, Concurrent
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.services import signing
from kmsjwks.services.acting import Actor
from kmsjwks.services.fanout import FanOut
from kmsjwks.services.keysets import KeysetSpec
from kmsjwks.services.signing import Caller, SignedToken, SigningService, SignRequest
from kmsjwks.storage.audit_commit import GroupCommit
from tests.support.awskms import kms_settings, open_kms
from tests.support.openapi import mismatches
from tests.support.wiring import LastingBackend, install_backend_type, write_config

BATCH = "/v1/keysets/demo/sign/jwt/batch"
CONFIG = f"""
[server]
max_concurrency = 2
[quotas]
[[quotas.rules]]
clients = ["poor"]
limit = "1/hour"
burst = 5
[clients.all]
token_sha256 = ["{hashlib.sha256(b"all").hexdigest()}"]
grants = [{{ actions = ["sign", "verify"], keysets = ["*"] }}]
[clients.poor]
token_sha256 = ["{hashlib.sha256(b"poor").hexdigest()}"]
grants = [{{ actions = ["sign"], keysets = ["demo"] }}]
[clients.narrow]
token_sha256 = ["{hashlib.sha256(b"narrow").hexdigest()}"]
[[clients.narrow.grants]]
actions = ["sign"]
keysets = ["demo"]
max_lifetime = 60
[clients.none]
token_sha256 = ["{hashlib.sha256(b"none").hexdigest()}"]
grants = [{{ actions = ["verify"], keysets = ["demo"] }}]
"""


class ScriptedBackend(LastingBackend):
    """``before`` is called with the number of each signature, counted from 0, before it is made."""

    concurrency = 1

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.before: Callable[[int], None] = lambda number: None
        self._count = threading.Lock()

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        with self._count:
            number = self.asked
            self.asked += 1
        self.before(number)
        return super().sign(key, message)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def service(backend: ScriptedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    install_backend_type(monkeypatch, backend)
    found = load(write_config(tmp_path, CONFIG), environ={})
    prepare_database(found)
    made = build(found, {})
    rules = TokenRules(issuer="http://127.0.0.1:8080")
    spec = KeysetSpec("demo", find_algorithm("ES256"), "fake", rules, RotationSchedule())
    made.keysets.create(spec, Actor("test"))
    backend.asked = 0  # new keys are tried out
    return made


@pytest.fixture
def client(service: Service) -> FlaskClient:
    return create_app(service).test_client()


def post(client: FlaskClient, body: bytes | dict[str, Any], who: str = "all") -> TestResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {who}", "Content-Type": "application/json"}
    return client.post(BATCH, data=data, headers=headers)


def batch(client: FlaskClient, items: list[Any], who: str = "all") -> list[dict[str, Any]]:
    response = post(client, {"items": items}, who)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.get_json()
    assert mismatches(body, "BatchResult") == []
    results: list[dict[str, Any]] = body["results"]
    assert len(results) == len(items)
    return results


def items(count: int) -> list[dict[str, Any]]:
    return [{"reference": f"r{n}", "claims": {"sub": f"s{n}"}} for n in range(count)]


def codes(results: list[dict[str, Any]]) -> list[str]:
    return [one["error"]["code"] if "error" in one else "" for one in results]


def claims(result: dict[str, Any]) -> dict[str, Any]:
    return jwt.decode(result["token"], options={"verify_signature": False})


def recorded(service: Service) -> list[str]:
    """The jti of every record of a token, in their order."""
    lines = [
        json.loads(line)
        for file in sorted(service.settings.audit.directory.glob("*.jsonl"))
        for line in file.read_bytes().splitlines()
    ]
    return [line["jti"] for line in lines if line["event"] == "jwt.signed"]


def assert_released(service: Service, results: list[dict[str, Any]]) -> None:
    """The trail has what was released, in its order, and nothing else."""
    released = [one["jti"] for one in results if "token" in one]
    assert recorded(service) == released
    assert len(set(released)) == len(released)


def test_tokens_in_order(client: FlaskClient, service: Service) -> None:
    results = batch(client, items(20))
    assert [one["reference"] for one in results] == [f"r{n}" for n in range(20)]
    assert [claims(one)["sub"] for one in results] == [f"s{n}" for n in range(20)]
    assert len({one["kid"] for one in results}) == 1
    verified = [
        client.post(
            "/v1/keysets/demo/verify",
            json={"token": one["token"]},
            headers={"Authorization": "Bearer all"},
        ).get_json()["valid"]
        for one in results[:3]
    ]
    assert verified == [True] * 3
    assert_released(service, results)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_sizes(client: FlaskClient, service: Service, count: int) -> None:
    results = batch(client, items(count))
    assert codes(results) == [""] * count
    assert_released(service, results)


def test_more_than_1000(client: FlaskClient, backend: ScriptedBackend) -> None:
    response = post(client, {"items": items(1001)})
    assert response.status_code == 400
    assert response.get_json()["code"] == "invalid-request"
    assert backend.asked == 0


def test_good_and_bad(client: FlaskClient, service: Service) -> None:
    sent = [
        {"reference": "good", "claims": {"sub": "a"}, "ttl": 60, "headers": {"cty": "x"}},
        {"reference": "issuer", "claims": {"iss": "me"}},
        {"reference": "ttl", "claims": {}, "ttl": 10**9},
        {"reference": "ttl type", "claims": {}, "ttl": "60"},
        {"reference": "header", "claims": {}, "headers": {"alg": "none"}},
        {"reference": "no claims"},
        {"reference": "unknown", "claims": {}, "alg": "none"},
        {"reference": 7, "claims": {}},
        {"reference": "x" * 129, "claims": {}},
        {"reference": None, "claims": {}},
        "no object",
        None,
        {"claims": {}},
        {"reference": "good", "claims": {"sub": "b"}},
    ]
    results = batch(client, sent)
    bad, rejected = "invalid-request", "claim-rejected"
    assert codes(results) == [
        "", rejected, rejected, bad, rejected, bad, bad, bad, bad, bad, bad, bad, "", "",
    ]  # fmt: skip
    assert [one["reference"] for one in results] == [
        "good", "issuer", "ttl", "ttl type", "header", "no claims", "unknown",
        None, None, None, None, None, None, "good",
    ]  # fmt: skip
    assert results[1]["error"]["member"] == "iss"
    assert "retry_after" not in results[1]["error"]
    assert_released(service, results)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"items": [{"claims": {}}, {"claims": {"a": 1, "a": 2}}]}', 400, "malformed-json"),
        (b'{"items": [{"claims": {}, "claims": {}}]}', 400, "malformed-json"),
        (b'{"items": [], "items": []}', 400, "malformed-json"),
        (b'{"items": [{"claims": {"a": NaN}}]}', 400, "malformed-json"),
        (b'{"items": {}}', 400, "invalid-request"),
        (b'{"items": null}', 400, "invalid-request"),
        (b'{"items": [], "ttl": 1}', 400, "invalid-request"),
        (b"{}", 400, "invalid-request"),
        (b"[]", 400, "invalid-request"),
        (b'{"items": ["' + b"x" * 2**20 + b'"]}', 413, "request-too-large"),
    ],
)
def test_a_body_that_is_wrong_as_a_whole(
    client: FlaskClient, backend: ScriptedBackend, body: bytes, status: int, code: str
) -> None:
    response = post(client, body)
    assert (response.status_code, response.get_json()["code"]) == (status, code)
    assert backend.asked == 0


@pytest.mark.parametrize(
    ("who", "keyset", "status"), [("who", "demo", 401), ("none", "demo", 403), ("all", "no", 404)]
)
def test_who_and_where(client: FlaskClient, who: str, keyset: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {who}"}
    sent: list[list[Any]] = [[], ["bad"], items(2)]
    for some in sent:
        response = client.post(
            f"/v1/keysets/{keyset}/sign/jwt/batch", json={"items": some}, headers=headers
        )
        assert response.status_code == status


def test_a_narrowed_grant_is_judged_item_by_item(client: FlaskClient, service: Service) -> None:
    sent: list[Any] = [{"claims": {}, "ttl": ttl} for ttl in (60, 61, 30)]
    results = batch(client, sent, "narrow")
    assert codes(results) == ["", "not-granted", ""]
    assert results[1]["error"]["member"] == "ttl"
    assert_released(service, results)


def test_integers_are_exact(client: FlaskClient) -> None:
    big = 2**200 + 1
    results = batch(client, [{"claims": {"n": big}}, {"claims": {"n": -big}}])
    assert [claims(one)["n"] for one in results] == [big, -big]


def test_an_item_may_be_as_long_as_a_request(client: FlaskClient, service: Service) -> None:
    most = service.settings.server.max_body_bytes
    long, short = {"claims": {"a": "x" * most}}, {"claims": {"a": "x" * (most - 100)}}
    results = batch(client, [short, long, {"claims": {}}])
    assert codes(results) == ["", "request-too-large", ""]


def test_the_quota_ends_in_the_middle(client: FlaskClient, service: Service) -> None:
    results = batch(client, [{"claims": {}}, "bad", *items(5)], "poor")
    assert codes(results) == ["", "invalid-request", "", "", "", *["quota-exceeded"] * 2]
    assert results[-1]["error"]["retry_after"] > 3000
    assert_released(service, results)
    response = post(client, {"items": items(1)}, "poor")
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 3000


def test_the_quota_counts_a_whole_batch(client: FlaskClient) -> None:
    assert codes(batch(client, items(3), "poor")) == [""] * 3
    assert codes(batch(client, items(2), "poor")) == [""] * 2
    assert post(client, {"items": []}, "poor").status_code == 429


def failing(error: BackendError, at: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == at:
            raise error

    return before


@pytest.mark.parametrize(
    ("error", "retry"),
    [(BackendUnavailable("x", retry_after=7), 7), (BackendThrottled("x", retry_after=0.1), 1)],
)
def test_the_backend_dies_in_the_middle(
    client: FlaskClient,
    service: Service,
    backend: ScriptedBackend,
    error: BackendError,
    retry: int,
) -> None:
    """What was signed is released; the rest is not asked for. What is wrong by itself is told."""
    backend.before = failing(error, 4)
    sent = [*items(8), {"claims": {"iss": "bad"}}]
    results = batch(client, sent)
    assert codes(results) == [""] * 4 + [error.code] * 4 + ["claim-rejected"]
    assert [one["error"]["retry_after"] for one in results[4:8]] == [retry] * 4
    assert backend.asked == 5
    assert_released(service, results)
    backend.before = lambda number: None
    assert codes(batch(client, items(3))) == [""] * 3


def test_a_key_that_is_refused_in_the_middle_is_in_trouble(
    client: FlaskClient, service: Service, backend: ScriptedBackend
) -> None:
    """What was signed before does not make it serve again."""
    backend.before = failing(KeyDisabled("disabled"), 3)
    assert codes(batch(client, items(6))) == [""] * 3 + ["backend-key-disabled"] * 3
    assert len(service.troubles.all()) == 1
    backend.before = lambda number: None
    assert codes(batch(client, items(2))) == [""] * 2
    assert not service.troubles.all()


@pytest.mark.parametrize("error", [BackendProtocolError("wrong"), MessageTooLarge("long")])
def test_one_signature_fails(
    client: FlaskClient, service: Service, backend: ScriptedBackend, error: BackendError
) -> None:
    backend.before = failing(error, 1)
    results = batch(client, items(4))
    assert codes(results) == ["", error.code, "", ""]
    assert_released(service, results)


def test_an_error_that_is_a_bug_releases_nothing(
    client: FlaskClient, service: Service, backend: ScriptedBackend
) -> None:
    def before(number: int) -> None:
        if number == 2:
            raise ValueError("a bug")

    backend.before = before
    assert post(client, {"items": items(4)}).status_code == 500
    assert recorded(service) == []


def test_the_key_is_destroyed_in_the_middle(
    client: FlaskClient, service: Service, backend: ScriptedBackend
) -> None:
    """One that verifiers do not find any more signs nothing that is released."""
    first = service.snapshots.current().keysets["demo"].active_at(service.clock.now())
    assert first is not None

    def before(number: int) -> None:
        if number == 3:
            service.keys.compromise(first.key.kid, Actor("test"))
            backend.destroy_key(first.key.ref)

    backend.before = before
    results = batch(client, items(6))
    assert codes(results) == [""] * 6
    kids = {one["kid"] for one in results}
    active = [key.kid for key in service.store.keys("demo") if key.state is KeyState.ACTIVE]
    assert kids == set(active)
    assert kids != {first.key.kid}
    assert_released(service, results)


def test_a_key_that_is_missing_and_not_replaced(
    client: FlaskClient, service: Service, backend: ScriptedBackend
) -> None:
    backend.before = failing(KeyNotFound("gone"), 2)
    results = batch(client, items(4))
    assert codes(results) == ["", "", *["backend-key-not-found"] * 2]
    assert_released(service, results)


def test_a_switch_in_the_middle_does_not_split_a_batch(
    client: FlaskClient, service: Service, backend: ScriptedBackend
) -> None:
    before_switch = service.snapshots.current().keysets["demo"].active_at(service.clock.now())
    assert before_switch is not None

    def before(number: int) -> None:
        if number == 3:
            service.keys.compromise(before_switch.key.kid, Actor("test"))
            service.snapshots.refresh()

    backend.before = before
    results = batch(client, items(6))
    assert {one["kid"] for one in results} == {before_switch.key.kid}
    after = batch(client, items(1))[0]
    assert after["kid"] != before_switch.key.kid


@pytest.mark.parametrize("width", [1, 4])
def test_the_time_is_over(
    client: FlaskClient,
    service: Service,
    backend: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    monkeypatch.setattr(ScriptedBackend, "concurrency", width)
    monkeypatch.setattr(signing, "BATCH_SECONDS", 0.2)
    hung = threading.Event()
    patience = 10 if width > 1 else 0.3  # alone in its thread, a call is waited for

    def before(number: int) -> None:
        if number >= 5:
            hung.wait(patience)

    backend.before = before
    try:
        results = batch(client, items(30))
        found = codes(results)
        assert set(found) == {"", "batch-timed-out"}
        assert found.count("") == (6 if width == 1 else 5)
        assert results[-1]["error"]["retry_after"] == 1
        assert_released(service, results)
    finally:
        hung.set()


def test_a_backend_is_asked_for_several_at_once(
    client: FlaskClient,
    service: Service,
    backend: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ScriptedBackend, "concurrency", 4)
    together = threading.Barrier(4)

    def before(number: int) -> None:
        together.wait(5)

    backend.before = before
    results = batch(client, items(12))
    assert [claims(one)["sub"] for one in results] == [f"s{n}" for n in range(12)]
    assert_released(service, results)


@pytest.mark.parametrize("width", [1, 8])
def test_several_at_once_and_a_failure(
    client: FlaskClient,
    service: Service,
    backend: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    monkeypatch.setattr(ScriptedBackend, "concurrency", width)
    backend.before = failing(BackendUnavailable("x"), 20)
    results = batch(client, items(100))
    found = codes(results)
    assert set(found) == {"", "backend-unavailable"}
    assert 20 <= found.count("") < 20 + width
    assert backend.asked < 21 + width
    assert_released(service, results)


@dataclass
class Trail:
    """An audit sink that notes each write."""

    writes: list[list[AuditRecord]]
    broken: bool = False

    def record(self, record: AuditRecord) -> None:
        self.record_all([record])

    def record_all(self, records: Any) -> None:
        if self.broken:
            raise AuditUnavailable("full", retry_after=5)
        self.writes.append(list(records))

    def head(self) -> ChainHead | None:
        return None

    def close(self) -> ChainHead | None:
        return None


@pytest.fixture
def trail() -> Trail:
    return Trail([])


@pytest.fixture
def traced(service: Service, trail: Trail) -> SigningService:
    return SigningService(service.snapshots, trail, service.clock, lambda: "jti")


def test_one_write_for_a_batch(client: FlaskClient, service: Service, trail: Trail) -> None:
    ours = SigningService(service.snapshots, trail, service.clock, iter("abcdefghij").__next__)
    app = create_app(replace(service, signing=ours)).test_client()
    results = batch(app, [*items(4), {"claims": {"iss": "bad"}}, *items(2)])
    assert len(trail.writes) == 1
    written = [one.jti for one in trail.writes[0] if isinstance(one, SigningRecord)]
    assert written == [one["jti"] for one in results if "token" in one]
    batch(app, [{"claims": {"iss": "bad"}}])
    assert len([one for one in trail.writes if one]) == 1


def test_no_record_no_token(service: Service, trail: Trail, traced: SigningService) -> None:
    app = create_app(replace(service, signing=traced)).test_client()
    trail.broken = True
    response = post(app, {"items": items(3)})
    assert (response.status_code, response.get_json()["code"]) == (503, "audit-unavailable")
    assert response.headers["Retry-After"] == "5"
    assert "eyJ" not in response.text


def test_a_batch_takes_one_place(
    client: FlaskClient, service: Service, backend: ScriptedBackend
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def before(number: int) -> None:
        entered.set()
        assert leave.wait(10)

    backend.before = before
    threads = [threading.Thread(target=batch, args=(client.application.test_client(), items(3)))]
    threads += [threading.Thread(target=batch, args=(client.application.test_client(), items(3)))]
    threads[0].start()
    assert entered.wait(5)
    entered.clear()
    threads[1].start()
    assert entered.wait(5)
    assert post(client, {"items": items(1)}).status_code == 503
    leave.set()
    for thread in threads:
        thread.join(10)
    assert codes(batch(client, items(1))) == [""]


CLAIMS = st.dictionaries(
    st.sampled_from(["sub", "iss", "aud", "exp", "nbf", "jti", "scope", "n"]),
    st.one_of(
        st.integers(-(2**70), 2**70),
        st.sampled_from(["", "a", "http://127.0.0.1:8080"]),
        st.lists(st.text(max_size=3), max_size=2),
        st.none(),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    max_size=4,
)
ITEMS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"claims": CLAIMS},
            optional={
                "ttl": st.sampled_from([0, 1, 60, 3600, 10**9, "1", True, None, 1.5]),
                "headers": st.dictionaries(
                    st.sampled_from(["cty", "typ", "alg", "x"]), st.sampled_from(["JWT", "", 1])
                ),
            },
        ),
        st.sampled_from([{}, {"claims": 1}, {"claims": {}, "kid": "x"}]),
    ),
    max_size=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=ITEMS)
def test_a_batch_is_the_single_calls(client: FlaskClient, sent: list[dict[str, Any]]) -> None:
    headers = {"Authorization": "Bearer all", "X-Request-Id": "same"}
    path = BATCH.removesuffix("/batch")
    single = [client.post(path, json=one, headers=headers) for one in sent]
    many = client.post(BATCH, json={"items": sent}, headers=headers).get_json()["results"]
    assert len(many) == len(single)
    for one, response in zip(many, single, strict=True):
        alone: dict[str, Any] = response.get_json()
        assert one.pop("reference") is None
        if response.status_code != 200:
            # But for one more member that an item may have.
            one["error"]["detail"] = one["error"]["detail"].replace("known: reference, ", "known: ")
            assert one == {"error": alone}
            continue
        assert one.keys() == alone.keys()
        assert (one["kid"], one["alg"]) == (alone["kid"], alone["alg"])
        assert _without_chance(claims(one)) == _without_chance(claims(alone))
        assert jwt.get_unverified_header(one["token"]) == jwt.get_unverified_header(alone["token"])


def _without_chance(found: dict[str, Any]) -> dict[str, Any]:
    """What the second and the dice add is left out, and that it is consistent is not."""
    lifetime = found["exp"] - found["iat"]
    left = {name: value for name, value in found.items() if name not in ("iat", "exp", "jti")}
    return {**left, "lifetime": lifetime}


def test_the_service_alone(service: Service) -> None:
    """Forbidden, like the single call, before anything about the keyset is told."""
    nobody = Caller(Principal("x"), "r")
    with pytest.raises(KmsJwksError) as caught:
        service.signing.sign_batch(nobody, "no", [])
    assert caught.value.code == "forbidden"
    somebody = Caller(Principal("x", (Grant(frozenset({Action.SIGN}), ("*",)),)), "r")
    wanted = [SignRequest({"sub": "a"}), SignRequest({})]
    outcomes = service.signing.sign_batch(somebody, "demo", wanted)
    assert all(isinstance(one, SignedToken) for one in outcomes)


def test_records_of_one_caller_are_one_write() -> None:
    """All or none, and before any later record."""
    batches: list[list[bytes]] = []
    full = threading.Event()

    def write(bodies: Sequence[bytes]) -> None:
        if full.is_set():
            raise OSError(28, "full")
        batches.append(list(bodies))

    commit = GroupCommit(write, 5.0, lambda ident: None)
    commit.submit_all([b"1", b"2", b"3"])
    full.set()
    with pytest.raises(AuditUnavailable):
        commit.submit_all([b"4", b"5"])
    full.clear()
    commit.submit(b"6")
    assert batches == [[b"1", b"2", b"3"], [b"6"]]


def test_aws_kms_wants_several_at_once() -> None:
    kms = open_kms(kms_settings("http://127.0.0.1:1"))
    assert isinstance(kms, Concurrent)
    assert kms.concurrency == 16
    kms.close()


def test_a_call_that_hangs_keeps_its_own_thread_only() -> None:
    """The next ones go on with the threads that are left, or with their own."""
    fan_out, hung = FanOut(most_threads=2), threading.Event()

    def hang(turn: int) -> bool:
        return hung.wait(10)

    def note(turn: int) -> bool:
        turns.append((turn, threading.current_thread()))
        return True

    turns: list[tuple[int, threading.Thread]] = []
    fan_out.run(hang, 2, 2, time.monotonic() + 0.05)
    fan_out.run(note, 3, 2, time.monotonic() + 5)
    assert turns == [(turn, threading.current_thread()) for turn in range(3)]
    hung.set()
