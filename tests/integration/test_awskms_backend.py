"""The AWS KMS backend against a strict fake: what the contract does not say."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from kmsjwks.backends.awskms.backend import KmsBackend
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BackendUnavailable,
    CredentialsExpired,
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    MessageTooLarge,
    UnsupportedAlgorithm,
    WrongAccount,
    WrongRegion,
)
from kmsjwks.domain.jwk import key_id
from kmsjwks.domain.ports import BackendKey
from kmsjwks.domain.signatures import make_verifier
from kmsjwks.testing.verifiers import verifies
from tests.support.awskms import HOME, IMPATIENT, REPLICA, THIRD, kms_settings, open_kms
from tests.support.kms import ACCOUNT, FakeKms

ES256 = find_algorithm("ES256")
ED25519 = find_algorithm("Ed25519")
ML_DSA = find_algorithm("ML-DSA-44")
PS256 = find_algorithm("PS256")
RS256 = find_algorithm("RS256")
DAY = 86400.0


class Crash(BaseException):
    """The process dies here."""


class CrashingRegions(Regions):
    """Dies instead of one operation."""

    def __init__(self, settings: KmsSettings, operation: str) -> None:
        super().__init__(settings)
        self._operation = operation

    def call(self, operation: str, params: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        if operation == self._operation:
            raise Crash
        return super().call(operation, params, **how)


class Time:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Hurrying:
    """A clock that is 5 seconds further each time it is read."""

    def __init__(self) -> None:
        self._read = itertools.count(0.0, 5.0)

    def now(self) -> float:
        return next(self._read)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKms]:
    with FakeKms() as kms:
        yield kms


@pytest.fixture
def kms(server: FakeKms) -> Iterator[FakeKms]:
    """The module's, as new but for the keys that other tests made."""
    server.forget_calls()
    yield server
    server.clear_faults()
    server.settings(page_size=None, visible_after=0.0, creating_for=0.0, expired_access_keys=[])
    server.deny()


@pytest.fixture
def settings(kms: FakeKms) -> KmsSettings:
    return kms_settings(kms.endpoint)


@pytest.fixture
def family(kms: FakeKms) -> KmsSettings:
    """Multi-Region keys in two Regions; one that fails is not asked again in the test."""
    return kms_settings(
        kms.endpoint,
        regions=(HOME, REPLICA),
        multi_region=True,
        failure_threshold=1,
        open_seconds=60.0,
    )


@pytest.fixture
def backend(settings: KmsSettings) -> Iterator[KmsBackend]:
    backend = open_kms(settings)
    yield backend
    backend.close()


@pytest.fixture
def spread(family: KmsSettings) -> Iterator[KmsBackend]:
    backend = open_kms(family)
    yield backend
    backend.close()


def aws(settings: KmsSettings, region: str = HOME) -> Any:
    """An administrator's client."""
    keys = settings.credentials
    assert keys is not None
    return boto3.client(
        "kms",
        region_name=region,
        endpoint_url=settings.endpoint,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
    )


def state_of(settings: KmsSettings, ref: str, region: str = HOME) -> str:
    key = ref.rpartition("/")[2]
    return str(aws(settings, region).describe_key(KeyId=key)["KeyMetadata"]["KeyState"])


def aliases_of(settings: KmsSettings, ref: str, region: str = HOME) -> list[str]:
    answer = aws(settings, region).list_aliases(KeyId=ref.rpartition("/")[2])
    return [alias["AliasName"] for alias in answer["Aliases"]]


def cut(kms: FakeKms, region: str) -> None:
    kms.fault("reset", region=region)


def uses(backend: KmsBackend, key: BackendKey) -> list[Callable[[], object]]:
    return [
        lambda: backend.sign(key, b"message"),
        lambda: backend.get_key(key.ref),
        lambda: backend.evidence(key.ref),
    ]


def test_tags_and_alias(backend: KmsBackend, settings: KmsSettings) -> None:
    key = backend.create_key(ES256, request_id="one", keyset="orders.v2")
    tags = aws(settings).list_resource_tags(KeyId=key.ref)["Tags"]
    assert {tag["TagKey"]: tag["TagValue"] for tag in tags} == {
        "kmsjwks:installation": settings.installation,
        "kmsjwks:keyset": "orders.v2",
        "kmsjwks:alg": "ES256",
        "kmsjwks:request-id": "one",
    }
    kid = key_id(key.spki, ES256)
    name = f"alias/kmsjwks/{settings.installation}/orders_v2/{kid}"
    assert aliases_of(settings, key.ref) == [name]


@pytest.mark.parametrize("operation", ["DescribeKey", "GetPublicKey", "CreateAlias"])
def test_a_crash_in_the_midst_of_creation_is_taken_up(
    kms: FakeKms, settings: KmsSettings, operation: str
) -> None:
    with pytest.raises(Crash):
        dying = open_kms(settings, CrashingRegions(settings, operation))
        dying.create_key(ES256, request_id="one", keyset="orders")
    backend = open_kms(settings)
    key = backend.create_key(ES256, request_id="one", keyset="orders")
    assert kms.calls("CreateKey") == 1
    assert len(aliases_of(settings, key.ref)) == 1
    assert list(backend.list_keys()) == [key]


def test_an_alias_that_is_there_already(kms: FakeKms, settings: KmsSettings) -> None:
    first = open_kms(settings).create_key(ES256, request_id="one")
    assert open_kms(settings).create_key(ES256, request_id="one") == first
    assert kms.calls("CreateKey") == 1
    assert kms.calls("CreateAlias") == 2


def test_adopted_beyond_the_first_page(kms: FakeKms, settings: KmsSettings) -> None:
    kms.settings(page_size=2)
    maker = open_kms(settings)
    made = [maker.create_key(ES256, request_id=str(number)) for number in range(7)]
    other = open_kms(settings)
    assert [other.create_key(ES256, request_id=str(number)) for number in range(7)] == made
    assert {key.ref for key in other.list_keys()} == {key.ref for key in made}


def test_creating_asks_for_each_foreign_key_once(kms: FakeKms, settings: KmsSettings) -> None:
    admin = aws(settings)
    foreign = [admin.create_key()["KeyMetadata"]["Arn"] for _ in range(5)]
    kms.deny("kms:ListResourceTags", resource=foreign[0])
    backend = open_kms(settings)
    backend.create_key(ES256, request_id="first")
    kms.forget_calls()
    for number in range(3):
        backend.create_key(ES256, request_id=str(number))
    assert kms.calls("ListResourceTags") == 3  # of each new key, when it was read


def test_foreign_keys_are_left_alone(
    backend: KmsBackend, settings: KmsSettings, kms: FakeKms
) -> None:
    admin = aws(settings)
    asked = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
    untagged = admin.create_key(**asked)["KeyMetadata"]["Arn"]
    others = open_kms(kms_settings(kms.endpoint)).create_key(ES256, request_id="one").ref
    for ref in (untagged, others):
        for refused in (backend.destroy_key, backend.cancel_destruction):
            with pytest.raises(BackendDenied):
                refused(ref)
        with pytest.raises(KeyNotFound):
            backend.get_key(ref)
        assert state_of(settings, ref) == "Enabled"
    assert list(backend.list_keys()) == []
    assert backend.create_key(ES256, request_id="one").ref != others


def duplicate(settings: KmsSettings, key: BackendKey) -> str:
    """Another key with the same tags."""
    tags = aws(settings).list_resource_tags(KeyId=key.ref)["Tags"]
    asked = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "Tags": tags}
    return str(aws(settings).create_key(**asked)["KeyMetadata"]["Arn"])


def test_two_keys_of_one_request(
    backend: KmsBackend, settings: KmsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is used, the other stays where doctor finds its orphans."""
    first = backend.create_key(ES256, request_id="one")
    second = duplicate(settings, first)
    assert open_kms(settings).create_key(ES256, request_id="one") == first
    assert {key.ref for key in open_kms(settings).list_keys()} == {first.ref, second}
    admin = aws(settings)
    for alias in aliases_of(settings, first.ref):
        admin.delete_alias(AliasName=alias)
    with caplog.at_level(logging.WARNING):
        assert open_kms(settings).create_key(ES256, request_id="one") == first
    assert second in caplog.text
    assert state_of(settings, second) == "Enabled"


def test_a_creation_whose_answer_is_lost(kms: FakeKms, settings: KmsSettings) -> None:
    kms.fault("reset", operation="CreateKey", applied=True, count=1)
    backend = open_kms(settings)
    key = backend.create_key(ES256, request_id="one")
    assert open_kms(settings).create_key(ES256, request_id="one") == key
    assert kms.calls("CreateKey") == 1
    assert list(backend.list_keys()) == [key]


def test_a_creation_in_doubt_is_not_made_again_at_once(kms: FakeKms, settings: KmsSettings) -> None:
    kms.settings(visible_after=3600.0, late_operations=["ListKeys", "DescribeKey"])
    kms.fault("reset", operation="CreateKey", applied=True, count=1)
    clock = Time()
    backend = open_kms(settings, patience=replace(IMPATIENT, clock=clock))
    with pytest.raises(BackendUnavailable, match="did not answer"):
        backend.create_key(ES256, request_id="one")
    with pytest.raises(BackendUnavailable, match="did not say") as doubt:
        backend.create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1
    kms.settings(visible_after=0.0)
    clock.seconds += doubt.value.retry_after
    backend.create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1


def test_a_creation_may_be_slow(kms: FakeKms, settings: KmsSettings) -> None:
    kms.fault("latency", operation="CreateKey", seconds=0.6)
    backend = open_kms(replace(settings, read_timeout=0.3))
    backend.create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1


def test_no_key_is_made_in_a_wrong_account(kms: FakeKms, settings: KmsSettings) -> None:
    for _ in range(2):  # the first time there may be no key yet to tell the account by
        with pytest.raises(WrongAccount, match=ACCOUNT):
            open_kms(replace(settings, account="999999999999")).create_key(ES256, request_id="one")
        open_kms(replace(settings, account=ACCOUNT)).create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1


def test_a_wrong_account_without_keys() -> None:
    with FakeKms() as kms:
        settings = kms_settings(kms.endpoint, account="999999999999")
        with pytest.raises(WrongAccount):
            open_kms(settings).create_key(ES256, request_id="one")
        assert kms.calls("CreateKey") == 0


def test_keys_with_an_alias_of_others_cost_nothing(kms: FakeKms, settings: KmsSettings) -> None:
    admin = aws(settings)
    plain, named = (admin.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
    admin.create_alias(AliasName=f"alias/{settings.installation}", TargetKeyId=named)
    kms.deny("kms:ListResourceTags", resource=f"arn:aws:kms:{HOME}:{ACCOUNT}:key/{named}")
    first = open_kms(settings).create_key(ES256, request_id="one")
    kms.forget_calls()
    assert open_kms(settings).create_key(ES256, request_id="one") == first
    assert kms.calls("ListResourceTags") == 2  # of the one with our alias, twice
    kms.deny("kms:ListAliases")
    assert open_kms(settings).create_key(ES256, request_id="one") == first
    assert plain != named


def test_foreign_keys_of_another_kind_are_passed_over(kms: FakeKms, settings: KmsSettings) -> None:
    listed = [{"KeyId": "x", "KeyArn": "arn:aws:kms:us-east-1:111122223333:key/of_another_kind"}]
    kms.fault("answer", operation="ListKeys", members={"Keys": listed})
    backend = open_kms(settings)
    key = backend.create_key(ES256, request_id="one")
    assert list(backend.list_keys()) == [key]


class EndlessTags(Regions):
    """Always one more page of tags, by ``marker``."""

    def __init__(self, settings: KmsSettings, marker: str | None) -> None:
        super().__init__(settings)
        self._marker = {} if marker is None else {"NextMarker": marker}

    def call(self, operation: str, params: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        if operation == "ListResourceTags":
            return {"Tags": [], "Truncated": True, **self._marker}
        return super().call(operation, params, **how)


@pytest.mark.parametrize("marker", ["x", None])
def test_tags_that_do_not_end(
    backend: KmsBackend, settings: KmsSettings, marker: str | None
) -> None:
    key = backend.create_key(ES256, request_id="one")
    with pytest.raises(BackendProtocolError, match="does not end"):
        open_kms(settings, EndlessTags(settings, marker)).get_key(key.ref)


class HidingReplicas(Regions):
    """Of a Region that does not know of them yet."""

    def call(self, operation: str, params: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        answer = super().call(operation, params, **how)
        if operation == "DescribeKey":
            answer["KeyMetadata"]["MultiRegionConfiguration"]["ReplicaKeys"] = []
        return answer


def test_a_replica_that_is_there_already(
    kms: FakeKms, spread: KmsBackend, family: KmsSettings
) -> None:
    """Somebody else was quicker, or an answer was lost."""
    key = spread.create_key(ES256, request_id="one")
    assert open_kms(family, HidingReplicas(family)).create_key(ES256, request_id="one") == key
    assert kms.calls("ReplicateKey") == 2


def test_health_of_who_never_signs(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings
) -> None:
    """Nothing that CloudTrail would record as an error, once there is a key."""
    key = backend.create_key(ES256, request_id="one")
    idle = open_kms(settings)
    idle.remember("no ARN")
    idle.remember(key.ref)
    kms.forget_calls()
    kms.error("NotFoundException", operation="DescribeKey", count=1)
    for _ in range(3):
        idle.check()  # the first finds it gone, and asks about nothing for a while
    assert kms.calls("DescribeKey") == 2
    idle.remember(key.ref)
    for _ in range(3):
        idle.check()
    assert kms.calls("DescribeKey") == 5


def test_health_of_an_installation_without_keys(kms: FakeKms, backend: KmsBackend) -> None:
    for _ in range(5):
        backend.check()
    assert kms.calls("DescribeKey") == 1


def test_a_key_that_was_just_made_is_not_made_again(kms: FakeKms, settings: KmsSettings) -> None:
    kms.settings(visible_after=3600.0, late_operations=["ListKeys", "DescribeKey"])
    backend = open_kms(settings, patience=replace(IMPATIENT, clock=Hurrying().now))
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            backend.create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1
    kms.settings(visible_after=0.0)
    backend.create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1


def test_a_request_of_another_algorithm(backend: KmsBackend, settings: KmsSettings) -> None:
    key = backend.create_key(RS256, request_id="one")
    with pytest.raises(UnsupportedAlgorithm, match="RS256"):
        open_kms(settings).create_key(PS256, request_id="one")
    backend.destroy_key(key.ref)
    assert backend.create_key(PS256, request_id="one").ref != key.ref


def test_a_key_that_aws_does_not_show_everywhere_yet(kms: FakeKms, settings: KmsSettings) -> None:
    kms.settings(visible_after=0.3, late_operations=["ListKeys", "DescribeKey", "GetPublicKey"])
    backend = open_kms(settings)
    key = backend.create_key(ES256, request_id="one")
    assert backend.create_key(ES256, request_id="one") == key
    assert kms.calls("CreateKey") == 1
    kms.settings(late_operations=["ListKeys", "DescribeKey"])


def test_creation_waits_out_a_quota(kms: FakeKms, backend: KmsBackend) -> None:
    kms.throttle(operation="CreateKey", count=2)  # boto3 asks twice by itself
    backend.create_key(ES256, request_id="one")


def test_a_ref_is_a_key_arn_of_ours(kms: FakeKms) -> None:
    backend = open_kms(kms_settings(kms.endpoint, account=ACCOUNT))
    key = backend.create_key(ES256, request_id="one")
    kms.forget_calls()
    with pytest.raises(WrongRegion, match="replica_regions"):
        backend.sign(replace(key, ref=key.ref.replace(HOME, THIRD)), b"message")
    for ref, error in {
        key.ref.replace(HOME, THIRD): WrongRegion,
        key.ref.replace(ACCOUNT, "999999999999"): WrongAccount,
        key.ref.rpartition("/")[2]: KeyNotFound,
        "alias/kmsjwks/x": KeyNotFound,
    }.items():
        for use in uses(backend, replace(key, ref=ref)):
            with pytest.raises(error):
                use()
        with pytest.raises(error):
            backend.destroy_key(ref)
        with pytest.raises(error):
            backend.cancel_destruction(ref)
    assert kms.calls("DescribeKey") + kms.calls("Sign") == 0


@pytest.mark.parametrize(
    ("alg", "size", "message_type", "length"),
    [
        (ES256, 5000, "DIGEST", 32),
        (RS256, 5000, "DIGEST", 32),
        (ED25519, 4096, "RAW", 4096),
        (ML_DSA, 4096, "RAW", 4096),
        (ML_DSA, 4097, "EXTERNAL_MU", 64),
    ],
    ids=str,
)
def test_signing_is_one_call_of_sign(
    kms: FakeKms, backend: KmsBackend, alg: Any, size: int, message_type: str, length: int
) -> None:
    key = backend.create_key(alg, request_id="one")
    kms.forget_calls()
    message = b"m" * size
    assert verifies(alg, key.spki, message, backend.sign(key, message))
    [sign] = kms.signs()
    assert (sign.key, sign.message_type, sign.length) == (key.ref, message_type, length)
    assert sum(kms.calls(name) for name in ("DescribeKey", "GetPublicKey", "ListKeys")) == 0


def test_too_large_a_message_is_not_sent(kms: FakeKms, backend: KmsBackend) -> None:
    key = backend.create_key(ED25519, request_id="one")
    with pytest.raises(MessageTooLarge, match="4097"):
        backend.sign(key, b"m" * 4097)
    assert kms.calls("Sign") == 0


@pytest.mark.parametrize(
    "members",
    [
        {"KeyId": f"arn:aws:kms:{HOME}:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"},
        {"KeyId": "alias/kmsjwks/x"},
        {"SigningAlgorithm": "RSASSA_PSS_SHA_256"},
        {"Signature": "AAAA"},
        {"Signature": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("alg", [ES256, RS256], ids=str)
def test_wrong_answers_are_dropped(
    kms: FakeKms, backend: KmsBackend, alg: Any, members: dict[str, Any]
) -> None:
    key = backend.create_key(alg, request_id="one")
    kms.fault("answer", operation="Sign", members=members)
    with pytest.raises(BackendProtocolError):
        backend.sign(key, b"message")


@pytest.mark.parametrize(
    "members", [{"KeyId": None}, {"SigningAlgorithm": None}, {"KeyId": "its id"}], ids=str
)
def test_answers_may_say_less_than_those_of_aws(
    kms: FakeKms, backend: KmsBackend, members: dict[str, Any]
) -> None:
    """An emulator's: the signature is verified all the same."""
    key = backend.create_key(ES256, request_id="one")
    bare = {"KeyId": key.ref.rpartition("/")[2]} if members.get("KeyId") else members
    kms.fault("answer", operation="Sign", members=bare)
    assert make_verifier(ES256, key.spki)(b"message", backend.sign(key, b"message"))


@pytest.mark.parametrize(
    "gone",
    [("KeySpec",), ("KeyState",), ("CreationDate",), ("Origin", "MultiRegion", "KeyManager")],
    ids=" ".join,
)
def test_key_metadata_may_have_less_than_that_of_aws(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings, gone: tuple[str, ...]
) -> None:
    """The API Reference promises KeyId only; KeySpec was CustomerMasterKeySpec before 2021."""
    key = backend.create_key(ES256, request_id="one")
    said = aws(settings).describe_key(KeyId=key.ref)["KeyMetadata"]
    said["CreationDate"] = said["CreationDate"].timestamp()
    members = {"KeyMetadata": {name: value for name, value in said.items() if name not in gone}}
    kms.fault("answer", operation="DescribeKey", members=members)
    assert open_kms(settings).create_key(ES256, request_id="one") == key


def test_without_list_aliases_keys_are_found_by_their_tags(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings
) -> None:
    key = backend.create_key(ES256, request_id="one")
    kms.fault("error", operation="ListAliases", code="UnknownOperationException")
    assert open_kms(settings).create_key(ES256, request_id="one") == key
    assert kms.calls("CreateKey") == 1


@pytest.mark.parametrize("members", [{"PublicKey": "AAAA"}, {"PublicKey": None}], ids=str)
def test_a_wrong_public_key_makes_no_key(
    kms: FakeKms, backend: KmsBackend, members: dict[str, Any]
) -> None:
    kms.fault("answer", operation="GetPublicKey", members=members)
    with pytest.raises(BackendProtocolError):
        backend.create_key(ES256, request_id="one")
    kms.clear_faults()
    backend.create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1


def test_a_disabled_key(backend: KmsBackend, settings: KmsSettings) -> None:
    key = backend.create_key(ES256, request_id="one")
    aws(settings).disable_key(KeyId=key.ref)
    with pytest.raises(KeyDisabled):
        backend.sign(key, b"message")
    with pytest.raises(KeyDisabled):
        open_kms(settings).get_key(key.ref)
    assert backend.evidence(key.ref).attributes["KeyState"] == "Disabled"
    backend.cancel_destruction(key.ref)
    assert backend.get_key(key.ref) == key


def test_a_key_on_its_way_out() -> None:
    with FakeKms() as kms:  # its own, because its clock is moved
        backend = open_kms(kms_settings(kms.endpoint))
        key = backend.create_key(ES256, request_id="one")
        for _ in range(2):
            date = backend.destroy_key(key.ref)
            assert timedelta(days=6.9) < date - datetime.now(UTC) < timedelta(days=7.1)
        assert kms.calls("ScheduleKeyDeletion") == 1
        for use in uses(backend, key):
            with pytest.raises(KeyPendingDeletion):
                use()
        kms.advance(8 * DAY)
        for use in (*uses(backend, key), lambda: backend.cancel_destruction(key.ref)):
            with pytest.raises(KeyNotFound) as gone:
                use()
            assert not isinstance(gone.value, KeyPendingDeletion)
        assert backend.destroy_key(key.ref) <= datetime.now(UTC)


def test_cancelling_takes_up_where_it_broke(backend: KmsBackend, settings: KmsSettings) -> None:
    key = backend.create_key(ES256, request_id="one")
    backend.destroy_key(key.ref)
    with pytest.raises(Crash):
        open_kms(settings, CrashingRegions(settings, "EnableKey")).cancel_destruction(key.ref)
    assert state_of(settings, key.ref) == "Disabled"
    backend.cancel_destruction(key.ref)
    backend.sign(key, b"message")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("AccessDeniedException", BackendDenied),
        ("ExpiredTokenException", CredentialsExpired),
        ("KMSInternalException", BackendUnavailable),
        ("NotFoundException", KeyNotFound),
    ],
)
def test_refusals_are_typed(
    kms: FakeKms, backend: KmsBackend, code: str, error: type[BackendError]
) -> None:
    key = backend.create_key(ES256, request_id="one")
    kms.error(code)
    for use in uses(backend, key):
        with pytest.raises(error):
            use()
    with pytest.raises(error):
        list(backend.list_keys())
    with pytest.raises(error):
        backend.create_key(ES256, request_id="two")


def test_evidence(backend: KmsBackend, settings: KmsSettings) -> None:
    key = backend.create_key(ES256, request_id="one")
    evidence = backend.evidence(key.ref)
    assert evidence.sound
    assert evidence.attributes["Origin"] == "AWS_KMS"
    assert evidence.attributes["KeySpec"] == "ECC_NIST_P256"
    assert evidence.custody["account"] == ACCOUNT
    assert "no endpoint of AWS" in evidence.custody["device"]
    assert "no operation" in evidence.custody["export"]
    aws(settings).untag_resource(KeyId=key.ref, TagKeys=["kmsjwks:alg"])
    assert "tags" in backend.evidence(key.ref).findings[0]
    wrong = [{"TagKey": "kmsjwks:alg", "TagValue": "RS256"}]
    aws(settings).tag_resource(KeyId=key.ref, Tags=wrong)
    assert "KeySpec" in backend.evidence(key.ref).findings[0]


@pytest.mark.parametrize(
    ("member", "value", "finding"),
    [
        ("Origin", "EXTERNAL", "imported"),
        ("Origin", "EXTERNAL_KEY_STORE", "how the key is kept"),
        ("KeyManager", "AWS", "must be CUSTOMER"),
        ("KeyUsage", "KEY_AGREEMENT", "must be SIGN_VERIFY"),
    ],
)
def test_evidence_against_a_key(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings, member: str, value: str, finding: str
) -> None:
    key = backend.create_key(ES256, request_id="one")
    said = aws(settings).describe_key(KeyId=key.ref)["KeyMetadata"]
    said["CreationDate"] = said["CreationDate"].timestamp()
    members = {"KeyMetadata": {**said, member: value}}
    kms.fault("answer", operation="DescribeKey", members=members)
    evidence = backend.evidence(key.ref)
    assert not evidence.sound
    assert any(finding in one for one in evidence.findings)


def test_check_never_signs(kms: FakeKms, backend: KmsBackend, settings: KmsSettings) -> None:
    backend.check()
    key = backend.create_key(ES256, request_id="one")
    backend.check()
    aws(settings).disable_key(KeyId=key.ref)
    backend.check()
    kms.deny("kms:DescribeKey")
    open_kms(settings).check()
    assert kms.calls("Sign") == 0


def test_a_state_that_the_answer_does_not_name_is_looked_up(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings
) -> None:
    """AWS puts it into the message, which an emulator words as it likes."""
    key, admin = backend.create_key(ES256, request_id="one"), aws(settings)
    kms.error("KMSInvalidStateException", operation="Sign", message="Not valid for this request.")
    with pytest.raises(BackendProtocolError, match="describe-key"):
        backend.sign(key, b"message")
    admin.disable_key(KeyId=key.ref)
    with pytest.raises(KeyDisabled):
        backend.sign(key, b"message")
    admin.schedule_key_deletion(KeyId=key.ref, PendingWindowInDays=7)
    with pytest.raises(KeyPendingDeletion):
        backend.sign(key, b"message")


def test_credentials_of_another_account_are_named(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings
) -> None:
    key = backend.create_key(ES256, request_id="one")
    said = f"User: arn:aws:iam::999999999999:user/x is not authorized to perform: kms:Sign on {key}"
    kms.error("AccessDeniedException", message=said)
    with pytest.raises(WrongAccount, match="999999999999"):
        backend.sign(key, b"message")
    backend.check()  # AWS KMS answers, and Sign may be allowed where DescribeKey is not
    assert backend.status().available


@pytest.mark.parametrize("used", [False, True])
def test_what_aws_refuses_it_is_there_to_refuse(
    kms: FakeKms, backend: KmsBackend, used: bool
) -> None:
    """Neither a permission nor a quota of DescribeKey says that signatures cannot be had."""
    if used:
        backend.create_key(ES256, request_id="one")
    kms.deny("kms:DescribeKey")
    backend.check()
    kms.deny()
    kms.throttle(operation="DescribeKey")
    backend.check()


@pytest.mark.parametrize("used", [False, True])
def test_check_says_what_is_wrong(
    kms: FakeKms, backend: KmsBackend, settings: KmsSettings, used: bool
) -> None:
    if used:
        backend.create_key(ES256, request_id="one")
    assert settings.credentials is not None
    kms.settings(expired_access_keys=[settings.credentials.access_key_id])
    with pytest.raises(CredentialsExpired):
        backend.check()
    kms.settings(expired_access_keys=[])
    kms.fault("reset")
    with pytest.raises(BackendUnavailable):
        backend.check()


def test_replicas_are_made_named_and_destroyed(
    kms: FakeKms, spread: KmsBackend, family: KmsSettings
) -> None:
    kms.settings(creating_for=0.3)
    key = spread.create_key(ES256, request_id="one", keyset="orders")
    assert f":{HOME}:" in key.ref
    assert state_of(family, key.ref, REPLICA) == "Enabled"
    assert aliases_of(family, key.ref, REPLICA) == aliases_of(family, key.ref) != []
    evidence = spread.evidence(key.ref)
    assert (evidence.attributes["MultiRegion"], evidence.attributes["ReplicaRegions"]) == (
        True,
        REPLICA,
    )
    date = spread.destroy_key(key.ref)
    assert timedelta(days=13.9) < date - datetime.now(UTC) < timedelta(days=14.1)
    assert state_of(family, key.ref) == "PendingReplicaDeletion"
    assert state_of(family, key.ref, REPLICA) == "PendingDeletion"
    assert spread.destroy_key(key.ref) - date < timedelta(minutes=1)
    spread.cancel_destruction(key.ref)
    assert {state_of(family, key.ref, region) for region in family.regions} == {"Enabled"}


def test_another_region_signs_when_home_is_cut(
    kms: FakeKms, spread: KmsBackend, family: KmsSettings
) -> None:
    key = spread.create_key(ES256, request_id="one")
    cut(kms, HOME)
    for _ in range(3):
        assert verifies(ES256, key.spki, b"message", spread.sign(key, b"message"))
    assert {sign.region for sign in kms.signs()} == {REPLICA}
    spread.check()
    assert spread.status().available
    assert spread.get_key(key.ref) == key
    with pytest.raises(BackendUnavailable):
        spread.create_key(ES256, request_id="two")
    cut(kms, REPLICA)
    with pytest.raises(BackendUnavailable):
        spread.sign(key, b"message")
    assert not spread.status().available


def test_a_single_region_key_is_asked_at_home_only(kms: FakeKms, settings: KmsSettings) -> None:
    regional = open_kms(replace(settings, regions=(HOME, REPLICA)))
    key = regional.create_key(ES256, request_id="one")
    cut(kms, HOME)
    with pytest.raises(BackendUnavailable):
        regional.sign(key, b"message")
    assert kms.calls("Sign", REPLICA) == 0


def test_a_replica_region_that_is_down_at_creation(
    kms: FakeKms, spread: KmsBackend, family: KmsSettings
) -> None:
    cut(kms, REPLICA)
    with pytest.raises(BackendUnavailable, match=REPLICA):
        spread.create_key(ES256, request_id="one")
    kms.clear_faults()
    key = open_kms(family).create_key(ES256, request_id="one")
    assert kms.calls("CreateKey") == 1
    assert state_of(family, key.ref, REPLICA) == "Enabled"


def test_a_missing_replica_is_an_outage_and_no_lost_key(kms: FakeKms, family: KmsSettings) -> None:
    alone = open_kms(replace(family, regions=(HOME,)))
    key = alone.create_key(ES256, request_id="one")
    spread = open_kms(family)
    cut(kms, HOME)
    with pytest.raises(BackendUnavailable, match="no replica"):
        spread.sign(key, b"message")


def test_a_destruction_does_what_it_can(
    kms: FakeKms, spread: KmsBackend, family: KmsSettings
) -> None:
    key = spread.create_key(ES256, request_id="one")
    cut(kms, HOME)
    with pytest.raises(BackendUnavailable):
        spread.destroy_key(key.ref)
    kms.clear_faults()
    assert state_of(family, key.ref, REPLICA) == "PendingDeletion"
    assert state_of(family, key.ref) == "Enabled"
    open_kms(family).destroy_key(key.ref)
    assert state_of(family, key.ref) == "PendingReplicaDeletion"
