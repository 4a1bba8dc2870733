"""The backend contract over a real token and over the stand-in that other tests build on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.domain.algorithms import ALGORITHMS, DEFAULT_RSA_BITS, find_algorithm
from kmsjwks.domain.ports import KeyBackend
from kmsjwks.testing import BackendContract
from tests.fakes import FakeBackend


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
