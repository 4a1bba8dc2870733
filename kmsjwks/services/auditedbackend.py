"""A backend that is asked to make or destroy a key only after the intent is in the audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.ports import BackendKey, BackendStatus, Evidence, KeyBackend
from kmsjwks.services.audited import Act, ActTrail


class AuditedBackend:
    """A ``KeyBackend`` for those who make and destroy keys. Beside what the backend raises, these
    calls raise AuditUnavailable: then it was not asked."""

    def __init__(self, name: str, backend: KeyBackend, trail: ActTrail) -> None:
        self._name, self._backend, self._trail = name, backend, trail

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        return self._backend.algorithms

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:
        detail = f"{alg.id}, creation {request_id}"
        act = Act("backend.create-key", keyset=keyset, backend=self._name, detail=detail)
        with self._trail.act(act) as made:
            key = self._backend.create_key(alg, request_id=request_id, keyset=keyset)
            made.ref = key.ref
        return key

    def destroy_key(self, ref: str) -> datetime:
        with self._trail.act(Act("backend.destroy-key", backend=self._name, ref=ref)):
            return self._backend.destroy_key(ref)

    def cancel_destruction(self, ref: str) -> None:
        with self._trail.act(Act("backend.cancel-destruction", backend=self._name, ref=ref)):
            self._backend.cancel_destruction(ref)

    def get_key(self, ref: str) -> BackendKey:
        return self._backend.get_key(ref)

    def list_keys(self) -> Iterator[BackendKey]:
        return self._backend.list_keys()

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        return self._backend.sign(key, message)

    def evidence(self, ref: str) -> Evidence:
        return self._backend.evidence(ref)

    def check(self) -> None:
        self._backend.check()

    def status(self) -> BackendStatus:
        return self._backend.status()

    def close(self) -> None:
        self._backend.close()
