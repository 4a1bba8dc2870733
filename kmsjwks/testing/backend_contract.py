"""The contract of ``kmsjwks.domain.ports.KeyBackend`` as a test suite.

Prove a backend with a test module like this one::

    import pytest
    from kmsjwks.testing import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture(scope="class")
        @classmethod
        def backend(cls):
            backend = MyBackend(...)
            yield backend
            backend.close()

The fixture ``backend`` has class scope or a wider one: making RSA keys takes seconds, so the tests
share them. What else holds for a backend is said by overriding the class attributes. Every key that
the suite makes is destroyed at its end.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import ClassVar, TypeVar

import pytest

from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm
from kmsjwks.domain.errors import (
    BackendError,
    KeyNotFound,
    MessageTooLarge,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.jwk import load_public_key, public_jwk
from kmsjwks.domain.jws import JwsSigner
from kmsjwks.domain.ports import BackendKey, KeyBackend
from kmsjwks.domain.signatures import make_verifier
from kmsjwks.testing.verifiers import KNOWS, TOKEN_VERIFIERS, Rejected, VerifyToken, verifies

T = TypeVar("T")
THREADS = 8
_CLAIMS = '{"sub":"contract","n":9007199254740993}'


class KeyRing:
    """The keys of one run of the suite: one an algorithm, made when first asked for."""

    def __init__(self, backend: KeyBackend) -> None:
        self.backend = backend
        self._run = secrets.token_hex(8)
        self._shared: dict[Algorithm, BackendKey] = {}
        self._made: set[str] = set()
        self._count = 0

    def request_id(self) -> str:
        self._count += 1
        return f"contract-{self._run}-{self._count}"

    def make(self, alg: Algorithm, request_id: str | None = None) -> BackendKey:
        """A key of its own, for a test that destroys it or counts keys."""
        key = self.backend.create_key(alg, request_id=request_id or self.request_id())
        self._made.add(key.ref)
        return key

    def shared(self, alg: Algorithm) -> BackendKey:
        if alg not in self._shared:
            self._shared[alg] = self.make(alg)
        return self._shared[alg]

    def quick_algorithms(self) -> list[Algorithm]:
        """Those whose keys are made and used in milliseconds; all of them if there are none."""
        offered = [alg for alg in ALGORITHMS if alg in self.backend.algorithms]
        return [alg for alg in offered if alg.kty != "RSA" or alg.key_bits == 2048] or offered

    def quick(self) -> Algorithm:
        """The declared algorithm whose keys are cheapest."""
        return min(self.quick_algorithms(), key=lambda alg: (alg.kty == "RSA", alg.key_bits))

    def destroy_all(self) -> None:
        for ref in self._made:
            self.backend.destroy_key(ref)


def at_once(call: Callable[[int], T], threads: int = THREADS) -> list[T]:
    """The results of ``call(0)`` .. ``call(threads - 1)``, started at the same moment."""
    barrier = Barrier(threads)

    def run(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def token_of(backend: KeyBackend, key: BackendKey) -> str:
    """A JWT as the service makes it."""
    signer = JwsSigner(
        key.alg,
        public_jwk(key.spki, key.alg),
        lambda message: backend.sign(key, message),
        make_verifier(key.alg, key.spki),
    )
    return signer.compact({"typ": "JWT"}, _CLAIMS.encode())


def tampered(token: str) -> list[str]:
    """The token with one character changed: in the payload, and in both ends of the signature."""
    body, tail = token.index(".") + 1, token.rindex(".") + 1
    middle = tail + (len(token) - tail) // 2
    # Not the last character: its low bits are padding, which a lenient decoder drops.
    return [
        token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        for at in (body + 4, tail + 1, middle, len(token) - 3)
    ]


every_algorithm = pytest.mark.parametrize("alg", ALGORITHMS, ids=str)


class BackendContract:
    """See the module's documentation."""

    claims_custody: ClassVar[bool] = True
    """Private keys cannot leave the device. False for software keys, whose evidence admits it."""

    unknown_refs: ClassVar[tuple[str, ...]] = ("00" * 16, "", "not a reference", "zz", "ü")
    """References that no key has, well-formed and not."""

    message_bounds: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """By algorithm id, the shortest and the longest message (bytes) that the device signs, where
    it is not any."""

    @pytest.fixture(scope="class")
    @classmethod
    def keys(cls, backend: KeyBackend) -> Iterator[KeyRing]:
        ring = KeyRing(backend)
        yield ring
        ring.destroy_all()

    def test_declares_rows_of_the_table(self, backend: KeyBackend) -> None:
        assert backend.algorithms
        assert backend.algorithms <= frozenset(ALGORITHMS)

    def test_answers(self, backend: KeyBackend) -> None:
        backend.check()
        assert backend.status().available

    @every_algorithm
    def test_creates_what_it_declares_and_nothing_else(
        self, backend: KeyBackend, keys: KeyRing, alg: Algorithm
    ) -> None:
        if alg not in backend.algorithms:
            with pytest.raises(UnsupportedAlgorithm):
                keys.make(alg)
            return
        key = keys.shared(alg)
        assert key.alg == alg
        assert key.ref
        load_public_key(key.spki, alg)
        assert backend.get_key(key.ref) == key

    def test_refuses_an_algorithm_that_is_not_in_the_table(self, keys: KeyRing) -> None:
        with pytest.raises(UnsupportedAlgorithm):
            keys.make(replace(ALGORITHMS[0], id="XX256", jose="XX256"))

    @every_algorithm
    @pytest.mark.parametrize("verifier", TOKEN_VERIFIERS)
    def test_tokens_verify_and_tampered_ones_do_not(
        self, backend: KeyBackend, keys: KeyRing, alg: Algorithm, verifier: str
    ) -> None:
        verify: VerifyToken = TOKEN_VERIFIERS[verifier]
        if alg not in backend.algorithms:
            return  # refusing to make such a key is another test
        if alg.kty not in KNOWS[verifier]:
            return  # that library has no such key type
        key = keys.shared(alg)
        jwk, token = public_jwk(key.spki, alg), token_of(backend, key)
        assert verify(token, alg, key.spki, jwk)["n"] == 9007199254740993
        for forged in tampered(token):
            with pytest.raises(Rejected):
                verify(forged, alg, key.spki, jwk)

    @pytest.mark.parametrize("size", [0, 1, 100_000])
    def test_signs_messages_of_any_size(
        self, backend: KeyBackend, keys: KeyRing, size: int
    ) -> None:
        for alg in keys.quick_algorithms():
            self._signs_or_refuses(backend, keys.shared(alg), size)

    def test_signs_up_to_its_bounds(self, backend: KeyBackend, keys: KeyRing) -> None:
        bounded = [alg for alg in keys.quick_algorithms() if alg.id in self.message_bounds]
        assert len(bounded) == len(self.message_bounds)
        for alg in bounded:
            shortest, longest = self.message_bounds[alg.id]
            for size in (shortest, longest, longest + 1):
                self._signs_or_refuses(backend, keys.shared(alg), size)

    def _signs_or_refuses(self, backend: KeyBackend, key: BackendKey, size: int) -> None:
        message = secrets.token_bytes(size)
        shortest, longest = self.message_bounds.get(key.alg.id, (0, size))
        if not shortest <= size <= longest:
            with pytest.raises(MessageTooLarge if size > longest else BackendError):
                backend.sign(key, message)
            return
        signature = backend.sign(key, message)
        assert len(signature) == key.alg.signature_bytes
        assert verifies(key.alg, key.spki, message, signature)
        assert not verifies(key.alg, key.spki, message + b"\x00", signature)

    def test_another_key_does_not_verify(self, backend: KeyBackend, keys: KeyRing) -> None:
        alg = keys.quick()
        one, other = keys.make(alg), keys.make(alg)
        assert one.ref != other.ref
        assert one.spki != other.spki
        assert not verifies(alg, other.spki, b"message", backend.sign(one, b"message"))

    def test_unknown_references(self, backend: KeyBackend, keys: KeyRing) -> None:
        known = keys.shared(keys.quick())
        for ref in self.unknown_refs:
            with pytest.raises(KeyNotFound):
                backend.get_key(ref)
            with pytest.raises(KeyNotFound):
                backend.sign(replace(known, ref=ref), b"message")
            with pytest.raises(KeyNotFound):
                backend.evidence(ref)
            with pytest.raises(KeyNotFound):
                backend.cancel_destruction(ref)

    def test_destroyed_twice_and_gone(self, backend: KeyBackend, keys: KeyRing) -> None:
        key, other = keys.make(keys.quick()), keys.shared(keys.quick())
        backend.sign(key, b"message")
        for _ in range(2):
            effective = backend.destroy_key(key.ref)
            assert effective.tzinfo is not None
            assert effective - datetime.now(UTC) < timedelta(days=31)
        for use in (
            lambda: backend.sign(key, b"message"),
            lambda: backend.get_key(key.ref),
            lambda: backend.evidence(key.ref),
        ):
            with pytest.raises(KeyNotFound):
                use()
        assert key.ref not in {listed.ref for listed in backend.list_keys()}
        assert verifies(other.alg, other.spki, b"message", backend.sign(other, b"message"))

    def test_destruction_is_cancelled_until_it_is_irreversible(
        self, backend: KeyBackend, keys: KeyRing
    ) -> None:
        key = keys.make(keys.quick())
        effective = backend.destroy_key(key.ref)
        if effective <= datetime.now(UTC):
            with pytest.raises(KeyNotFound):
                backend.cancel_destruction(key.ref)
            return
        for _ in range(2):
            backend.cancel_destruction(key.ref)
        assert backend.get_key(key.ref) == key
        assert key in list(backend.list_keys())
        assert backend.evidence(key.ref).ref == key.ref
        assert verifies(key.alg, key.spki, b"message", backend.sign(key, b"message"))
        backend.destroy_key(key.ref)
        with pytest.raises(KeyNotFound):
            backend.sign(key, b"message")

    def test_nothing_to_cancel(self, backend: KeyBackend, keys: KeyRing) -> None:
        key = keys.shared(keys.quick())
        backend.cancel_destruction(key.ref)
        assert verifies(key.alg, key.spki, b"message", backend.sign(key, b"message"))

    def test_same_request_same_key(self, backend: KeyBackend, keys: KeyRing) -> None:
        alg, request_id = keys.quick(), keys.request_id()
        first = keys.make(alg, request_id)
        assert keys.make(alg, request_id) == first
        assert backend.get_key(first.ref) == first

    def test_same_request_at_once_same_key(self, backend: KeyBackend, keys: KeyRing) -> None:
        alg, request_id = keys.quick(), keys.request_id()
        before = {key.ref for key in backend.list_keys()}
        made = at_once(lambda _: keys.make(alg, request_id))
        assert len(set(made)) == 1
        listed = [key for key in backend.list_keys() if key.ref not in before]
        assert listed == [made[0]]

    def test_same_request_for_another_algorithm(self, keys: KeyRing, backend: KeyBackend) -> None:
        one, *others = keys.quick_algorithms()
        request_id = keys.request_id()
        key = keys.make(one, request_id)
        for other in others:  # RS256 and PS256 have the same keys, and are still not the same
            with pytest.raises(UnsupportedAlgorithm):
                keys.make(other, request_id)
        assert backend.get_key(key.ref) == key

    def test_lists_its_keys_once(self, backend: KeyBackend, keys: KeyRing) -> None:
        mine = [keys.shared(alg) for alg in keys.quick_algorithms()]
        listed = list(backend.list_keys())
        assert len({key.ref for key in listed}) == len(listed)
        assert set(mine) <= set(listed)

    def test_threads_sign_with_every_kind_of_key(self, backend: KeyBackend, keys: KeyRing) -> None:
        ring = [keys.shared(alg) for alg in keys.quick_algorithms()]

        def sign(number: int) -> list[tuple[BackendKey, bytes, bytes]]:
            signed = []
            for turn in range(2 * len(ring)):
                key, message = ring[(number + turn) % len(ring)], secrets.token_bytes(100)
                signed.append((key, message, backend.sign(key, message)))
            return signed

        for done in at_once(sign):
            assert all(verifies(key.alg, key.spki, msg, sig) for key, msg, sig in done)

    def test_threads_create_and_destroy(self, backend: KeyBackend, keys: KeyRing) -> None:
        alg = keys.quick()

        def live_and_die(_: int) -> None:
            key = keys.make(alg)
            assert verifies(alg, key.spki, b"message", backend.sign(key, b"message"))
            assert key in list(backend.list_keys())
            backend.destroy_key(key.ref)
            with pytest.raises(KeyNotFound):
                backend.sign(key, b"message")

        at_once(live_and_die)

    def test_evidence(self, backend: KeyBackend, keys: KeyRing) -> None:
        for alg in keys.quick_algorithms():
            evidence = backend.evidence(keys.shared(alg).ref)
            assert evidence.ref == keys.shared(alg).ref
            assert evidence.custody
            assert evidence.sound is self.claims_custody, evidence.findings
            assert evidence.extraction_refused is self.claims_custody
            assert bool(evidence.findings) is not self.claims_custody
