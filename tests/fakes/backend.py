"""A strict in-memory KeyBackend. It keeps no secret and its evidence admits that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import RLock

from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm
from kmsjwks.domain.errors import (
    BackendError,
    BackendUnavailable,
    KeyNotFound,
    KeyPendingDeletion,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.ports import BackendKey, BackendStatus, Evidence
from tests.fakes.software import SoftwareKey

REF_BYTES = 16


def ref_of(request_id: str) -> str:
    """The reference of the key that ``request_id`` asks for: 32 lower-case hex characters."""
    return hashlib.sha256(request_id.encode()).digest()[:REF_BYTES].hex()


def _now() -> datetime:
    return datetime.now(UTC)


class FakeBackend:
    """Implements ``kmsjwks.domain.ports.KeyBackend`` with software keys. Thread-safe.

    As a token does, it forgets a destroyed key wholly: the same ``request_id`` then gives a new
    key under the same reference. With a ``deletion_window`` the key waits for that long, serves
    nothing, and can be brought back. ``break_with`` makes every later call fail.
    """

    def __init__(
        self,
        algorithms: frozenset[Algorithm] = frozenset(ALGORITHMS),
        *,
        clock: Callable[[], datetime] = _now,
        deletion_window: timedelta | None = None,
    ) -> None:
        self._algorithms = algorithms
        self._clock = clock
        self._window = deletion_window
        self._lock = RLock()
        self._keys: dict[str, SoftwareKey] = {}
        self._destroyed: dict[str, datetime] = {}
        self._fault: BackendError | None = None
        self._fault_since: float | None = None

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        return self._algorithms

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:
        ref = ref_of(request_id)
        with self._lock:
            self._refuse_if_broken()
            if alg not in self._algorithms:
                raise UnsupportedAlgorithm(f"The fake backend does not offer {alg.id}.")
            key = self._held(ref)
            if key is None:
                key = self._keys[ref] = SoftwareKey.generate(alg)
                self._destroyed.pop(ref, None)
            if key.algorithm != alg:
                raise UnsupportedAlgorithm(
                    f"The request id is taken by a key for {key.algorithm.id}, not {alg.id}."
                )
            return BackendKey(ref, alg, key.spki)

    def get_key(self, ref: str) -> BackendKey:
        key = self._find(ref)
        return BackendKey(ref, key.algorithm, key.spki)

    def list_keys(self) -> Iterator[BackendKey]:
        with self._lock:
            self._refuse_if_broken()
            found = [
                BackendKey(ref, key.algorithm, key.spki)
                for ref, key in self._keys.items()
                if ref not in self._destroyed
            ]
        return iter(found)

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        held = self._find(key.ref)
        if held.algorithm != key.alg:
            raise UnsupportedAlgorithm(f"This key signs with {held.algorithm.id} only.")
        if held.spki != key.spki:
            raise KeyNotFound(f"The fake backend holds another key as {key.ref}.")
        return held.sign(message)

    def evidence(self, ref: str) -> Evidence:
        self._find(ref)
        return Evidence(
            ref=ref,
            custody={"kind": "software", "model": "FakeBackend"},
            attributes={"SENSITIVE": False, "EXTRACTABLE": True},
            extraction_refused=False,
            findings=("The private key lies in the memory of the test process.",),
        )

    def destroy_key(self, ref: str) -> datetime:
        with self._lock:
            self._refuse_if_broken()
            if self._window is None:
                self._keys.pop(ref, None)
            return self._destroyed.setdefault(ref, self._clock() + (self._window or timedelta(0)))

    def cancel_destruction(self, ref: str) -> None:
        with self._lock:
            with suppress(KeyPendingDeletion):
                self._find(ref)
            self._destroyed.pop(ref, None)

    def check(self) -> None:
        with self._lock:
            self._refuse_if_broken()

    def status(self) -> BackendStatus:
        with self._lock:
            if self._fault is None:
                return BackendStatus(available=True)
            return BackendStatus(False, str(self._fault), self._fault_since)

    def close(self) -> None:
        self.break_with(BackendUnavailable("The fake backend is closed."))

    def break_with(self, fault: BackendError | None) -> None:
        """Make every later call raise ``fault``; None mends the backend."""
        with self._lock:
            self._fault = fault
            self._fault_since = self._clock().timestamp() if fault else None

    def _refuse_if_broken(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _find(self, ref: str) -> SoftwareKey:
        with self._lock:
            self._refuse_if_broken()
            key = self._held(ref)
        if key is None:
            raise KeyNotFound(f"The fake backend holds no key {ref!r}.")
        return key

    def _held(self, ref: str) -> SoftwareKey | None:
        """The key, or None where there is none or its destruction is irreversible.

        Raises:
            KeyPendingDeletion: its destruction is not irreversible yet.
        """
        key, gone_at = self._keys.get(ref), self._destroyed.get(ref)
        if key is None or gone_at is None:
            return key
        if self._clock() < gone_at:
            raise KeyPendingDeletion(f"The key {ref} is destroyed at {gone_at.isoformat()}.")
        del self._keys[ref]
        return None
