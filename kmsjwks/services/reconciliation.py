"""Creations that a crash left open and nobody will take up: their keys are disposed of."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from kmsjwks.domain.errors import BackendError, UnsupportedAlgorithm
from kmsjwks.domain.ports import KeyBackend, KeyStore
from kmsjwks.services.faultpoints import FaultPoints

_log = logging.getLogger(__name__)


def reconcile(
    store: KeyStore, backends: Mapping[str, KeyBackend], faults: FaultPoints
) -> list[str]:
    """Call it while holding the planner's lock, after every keyset has taken up what it needs:
    then an open creation belongs to nobody. Returns what was disposed of, in words.

    Raises:
        StoreUnavailable
    """
    done = []
    for request_id, keyset, name, algorithm, _ in store.open_intents():
        backend = backends.get(name)
        if backend is None:
            continue
        try:
            # Whether the crash came before or after the key was made is not known. Creation is
            # idempotent, so asking again gives the reference to destroy.
            made = backend.create_key(algorithm, request_id=request_id)
            faults.reach("reconcile.created")
            if not _is_known(store, name, made.ref):
                backend.destroy_key(made.ref)
        except UnsupportedAlgorithm as error:
            # A keyset that is there takes the same creation up again at its next tick.
            if not _is_keyset(store, keyset):
                store.abandon_creation(request_id)
                done.append(f"gave up the creation of a key in {name} for {keyset}: {error}")
            continue
        except BackendError as error:
            _log.warning("An open key creation for %s is left for later: %s", keyset, error)
            continue
        faults.reach("reconcile.disposed")
        store.abandon_creation(request_id)
        done.append(f"disposed of key {made.ref} in {name}, left over for {keyset}")
    return done


def _is_known(store: KeyStore, backend: str, ref: str) -> bool:
    """Asked last of all: should the lock have been lost with its connection, another process may
    have finished this creation meanwhile."""
    return any((key.backend, key.ref) == (backend, ref) for key in list(store.keys()))


def _is_keyset(store: KeyStore, name: str) -> bool:
    return any(keyset.name == name for keyset in store.keysets())
