"""An immutable copy of keysets and keys, refreshed in the background, that requests work from."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kmsjwks.domain.errors import KmsJwksError, StoreUnavailable
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.jws import JwsSigner
from kmsjwks.domain.keys import Key, Keyset, is_published, may_sign
from kmsjwks.domain.ports import BackendKey, Clock, KeyBackend, KeyStore
from kmsjwks.domain.signatures import Verifier, make_verifier
from kmsjwks.services.publication import Document, render

_log = logging.getLogger(__name__)
_MISS_INTERVAL = 1.0  # seconds between refreshes that unknown names may cause


@dataclass(frozen=True, slots=True)
class ActiveKey:
    key: Key
    signer: JwsSigner


@dataclass(frozen=True, slots=True)
class ReadyKeyset:
    """A keyset with everything a request needs, precomputed."""

    keyset: Keyset
    keys: tuple[Key, ...]
    active: ActiveKey | None
    verifiers: Mapping[str, tuple[Key, Verifier]]  # by kid; published keys only


@dataclass(frozen=True, slots=True)
class Snapshot:
    revision: int
    taken_at: float
    valid_until: int | None  # seconds; when a key's publication ends by time alone
    keysets: Mapping[str, ReadyKeyset]
    documents: Mapping[str, Document]  # by URL path


def take_snapshot(
    store: KeyStore, backends: Mapping[str, KeyBackend], *, max_age: int, now: float
) -> Snapshot:
    """
    Raises:
        StoreUnavailable: the database does not answer.
    """
    revision = store.revision()
    keysets = store.keysets()
    keys: dict[str, list[Key]] = {keyset.name: [] for keyset in keysets}
    for key in list(store.keys()):
        keys.setdefault(key.keyset, []).append(key)
    seconds = int(now)
    ends = [
        key.times.withdraw_at
        for some in keys.values()
        for key in some
        if key.times.withdraw_at is not None and key.times.withdraw_at > seconds
    ]
    return Snapshot(
        revision=revision,
        taken_at=now,
        valid_until=min(ends, default=None),
        keysets={
            keyset.name: _ready(keyset, keys[keyset.name], backends, seconds) for keyset in keysets
        },
        documents=render(keysets, keys, max_age=max_age, now=seconds),
    )


def _ready(
    keyset: Keyset, keys: list[Key], backends: Mapping[str, KeyBackend], now: int
) -> ReadyKeyset:
    verifiers = {
        key.kid: (key, make_verifier(key.algorithm, key.spki))
        for key in keys
        if is_published(key, now)
    }
    signing = [key for key in keys if may_sign(key, now) and key.backend in backends]
    active = None
    if signing:
        key = signing[0]
        active = ActiveKey(key, _signer(key, backends[key.backend], verifiers[key.kid][1]))
    return ReadyKeyset(keyset, tuple(keys), active, verifiers)


def _signer(key: Key, backend: KeyBackend, verify: Verifier) -> JwsSigner:
    handle = BackendKey(key.ref, key.algorithm, key.spki)
    jwk = public_jwk(key.spki, key.algorithm)
    return JwsSigner(key.algorithm, jwk, lambda message: backend.sign(handle, message), verify)


class SnapshotKeeper:
    """Holds the current snapshot. Lazy; its thread starts with the first use in a process."""

    def __init__(
        self,
        take: Callable[[float], Snapshot],
        revision: Callable[[], int],
        clock: Clock,
        refresh_interval: float,
    ) -> None:
        """``refresh_interval`` in seconds."""
        self._take, self._revision, self._clock = take, revision, clock
        self._interval = refresh_interval
        self._lock = threading.Lock()
        self._current: Snapshot | None = None
        self._last_miss = 0.0
        self._thread: threading.Thread | None = None
        self._failing = False

    def current(self) -> Snapshot:
        """
        Raises:
            StoreUnavailable: the database did not answer since this process started.
        """
        snapshot = self._current
        return snapshot if snapshot is not None else self._first()

    def keyset(self, name: str) -> ReadyKeyset | None:
        """By name; a miss looks once at the store, so that what was just created is found."""
        found = self.current().keysets.get(name)
        if found is None and self._may_look_again():
            self._refresh()
            found = self.current().keysets.get(name)
        return found

    def _may_look_again(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now - self._last_miss < _MISS_INTERVAL:
                return False
            self._last_miss = now
            return True

    def _first(self) -> Snapshot:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._keep, name="kmsjwks-snapshot", daemon=True
                )
                self._thread.start()
            if self._current is None:
                self._current = self._take(self._clock.now())
            return self._current

    def _keep(self) -> None:
        while True:
            time.sleep(self._interval)
            self._refresh()

    def _refresh(self) -> None:
        """Never raises: the last good snapshot goes on being used."""
        try:
            held, now = self._current, self._clock.now()
            over = held is not None and held.valid_until is not None and held.valid_until <= now
            if held is None or over or self._revision() != held.revision:
                self._current = self._take(now)
            if self._failing:
                _log.info("The database answers again.")
            self._failing = False
        except StoreUnavailable as error:
            if not self._failing:
                _log.error("Going on with the last known keys: %s", error)
            self._failing = True
        except KmsJwksError:
            _log.exception("The keys in the database cannot be used; going on with the last ones.")
            self._failing = True
