"""The backend contract over a real token and over the stand-in that other tests build on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from kmsjwks.backends.awskms.backend import KmsBackend
from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.domain.algorithms import ALGORITHMS, DEFAULT_RSA_BITS, Algorithm, find_algorithm
from kmsjwks.domain.errors import UnsupportedAlgorithm
from kmsjwks.domain.ports import BackendKey, KeyBackend
from kmsjwks.testing import BackendContract
from tests.fakes import FakeBackend
from tests.support.awskms import HOME, IMPATIENT, REPLICA, kms_settings, open_kms
from tests.support.kms import ACCOUNT, FakeKms
from tests.support.moto import CorrectedMoto


class TestSoftHsm(BackendContract):
    """Every row of the table, calls bounded by threads."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, softhsm: Pkcs11Backend) -> KeyBackend:
        return softhsm

    def test_offers_the_whole_table(self, backend: KeyBackend) -> None:
        assert backend.algorithms == frozenset(a for a in ALGORITHMS if a.pkcs11_mechanism)


class TestFake(BackendContract):
    """Without most of the long RSA keys, which take seconds and prove nothing here."""

    claims_custody = False

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[KeyBackend]:
        short = {alg for alg in ALGORITHMS if alg.kty != "RSA" or alg.key_bits == DEFAULT_RSA_BITS}
        fake = FakeBackend(frozenset(short | {find_algorithm("RS256-3072")}))
        yield fake
        fake.close()


def _unknown_arns(account: str) -> tuple[str, ...]:
    known = f"arn:aws:kms:{HOME}:{account}"
    unknown = "00000000-0000-0000-0000-000000000000"
    malformed = ("", "not a reference", "ü", unknown, "alias/kmsjwks", f"{known}:alias/kmsjwks")
    return (f"{known}:key/{unknown}", *malformed)


class TestKms(BackendContract):
    """Against a strict fake: every algorithm of AWS KMS, paging, key states, message limits."""

    unknown_refs = _unknown_arns(ACCOUNT)
    message_bounds: ClassVar[Mapping[str, tuple[int, int]]] = {"Ed25519": (1, 4096)}

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[KeyBackend]:
        with FakeKms(page_size=3) as kms:
            backend = open_kms(kms_settings(kms.endpoint))
            yield backend
            backend.close()

    def test_offers_all_that_aws_documents(self, backend: KeyBackend) -> None:
        assert backend.algorithms == frozenset(a for a in ALGORITHMS if a.kms_key_spec)


class _MotoAlgorithms(KmsBackend):
    """What moto can make, without the long RSA keys, which take it seconds."""

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        offered = super().algorithms
        return frozenset(
            a for a in offered if a.kty == "EC" or (a.kty, a.key_bits) == ("RSA", DEFAULT_RSA_BITS)
        )

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:
        if alg not in self.algorithms:
            raise UnsupportedAlgorithm(f"moto makes no {alg.id} key.")
        return super().create_key(alg, request_id=request_id, keyset=keyset)


class TestKmsOnMoto(BackendContract):
    """Against somebody else's idea of AWS KMS, where that was wrong corrected."""

    unknown_refs = _unknown_arns("123456789012")

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[KeyBackend]:
        moto = CorrectedMoto()
        backend = _MotoAlgorithms(kms_settings(moto.endpoint), patience=IMPATIENT)
        yield backend
        backend.close()
        moto.stop()


class TestKmsMultiRegion(TestKms):
    """The same with multi-Region keys in two Regions."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[KeyBackend]:
        with FakeKms() as kms:
            settings = kms_settings(kms.endpoint, regions=(HOME, REPLICA), multi_region=True)
            backend = open_kms(settings)
            yield backend
            backend.close()
