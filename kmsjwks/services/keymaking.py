"""Making keys so that a crash anywhere leaves one that is used or disposed of, never lost."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kmsjwks.domain.errors import (
    BackendProtocolError,
    BackendUnavailable,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.jwk import key_id
from kmsjwks.domain.keys import Key, Keyset, KeyState, KeyTimes
from kmsjwks.domain.ports import BackendKey, Clock, KeyBackend, KeyStore
from kmsjwks.domain.signatures import make_verifier
from kmsjwks.services.faultpoints import FaultPoints

_log = logging.getLogger(__name__)
_PROOF = b"kmsjwks proof of possession"


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A pre-activation key that the store does not hold yet, and the creation that it finishes."""

    key: Key
    request_id: str

    def active(self) -> Key:
        """It where nothing else signs: from its publication on."""
        times = replace(self.key.times, activate_at=self.key.times.published_at)
        return replace(self.key, state=KeyState.ACTIVE, times=times)


class KeyMaker:
    """Call it while holding the planner's lock: then an open creation is nobody else's."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        clock: Clock,
        faults: FaultPoints,
    ) -> None:
        self._store, self._backends, self._clock, self.faults = store, backends, clock, faults

    def make(
        self,
        keyset: Keyset,
        *,
        where: str | None = None,
        not_these: frozenset[str] = frozenset(),
    ) -> MadeKey:
        """Intent first, then the key, proved by a signature; in the backend ``where``, or the
        keyset's primary. A creation that a crash left open there for the same keyset is taken up
        again, unless its request id is one of ``not_these``.

        Raises:
            BackendError, StoreUnavailable.
        """
        keyset = replace(keyset, backend=where or keyset.backend)
        backend = self._backend(keyset)
        request_id = self._open_creation(keyset, not_these)
        now = int(self._clock.now())
        self._store.begin_creation(request_id, keyset.name, keyset.backend, keyset.algorithm, now)
        self.faults.reach("key.intended")
        made = backend.create_key(keyset.algorithm, request_id=request_id, keyset=keyset.name)
        self.faults.reach("key.created")
        try:
            _prove(backend, made)
        except BackendProtocolError:
            backend.destroy_key(made.ref)
            self._store.abandon_creation(request_id)
            raise
        _log.info("Key %s made in %s for %s.", made.ref, keyset.backend, keyset.name)
        # Published no earlier than it is there to be published.
        return MadeKey(_key(keyset, made, int(self._clock.now())), request_id)

    def _backend(self, keyset: Keyset) -> KeyBackend:
        backend = self._backends.get(keyset.backend)
        if backend is None:
            raise BackendUnavailable(
                f"The backend {keyset.backend} of keyset {keyset.name} is not configured here."
            )
        offered = backend.algorithms
        if keyset.algorithm not in offered:
            raise UnsupportedAlgorithm(
                f"The backend {keyset.backend} does not offer {keyset.algorithm.id}. It offers: "
                f"{', '.join(sorted(one.id for one in offered))}."
            )
        return backend

    def _open_creation(self, keyset: Keyset, not_these: frozenset[str]) -> str:
        wanted = (keyset.name, keyset.backend, keyset.algorithm)
        for request_id, *rest, _ in self._store.open_intents():
            if tuple(rest) == wanted and request_id not in not_these:
                return request_id
        return uuid.uuid4().hex


def _prove(backend: KeyBackend, made: BackendKey) -> None:
    """A key that cannot sign must not become anybody's signing key."""
    if not make_verifier(made.alg, made.spki)(_PROOF, backend.sign(made, _PROOF)):
        raise BackendProtocolError(
            f"The backend made a {made.alg.id} key whose signatures do not verify. "
            "Run 'kmsjwks doctor'."
        )


def _key(keyset: Keyset, made: BackendKey, now: int) -> Key:
    return Key(
        kid=key_id(made.spki, made.alg),
        keyset=keyset.name,
        algorithm=made.alg,
        backend=keyset.backend,
        ref=made.ref,
        spki=made.spki,
        state=KeyState.PRE_ACTIVATION,
        times=KeyTimes(created_at=now, published_at=now),
    )
