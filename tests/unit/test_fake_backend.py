"""The fake keeps the promises of the interface, so that what is tested on it means something."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kmsjwks.domain.algorithms import ALGORITHMS, find_algorithm
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendUnavailable,
    KeyNotFound,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.ports import KeyBackend
from kmsjwks.domain.signatures import make_verifier
from tests.fakes import FakeBackend

ES256, ES384 = find_algorithm("ES256"), find_algorithm("ES384")


def test_it_is_a_key_backend_that_offers_the_whole_table() -> None:
    backend: KeyBackend = FakeBackend()
    assert backend.algorithms == frozenset(ALGORITHMS)


def test_the_reference_follows_from_the_request_id() -> None:
    key = FakeBackend().create_key(ES256, request_id="abc")
    assert key.ref == "ba7816bf8f01cfea414140de5dae2223"  # FIPS 180-4: SHA-256("abc"), halved


def test_the_same_request_gives_the_same_key() -> None:
    backend = FakeBackend()
    first = backend.create_key(ES256, request_id="one")
    assert backend.create_key(ES256, request_id="one") == first == backend.get_key(first.ref)
    other = backend.create_key(ES256, request_id="two")
    assert other.spki != first.spki
    assert list(backend.list_keys()) == [first, other]


def test_a_request_id_belongs_to_one_algorithm() -> None:
    backend = FakeBackend()
    backend.create_key(ES256, request_id="one")
    with pytest.raises(UnsupportedAlgorithm):
        backend.create_key(ES384, request_id="one")


def test_an_algorithm_that_is_not_offered_is_refused() -> None:
    backend = FakeBackend(frozenset({ES384}))
    with pytest.raises(UnsupportedAlgorithm):
        backend.create_key(ES256, request_id="one")
    assert list(backend.list_keys()) == []


@pytest.mark.parametrize("row", [a for a in ALGORITHMS if a.key_bits < 3072], ids=str)
def test_it_signs(row: object) -> None:
    algorithm = find_algorithm(str(row))
    backend = FakeBackend()
    key = backend.create_key(algorithm, request_id="one")
    assert make_verifier(algorithm, key.spki)(b"message", backend.sign(key, b"message"))


def test_unknown_references_are_refused() -> None:
    backend = FakeBackend()
    key = backend.create_key(ES256, request_id="one")
    stranger = replace(key, ref="00" * 16)
    for call in (
        lambda: backend.get_key(stranger.ref),
        lambda: backend.sign(stranger, b"message"),
        lambda: backend.evidence(stranger.ref),
    ):
        with pytest.raises(KeyNotFound):
            call()


def test_a_key_that_is_not_the_one_held_is_refused() -> None:
    backend = FakeBackend()
    key = backend.create_key(ES256, request_id="one")
    other = backend.create_key(ES256, request_id="two")
    with pytest.raises(KeyNotFound):
        backend.sign(replace(key, spki=other.spki), b"message")
    with pytest.raises(UnsupportedAlgorithm):
        backend.sign(replace(key, alg=ES384), b"message")


def test_destroying_twice_is_the_same_as_once() -> None:
    times = iter(datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(5))
    backend = FakeBackend(clock=lambda: next(times))
    key = backend.create_key(ES256, request_id="one")
    first = backend.destroy_key(key.ref)
    assert backend.destroy_key(key.ref) == first == datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(KeyNotFound):
        backend.sign(key, b"message")
    assert list(backend.list_keys()) == []


def test_its_evidence_admits_that_it_is_software() -> None:
    backend = FakeBackend()
    evidence = backend.evidence(backend.create_key(ES256, request_id="one").ref)
    assert not evidence.extraction_refused
    assert not evidence.sound


def test_a_broken_backend_fails_every_call_until_it_is_mended() -> None:
    backend = FakeBackend()
    key = backend.create_key(ES256, request_id="one")
    backend.break_with(BackendDenied("The PIN is locked."))
    for call in (
        backend.check,
        backend.list_keys,
        lambda: backend.create_key(ES256, request_id="two"),
        lambda: backend.sign(key, b"message"),
        lambda: backend.destroy_key(key.ref),
    ):
        with pytest.raises(BackendDenied):
            call()
    assert not backend.status().available
    assert backend.status().since is not None
    backend.break_with(None)
    backend.check()
    assert backend.status().available
    assert backend.get_key(key.ref) == key


def test_a_closed_backend_is_unavailable() -> None:
    backend = FakeBackend()
    backend.close()
    with pytest.raises(BackendUnavailable):
        backend.check()


def test_threads_that_ask_at_once_get_one_key() -> None:
    backend = FakeBackend()
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: backend.create_key(ES256, request_id="one"), range(64)))
    assert len(set(keys)) == 1
    assert len(list(backend.list_keys())) == 1
