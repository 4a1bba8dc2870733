"""The doubles of AWS KMS themselves: strict where AWS is, and with real signatures."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, utils

from tests.support.kms import ACCOUNT, FakeKms
from tests.support.moto import CorrectedMoto

REGION = "eu-central-1"
OTHER = "eu-west-1"
MESSAGE = b"header.payload"
DIGEST = hashlib.sha256(MESSAGE).digest()
DAY = 86400.0  # seconds


def client(
    endpoint: str, region: str = REGION, access_key: str = "AKIATESTS", patience: int = 1
) -> Any:
    return _client("kms", endpoint, region, access_key, patience)


def _client(service: str, endpoint: str, region: str, access_key: str, patience: int = 1) -> Any:
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=patience, read_timeout=patience
    )
    return boto3.client(
        service, region_name=region, endpoint_url=endpoint, config=config,
        aws_access_key_id=access_key, aws_secret_access_key="not-checked",
    )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKms]:
    with FakeKms() as running:
        yield running


@pytest.fixture
def fake(server: FakeKms) -> Iterator[FakeKms]:
    server.forget_calls()
    yield server
    server.clear_faults()
    server.settings(
        denied=[], page_size=None, visible_after=0.0, creating_for=0.0, access_keys=None,
        expired_access_keys=[],
    )  # fmt: skip


@pytest.fixture(scope="module")
def moto() -> Iterator[CorrectedMoto]:
    running = CorrectedMoto()
    yield running
    running.stop()


@pytest.fixture(params=["fake", "moto"])
def kms(request: pytest.FixtureRequest) -> Any:
    """A client of each of the two doubles."""
    return client(request.getfixturevalue(request.param).endpoint)


def create(kms: Any, spec: str = "ECC_NIST_P256", **options: Any) -> str:
    arn: str = kms.create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY", **options)["KeyMetadata"]["Arn"]
    return arn


def refusal(function: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        function(**arguments)
    code: str = caught.value.response["Error"]["Code"]
    return code


def sign(kms: Any, arn: str, algorithm: str, message: bytes, kind: str) -> bytes:
    answer = kms.sign(KeyId=arn, SigningAlgorithm=algorithm, Message=message, MessageType=kind)
    assert answer["KeyId"] == arn
    made: bytes = answer["Signature"]
    return made


def public(kms: Any, arn: str) -> Any:
    answer = kms.get_public_key(KeyId=arn)
    assert answer["KeyId"] == arn
    return serialization.load_der_public_key(answer["PublicKey"])


class TestBothDoubles:
    @pytest.mark.parametrize("scheme", ["PSS", "PKCS1_V1_5"])
    def test_an_rsa_digest_is_not_hashed_again_and_the_salt_is_as_long_as_the_hash(
        self, kms: Any, scheme: str
    ) -> None:
        arn = create(kms, "RSA_2048")
        made = sign(kms, arn, f"RSASSA_{scheme}_SHA_256", DIGEST, "DIGEST")
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        key = public(kms, arn)
        assert isinstance(key, rsa.RSAPublicKey)
        chosen = pss if scheme == "PSS" else padding.PKCS1v15()
        key.verify(made, MESSAGE, chosen, hashes.SHA256())

    def test_ecdsa_is_der_over_raw_and_digest_alike(self, kms: Any) -> None:
        arn = create(kms)
        key = public(kms, arn)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for kind, message in (("RAW", MESSAGE), ("DIGEST", DIGEST)):
            made = sign(kms, arn, "ECDSA_SHA_256", message, kind)
            utils.decode_dss_signature(made)
            key.verify(made, MESSAGE, ec.ECDSA(hashes.SHA256()))

    @pytest.mark.parametrize(
        ("algorithm", "kind", "message", "code"),
        [
            ("ECDSA_SHA_256", "DIGEST", DIGEST[:-1], "ValidationException"),
            ("ECDSA_SHA_256", "RAW", bytes(4097), "ValidationException"),
            ("ECDSA_SHA_256", "EXTERNAL_MU", bytes(64), "ValidationException"),
            ("ECDSA_SHA_384", "DIGEST", bytes(48), "InvalidKeyUsageException"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, kms: Any, algorithm: str, kind: str, message: bytes, code: str
    ) -> None:
        request = {"SigningAlgorithm": algorithm, "MessageType": kind, "Message": message}
        assert refusal(kms.sign, KeyId=create(kms), **request) == code

    def test_states_decide_what_a_key_does(self, kms: Any) -> None:
        arn = create(kms)
        signing = {"KeyId": arn, "SigningAlgorithm": "ECDSA_SHA_256", "Message": MESSAGE}
        kms.disable_key(KeyId=arn)
        assert refusal(kms.sign, **signing) == "DisabledException"
        assert refusal(kms.get_public_key, KeyId=arn) == "DisabledException"
        assert refusal(kms.schedule_key_deletion, KeyId=arn, PendingWindowInDays=6) == (
            "ValidationException"
        )
        answer = kms.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
        assert (answer["KeyId"], answer["KeyState"]) == (arn, "PendingDeletion")
        for operation in (kms.enable_key, kms.disable_key, kms.get_public_key):
            assert refusal(operation, KeyId=arn) == "KMSInvalidStateException"
        assert refusal(kms.sign, **signing) == "KMSInvalidStateException"
        assert kms.cancel_key_deletion(KeyId=arn)["KeyId"] == arn
        assert kms.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Disabled"
        assert refusal(kms.cancel_key_deletion, KeyId=arn) == "KMSInvalidStateException"
        kms.enable_key(KeyId=arn)
        assert kms.sign(**signing)["KeyId"] == arn

    def test_keys_are_listed_in_pages(self, kms: Any) -> None:
        made = {create(kms) for _ in range(3)}
        first = kms.list_keys(Limit=2)
        assert (len(first["Keys"]), first["Truncated"]) == (2, True)
        pages = kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2})
        listed = [entry["KeyArn"] for page in pages for entry in page["Keys"]]
        assert made <= set(listed)
        assert len(set(listed)) == len(listed)
        assert refusal(kms.list_keys, Marker="!") == "InvalidMarkerException"

    def test_an_alias_is_unique_and_names_a_key(self, kms: Any) -> None:
        arn = create(kms)
        kms.create_alias(AliasName="alias/kmsjwks/one", TargetKeyId=arn)
        described = kms.describe_key(KeyId="alias/kmsjwks/one")["KeyMetadata"]
        assert described["Arn"] == arn
        again = {"AliasName": "alias/kmsjwks/one", "TargetKeyId": arn}
        assert refusal(kms.create_alias, **again) == "AlreadyExistsException"
        kms.delete_alias(AliasName="alias/kmsjwks/one")
        assert refusal(kms.describe_key, KeyId="alias/kmsjwks/one") == "NotFoundException"

    def test_a_replica_signs_with_the_same_key_in_its_own_region(self, kms: Any) -> None:
        arn = create(kms, MultiRegion=True)
        tags = [{"TagKey": "kmsjwks:keyset", "TagValue": "orders"}]
        answer = kms.replicate_key(KeyId=arn, ReplicaRegion=OTHER, Tags=tags)
        replica = answer["ReplicaKeyMetadata"]["Arn"]
        assert replica == arn.replace(REGION, OTHER)
        there = client(kms.meta.endpoint_url, OTHER)
        assert there.list_resource_tags(KeyId=replica)["Tags"] == tags
        kinds = [
            each.describe_key(KeyId=name)["KeyMetadata"]["MultiRegionConfiguration"]
            for each, name in ((there, replica), (kms, arn))
        ]
        assert [kind["MultiRegionKeyType"] for kind in kinds] == ["REPLICA", "PRIMARY"]
        made = sign(there, replica, "ECDSA_SHA_256", DIGEST, "DIGEST")
        public(kms, arn).verify(made, MESSAGE, ec.ECDSA(hashes.SHA256()))
        again = {"KeyId": arn, "ReplicaRegion": OTHER}
        assert refusal(kms.replicate_key, **again) == "AlreadyExistsException"
        assert refusal(there.describe_key, KeyId=arn) == "NotFoundException"

    def test_a_key_of_another_account_is_not_ours(self, kms: Any) -> None:
        foreign = f"arn:aws:kms:{REGION}:999999999999:key/{create(kms).rsplit('/')[-1]}"
        assert refusal(kms.get_public_key, KeyId=foreign) == "AccessDeniedException"


class TestSignaturesOfTheFake:
    @pytest.mark.parametrize(
        ("spec", "bits"), [("ECC_NIST_P384", 384), ("ECC_NIST_P521", 512), ("ECC_SECG_P256K1", 256)]
    )
    def test_the_other_curves(self, fake: FakeKms, spec: str, bits: int) -> None:
        kms = client(fake.endpoint)
        arn = create(kms, spec)
        digest = hashlib.new(f"sha{bits}", MESSAGE).digest()
        made = sign(kms, arn, f"ECDSA_SHA_{bits}", digest, "DIGEST")
        chosen = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}[bits]
        public(kms, arn).verify(made, MESSAGE, ec.ECDSA(chosen))

    def test_ed25519_takes_raw_messages_only(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        arn = create(kms, "ECC_NIST_EDWARDS25519")
        key = public(kms, arn)
        assert isinstance(key, ed25519.Ed25519PublicKey)
        key.verify(sign(kms, arn, "ED25519_SHA_512", MESSAGE, "RAW"), MESSAGE)
        request = {"KeyId": arn, "SigningAlgorithm": "ED25519_SHA_512"}
        for kind, message in (("DIGEST", bytes(64)), ("RAW", bytes(4097))):
            code = refusal(kms.sign, MessageType=kind, Message=message, **request)
            assert code == "ValidationException"

    @pytest.mark.parametrize("size", [44, 65, 87])
    def test_ml_dsa_signs_raw_and_external_mu(self, fake: FakeKms, size: int) -> None:
        kms = client(fake.endpoint)
        arn = create(kms, f"ML_DSA_{size}")
        key = public(kms, arn)
        kinds = (mldsa.MLDSA44PublicKey, mldsa.MLDSA65PublicKey, mldsa.MLDSA87PublicKey)
        assert isinstance(key, kinds)
        key.verify(sign(kms, arn, "ML_DSA_SHAKE_256", MESSAGE, "RAW"), MESSAGE)
        raw_key = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        hashed = hashlib.shake_256(raw_key).digest(64)
        mu = hashlib.shake_256(hashed + b"\x00\x00" + MESSAGE).digest(64)
        key.verify(sign(kms, arn, "ML_DSA_SHAKE_256", mu, "EXTERNAL_MU"), MESSAGE)
        request = {"KeyId": arn, "SigningAlgorithm": "ML_DSA_SHAKE_256"}
        for kind, message in (("EXTERNAL_MU", mu[1:]), ("DIGEST", mu)):
            code = refusal(kms.sign, MessageType=kind, Message=message, **request)
            assert code == "ValidationException"

    def test_rsa_keys_differ(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        moduli = {public(kms, create(kms, "RSA_2048")).public_numbers().n for _ in range(6)}
        assert len(moduli) == 6


class TestStrictness:
    def test_requests_that_break_the_service_model_are_refused(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        refused = [
            refusal(kms.create_key, KeySpec="ECC_NIST_P256"),
            refusal(kms.create_key, KeySpec="ECC_SECG_P256K1", KeyUsage="KEY_AGREEMENT"),
            refusal(kms.list_aliases, Limit=101),
            refusal(kms.create_alias, AliasName="alias/a b", TargetKeyId=create(kms)),
        ]
        assert set(refused) == {"ValidationException"}
        name = {"AliasName": "kmsjwks", "TargetKeyId": create(kms)}
        assert refusal(kms.create_alias, **name) == "InvalidAliasNameException"
        tags = [{"TagKey": "aws:mine", "TagValue": ""}]
        assert refusal(kms.tag_resource, KeyId=create(kms), Tags=tags) == "TagException"
        many = [{"TagKey": f"t{number}", "TagValue": ""} for number in range(51)]
        code = refusal(kms.tag_resource, KeyId=create(kms), Tags=many)
        assert code == "LimitExceededException"

    def test_credentials_and_permissions(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        arn = create(kms)
        fake.deny("kms:Sign")
        signing = {"KeyId": arn, "SigningAlgorithm": "ECDSA_SHA_256", "Message": MESSAGE}
        with pytest.raises(ClientError, match=f"not authorized to perform: kms:Sign on .*{arn}"):
            kms.sign(**signing)
        fake.settings(access_keys=["AKIATESTS"], expired_access_keys=["ASIAOLD"])
        stranger = client(fake.endpoint, access_key="AKIAOTHER")
        assert refusal(stranger.list_keys) == "UnrecognizedClientException"
        late = client(fake.endpoint, access_key="ASIAOLD")
        assert refusal(late.list_keys) == "ExpiredTokenException"
        sts = _client("sts", fake.endpoint, REGION, "AKIAOTHER")
        assert refusal(sts.get_caller_identity) == "InvalidClientTokenId"
        known = _client("sts", fake.endpoint, REGION, "AKIATESTS")
        assert known.get_caller_identity()["Account"] == ACCOUNT

    def test_an_unsigned_request_is_refused(self, fake: FakeKms) -> None:
        request = urllib.request.Request(
            fake.endpoint, b"{}", {"X-Amz-Target": "TrentService.ListKeys"}
        )
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(request)
        assert b"MissingAuthenticationTokenException" in caught.value.read()

    def test_a_new_key_can_be_late_to_appear(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        fake.settings(visible_after=60.0)
        arn = create(kms)
        assert refusal(kms.describe_key, KeyId=arn) == "NotFoundException"
        assert arn not in [entry["KeyArn"] for entry in kms.list_keys(Limit=1000)["Keys"]]
        fake.advance(61)
        assert kms.describe_key(KeyId=arn)["KeyMetadata"]["Arn"] == arn

    def test_deletion_becomes_final_and_a_primary_waits_for_its_replicas(
        self, fake: FakeKms
    ) -> None:
        kms, there = client(fake.endpoint), client(fake.endpoint, OTHER)
        fake.settings(creating_for=60.0)
        arn = create(kms, MultiRegion=True)
        replica = kms.replicate_key(KeyId=arn, ReplicaRegion=OTHER)["ReplicaKeyMetadata"]
        assert replica["KeyState"] == "Creating"
        signing = {"SigningAlgorithm": "ECDSA_SHA_256", "Message": MESSAGE}
        code = refusal(there.sign, KeyId=replica["Arn"], **signing)
        assert code == "KMSInvalidStateException"
        fake.advance(61)
        assert there.sign(KeyId=replica["Arn"], **signing)["KeyId"] == replica["Arn"]
        answer = kms.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
        assert answer["KeyState"] == "PendingReplicaDeletion"
        assert "DeletionDate" not in answer
        there.schedule_key_deletion(KeyId=replica["Arn"], PendingWindowInDays=7)
        fake.advance(7 * DAY)
        assert refusal(there.describe_key, KeyId=replica["Arn"]) == "NotFoundException"
        assert kms.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "PendingDeletion"
        fake.advance(7 * DAY)
        assert refusal(kms.describe_key, KeyId=arn) == "NotFoundException"


class TestFaults:
    def test_errors_last_as_long_as_asked_and_only_where_asked(self, fake: FakeKms) -> None:
        kms, there = client(fake.endpoint), client(fake.endpoint, OTHER)
        fake.throttle(operation="ListKeys", region=REGION, count=1)
        there.list_keys()
        assert refusal(kms.list_keys) == "ThrottlingException"
        kms.list_keys()
        fake.fault("status", status=503, operation="ListKeys", count=1)
        assert refusal(kms.list_keys) == "503"
        fake.error("KeyUnavailableException", operation="ListKeys")
        assert {refusal(kms.list_keys) for _ in range(3)} == {"KeyUnavailableException"}
        fake.clear_faults()
        kms.list_keys()
        assert (fake.calls("ListKeys", OTHER), fake.calls("ListKeys")) == (1, 8)

    def test_a_connection_is_reset_before_or_after_the_effect(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        before = len(kms.list_keys(Limit=1000)["Keys"])
        for applied, expected in ((False, before), (True, before + 1)):
            fake.fault("reset", operation="CreateKey", count=1, applied=applied)
            with pytest.raises(ConnectionClosedError):
                create(kms)
            assert len(kms.list_keys(Limit=1000)["Keys"]) == expected

    def test_answers_can_be_wrong(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        arn = create(kms)
        signing = {"KeyId": arn, "SigningAlgorithm": "ECDSA_SHA_256", "Message": MESSAGE}
        fake.fault("answer", operation="Sign", count=1, members={"KeyId": "another"})
        assert kms.sign(**signing)["KeyId"] == "another"
        fake.fault("wrong-signature", operation="Sign", count=1)
        made = kms.sign(**signing)["Signature"]
        with pytest.raises(InvalidSignature):
            public(kms, arn).verify(made, MESSAGE, ec.ECDSA(hashes.SHA256()))
        for kind in ("garbage", "truncate"):
            fake.fault(kind, operation="Sign", count=1)
            assert "Signature" not in kms.sign(**signing)
        kinds = [(record.key, record.message_type, record.length) for record in fake.signs()]
        assert kinds == [(arn, "RAW", len(MESSAGE))] * 3

    def test_latency_delays_one_region_only(self, fake: FakeKms) -> None:
        fake.fault("latency", region=OTHER, seconds=1.5)
        with pytest.raises(ReadTimeoutError):
            client(fake.endpoint, OTHER).list_keys()
        client(fake.endpoint).list_keys()

    def test_a_rate_is_throttled_beyond_its_limit(self, fake: FakeKms) -> None:
        kms = client(fake.endpoint)
        fake.fault("rate", operation="ListKeys", per_second=3)
        for _ in range(3):
            kms.list_keys()
        assert refusal(kms.list_keys) == "ThrottlingException"


def test_a_restart_keeps_or_loses_the_keys_and_a_pause_answers_nothing() -> None:
    with FakeKms() as fake:
        kms = client(fake.endpoint, patience=3)
        arn = create(kms)
        key = public(kms, arn)
        fake.restart()
        made = sign(kms, arn, "ECDSA_SHA_256", DIGEST, "DIGEST")
        key.verify(made, MESSAGE, ec.ECDSA(hashes.SHA256()))
        fake.pause()
        with pytest.raises(ReadTimeoutError):
            kms.list_keys()
        fake.resume()
        kms.list_keys()
        fake.restart(keep=False)
        assert kms.list_keys()["Keys"] == []
