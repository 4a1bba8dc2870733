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
    KeyPendingDeletion,
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


@pytest.mark.parametrize(
    "row", [a for a in ALGORITHMS if a.kty != "RSA" or a.key_bits < 3072], ids=str
)
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


def test_without_a_window_a_destroyed_key_does_not_come_back() -> None:
    backend = FakeBackend()
    key = backend.create_key(ES256, request_id="one")
    backend.destroy_key(key.ref)
    with pytest.raises(KeyNotFound) as caught:
        backend.cancel_destruction(key.ref)
    assert not isinstance(caught.value, KeyPendingDeletion)


class _Time:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def test_in_its_deletion_window_a_key_serves_nothing_and_can_be_brought_back() -> None:
    time, week = _Time(), timedelta(days=7)
    backend = FakeBackend(clock=time, deletion_window=week)
    key = backend.create_key(ES256, request_id="one")
    backend.cancel_destruction(key.ref)
    gone_at = backend.destroy_key(key.ref)
    assert gone_at == time.now + week
    time.now += timedelta(days=3)
    assert backend.destroy_key(key.ref) == gone_at
    for use in (
        lambda: backend.sign(key, b"message"),
        lambda: backend.get_key(key.ref),
        lambda: backend.evidence(key.ref),
        lambda: backend.create_key(ES256, request_id="one"),
    ):
        with pytest.raises(KeyPendingDeletion):
            use()
    assert list(backend.list_keys()) == []
    for _ in range(2):
        backend.cancel_destruction(key.ref)
    assert list(backend.list_keys()) == [key]
    assert make_verifier(ES256, key.spki)(b"message", backend.sign(key, b"message"))
    assert backend.destroy_key(key.ref) == time.now + week


def test_after_its_deletion_window_a_key_is_gone() -> None:
    time = _Time()
    backend = FakeBackend(clock=time, deletion_window=timedelta(days=7))
    key = backend.create_key(ES256, request_id="one")
    time.now = backend.destroy_key(key.ref)
    for use in (
        lambda: backend.cancel_destruction(key.ref),
        lambda: backend.sign(key, b"message"),
    ):
        with pytest.raises(KeyNotFound) as caught:
            use()
        assert not isinstance(caught.value, KeyPendingDeletion)
    assert list(backend.list_keys()) == []
    assert backend.create_key(ES256, request_id="one").spki != key.spki


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
