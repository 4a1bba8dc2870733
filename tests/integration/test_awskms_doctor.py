"""`doctor` against the strict fake, and which operations each role's work really calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.session
import pytest

from kmsjwks.backends.awskms.backend import KmsBackend
from kmsjwks.backends.awskms.examination import Examination
from kmsjwks.backends.awskms.permissions import (
    Scope,
    allowed_actions,
    break_glass,
    manager,
    signer,
)
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings, StaticCredentials
from kmsjwks.backends.awskms.surroundings import NotTold, Surroundings
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.ports import BackendKey, Finding
from tests.support.kms import ACCOUNT, FakeKms

HOME, OTHER = "eu-central-1", "eu-west-1"
ES256 = find_algorithm("ES256")
SCOPE = Scope(ACCOUNT, (HOME, OTHER), "default", multi_region=True)
OPERATIONS = botocore.session.get_session().get_service_model("kms").operation_names


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKms]:
    with FakeKms() as kms:
        yield kms


@pytest.fixture
def kms(server: FakeKms) -> Iterator[FakeKms]:
    server.forget_calls()
    yield server
    server.deny()
    server.clear_faults()
    server.settings(expired_access_keys=[])


def settings(kms: FakeKms, *, multi_region: bool = False, **more: Any) -> KmsSettings:
    made = KmsSettings(
        name="kms",
        regions=(HOME, OTHER) if multi_region else (HOME,),
        endpoint=kms.endpoint,
        sts_endpoint=kms.endpoint,
        multi_region=multi_region,
        credentials=StaticCredentials("AKIAEXAMPLE", "secret"),
    )
    return replace(made, **more)


class Told(Surroundings):
    """Service Quotas and credentials that say what a test wants."""

    def __init__(self, quotas: dict[str, float], expires: datetime | None = None) -> None:
        self._quotas, self._expires = quotas, expires

    def credentials_expire(self) -> datetime | None:
        return self._expires

    def signing_quotas(self, region: str) -> dict[str, float]:
        if not self._quotas:
            raise NotTold("AWS answered AccessDeniedException")
        return self._quotas


def examine(made: KmsSettings, told: Surroundings | None = None, **more: Any) -> list[Finding]:
    quotas = {"Cryptographic operations (ECC) request rate": 1000.0}
    regions = Regions(made)
    try:
        return list(Examination(made, regions, surroundings=told or Told(quotas), **more).run())
    finally:
        regions.close()


def found(findings: list[Finding], check: str) -> Finding:
    (one,) = [finding for finding in findings if finding.check == check]
    return one


def called(kms: FakeKms) -> set[str]:
    return {f"kms:{one}" for one in OPERATIONS if kms.calls(one)}


def usable_keys(made: KmsSettings) -> list[str]:
    backend = KmsBackend(made)
    try:
        return [key.ref for key in backend.list_keys()]
    finally:
        backend.close()


def test_all_is_well(kms: FakeKms) -> None:
    findings = examine(settings(kms))
    assert [one for one in findings if not one.ok] == []
    assert ACCOUNT in found(findings, "open").said
    assert "verifies" in found(findings, f"kms:Sign {HOME}").said
    assert kms.calls("CreateKey") == 1
    assert usable_keys(settings(kms)) == []


def test_every_region_is_tried_and_nothing_is_left(kms: FakeKms) -> None:
    made = settings(kms, multi_region=True)
    findings = examine(made)
    assert [one for one in findings if not one.ok] == []
    for region in (HOME, OTHER):
        assert found(findings, f"kms:Sign {region}").ok
        assert found(findings, f"clock {region}").ok
        assert found(findings, f"throw-away key {region}").ok
    assert usable_keys(made) == []


# What the trial calls on its key; ListKeys comes before.
TRIED = sorted(
    (allowed_actions(manager(SCOPE)) | allowed_actions(break_glass(SCOPE)))
    - {"iam:CreateServiceLinkedRole"}
)


@pytest.mark.parametrize("action", TRIED)
def test_each_permission_that_is_missing_is_named_with_its_policy(
    kms: FakeKms, action: str
) -> None:
    kms.deny(action)
    findings = examine(settings(kms, multi_region=True))
    last = findings[-1]
    assert (last.check, last.ok) == ("permissions", False)
    pasted = json.loads(last.said[last.said.index("{") :])
    assert allowed_actions(pasted) == {action}


def test_a_key_that_cannot_be_deleted_is_named(kms: FakeKms) -> None:
    kms.restart(keep=False)
    kms.deny("kms:ScheduleKeyDeletion")
    made = settings(kms)
    said = found(examine(made), f"kms:ScheduleKeyDeletion {HOME}").said
    (left,) = usable_keys(made)
    assert f"--key-id {left.rpartition('/')[2]}" in said
    kms.deny()
    backend = KmsBackend(made)
    backend.destroy_key(left)
    backend.close()


def test_expired_credentials_end_it(kms: FakeKms) -> None:
    kms.settings(expired_access_keys=["AKIAEXAMPLE"])
    (only,) = examine(settings(kms))
    assert (only.check, only.ok) == ("open", False)
    assert called(kms) == {"kms:ListKeys"}


def test_what_both_say_is_said_once(monkeypatch: pytest.MonkeyPatch, kms: FakeKms) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    (only,) = examine(settings(kms, credentials=None))
    assert only.said.count("no usable AWS credentials") == 1


def test_nobody_answers() -> None:
    made = KmsSettings(
        name="kms",
        regions=(HOME,),
        endpoint="http://127.0.0.1:9",
        sts_endpoint="http://127.0.0.1:9",
        credentials=StaticCredentials("a", "b"),
    )
    (only,) = examine(made)
    assert (only.check, only.ok) == ("open", False)


@pytest.fixture
def kms_only(kms: FakeKms) -> KmsSettings:
    """An endpoint of AWS KMS, and nobody where STS should be."""
    return settings(kms, sts_endpoint="http://127.0.0.1:9")


def test_kms_without_sts_is_examined_all_the_same(kms_only: KmsSettings) -> None:
    findings = examine(kms_only)
    assert [one for one in findings if not one.ok] == []
    opened = found(findings, "open").said
    assert "cannot be told: AWS STS did not answer" in opened
    assert "credentials" not in opened
    assert ACCOUNT in found(findings, "account").said
    assert found(findings, f"kms:Sign {HOME}").ok


def test_without_sts_the_policy_is_for_the_account_of_the_key(
    kms: FakeKms, kms_only: KmsSettings
) -> None:
    kms.deny("kms:EnableKey")
    said = examine(kms_only)[-1].said
    assert f"arn:aws:kms:{HOME}:{ACCOUNT}:key/*" in said


def test_without_sts_another_account_is_found_by_the_key(kms_only: KmsSettings) -> None:
    one = found(examine(replace(kms_only, account="999999999999")), "account")
    assert not one.ok
    assert ACCOUNT in one.said


def test_without_sts_and_any_key_the_account_stays_untold(
    kms: FakeKms, kms_only: KmsSettings
) -> None:
    kms.deny("kms:CreateKey", "kms:ListKeys")
    findings = examine(kms_only)
    assert found(findings, "open").ok
    assert "cannot be told" in found(findings, "account").said


def test_an_endpoint_without_list_aliases_will_do(kms: FakeKms) -> None:
    kms.fault("error", operation="ListAliases", code="InternalFailure", status=501)
    findings = examine(settings(kms))
    assert [one for one in findings if not one.ok] == []
    assert "by their tags" in found(findings, f"kms:ListAliases {HOME}").said


def test_a_throw_away_key_that_is_not_understood(kms: FakeKms) -> None:
    kms.fault("answer", operation="CreateKey", members={"KeyMetadata": {"KeyId": "x"}})
    one = found(examine(settings(kms)), f"throw-away key {HOME}")
    assert not one.ok
    assert "not understood" in one.said
    kms.restart(keep=False)  # what was made is nobody's


@pytest.fixture
def spread_key(kms: FakeKms) -> Iterator[BackendKey]:
    made = settings(kms, multi_region=True)
    backend = KmsBackend(made)
    key = backend.create_key(ES256, request_id="in-use", keyset="demo")
    kms.forget_calls()
    yield key
    kms.deny()
    backend.destroy_key(key.ref)
    backend.close()


def of_used(findings: list[Finding], action: str, region: str) -> Finding:
    (one,) = [
        one
        for one in findings
        if one.check.startswith(f"{action} of the used key") and one.check.endswith(region)
    ]
    return one


def test_a_signer_alone_is_examined_by_the_keys_in_use(
    kms: FakeKms, spread_key: BackendKey
) -> None:
    kms.deny(*({f"kms:{one}" for one in OPERATIONS} - allowed_actions(signer(SCOPE))))
    findings = examine(settings(kms, multi_region=True), used=[spread_key])
    for region in (HOME, OTHER):
        assert of_used(findings, "kms:Sign", region).ok
        assert of_used(findings, "kms:DescribeKey", region).ok
    assert [one.dry_run for one in kms.signs()] == [True, True]


@pytest.mark.parametrize("action", ["kms:Sign", "kms:DescribeKey"])
def test_what_is_denied_on_a_key_in_use_is_in_the_policy_to_paste(
    kms: FakeKms, spread_key: BackendKey, action: str
) -> None:
    kms.deny(action, "kms:CreateKey")
    findings = examine(settings(kms, multi_region=True), used=[spread_key])
    assert not of_used(findings, action, OTHER).ok
    last = findings[-1].said
    assert action in allowed_actions(json.loads(last[last.index("{") :]))


def test_keys_of_a_region_that_is_not_configured_are_left_out(
    kms: FakeKms, spread_key: BackendKey
) -> None:
    far = replace(spread_key, ref=f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1234")
    strange = replace(spread_key, ref="no-arn")
    findings = examine(settings(kms), used=[far, strange, spread_key])
    used = [one for one in findings if "of the used key" in one.check]
    assert {one.check.rpartition(" ")[2] for one in used} == {HOME}
    assert all(one.ok for one in used)


def test_evidence_goes_by_the_endpoint_that_is_asked(
    kms: FakeKms, spread_key: BackendKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", kms.endpoint)
    backend = KmsBackend(settings(kms, multi_region=True, endpoint=None))
    try:
        custody = backend.evidence(spread_key.ref).custody
    finally:
        backend.close()
    assert custody["endpoint"] == kms.endpoint
    assert "no endpoint of AWS" in custody["device"]


def test_another_account_than_the_configured_one(kms: FakeKms) -> None:
    one = found(examine(settings(kms, account="999999999999")), "account")
    assert not one.ok
    assert ACCOUNT in one.said


def test_a_clock_that_is_off(kms: FakeKms) -> None:
    late = datetime.now(UTC) - timedelta(minutes=3)
    one = found(examine(settings(kms), now=lambda: late), f"clock {HOME}")
    assert not one.ok
    assert "behind" in one.said


def test_credentials_that_expire(kms: FakeKms) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)
    one = found(examine(settings(kms), Told({}, soon)), "credentials")
    assert one.ok
    assert "soon" in one.said
    gone = datetime.now(UTC) - timedelta(minutes=5)
    assert not found(examine(settings(kms), Told({}, gone)), "credentials").ok


def test_quotas_that_may_not_be_read_are_no_failure(kms: FakeKms) -> None:
    one = found(examine(settings(kms), Told({})), f"quotas {HOME}")
    assert one.ok
    assert "cannot be read" in one.said


def test_a_limiter_that_is_not_below_the_quota(kms: FakeKms) -> None:
    quotas = {"Cryptographic operations (RSA) request rate": 500.0}
    one = found(examine(settings(kms), Told(quotas)), f"quotas {HOME}")
    assert not one.ok
    assert "500/s" in one.said


def test_an_examination_that_is_broken_off_leaves_no_key(kms: FakeKms) -> None:
    made = settings(kms)
    regions = Regions(made)
    run = Examination(made, regions, surroundings=Told({})).run()
    for finding in run:
        if finding.check.startswith("kms:Sign"):
            break
    run.close()  # type: ignore[attr-defined]
    regions.close()
    assert usable_keys(made) == []


def test_what_the_signer_calls_is_what_its_policy_allows(kms: FakeKms) -> None:
    made = settings(kms, multi_region=True)
    first = KmsBackend(made)
    key = first.create_key(ES256, request_id="signer", keyset="demo")
    first.close()
    kms.forget_calls()
    serving = KmsBackend(made)
    serving.check()
    serving.sign(key, b"message")
    serving.check()
    serving.evidence(key.ref)
    assert called(kms) == allowed_actions(signer(SCOPE))
    serving.destroy_key(key.ref)
    serving.close()


def test_what_the_manager_calls_is_what_its_policy_allows(kms: FakeKms) -> None:
    kms.restart(keep=False)
    made = settings(kms, multi_region=True)
    backend = KmsBackend(made)
    backend.check()
    key = backend.create_key(ES256, request_id="manager", keyset="demo")
    backend.sign(key, b"proof of possession")
    backend.get_key(key.ref)
    assert [one.ref for one in backend.list_keys()] == [key.ref]
    # KMS asks for these by itself, within CreateKey and ReplicateKey.
    implied = {"kms:TagResource", "iam:CreateServiceLinkedRole"}
    assert called(kms) == allowed_actions(manager(SCOPE)) - implied
    backend.destroy_key(key.ref)
    backend.close()


def test_what_break_glass_calls_is_what_its_policy_allows(kms: FakeKms) -> None:
    made = settings(kms, multi_region=True)
    first = KmsBackend(made)
    key = first.create_key(ES256, request_id="glass", keyset="demo")
    first.close()
    kms.forget_calls()
    backend = KmsBackend(made)
    backend.destroy_key(key.ref)
    backend.cancel_destruction(key.ref)
    assert called(kms) == allowed_actions(break_glass(SCOPE))
    backend.destroy_key(key.ref)
    backend.close()


@pytest.mark.parametrize("role", [signer, manager, break_glass])
def test_nothing_that_no_role_has_is_ever_called(kms: FakeKms, role: Any) -> None:
    never = next(one for one in role(SCOPE)["Statement"] if one["Sid"] == "Never")["Action"]
    kms.deny(*never)
    assert [one for one in examine(settings(kms, multi_region=True)) if not one.ok] == []
