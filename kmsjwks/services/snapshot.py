"""An immutable copy of keysets and keys, refreshed in the background, that requests work from."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.jws import JwsSigner
from kmsjwks.domain.keys import Key, Keyset, KeyState, is_published
from kmsjwks.domain.ports import (
    BackendKey,
    Clock,
    Concurrent,
    KeyBackend,
    KeyStore,
    Remembering,
)
from kmsjwks.domain.rotation import signing_timeline
from kmsjwks.domain.sampling import ReleaseCheck, verify_all
from kmsjwks.domain.signatures import Verifier, make_verifier
from kmsjwks.services.leases import LeaseKeeper
from kmsjwks.services.publication import Document, render

_log = logging.getLogger(__name__)
_PUBLIC_PATIENCE = 0.3  # seconds that a verifier waits for the first look at the database
_PATIENCE = 5.0  # seconds that others do
_IN_USE = (KeyState.ACTIVE, KeyState.PRE_ACTIVATION)
_MISS_INTERVAL = 1.0  # seconds between refreshes that unknown names may cause


@dataclass(frozen=True, slots=True)
class ActiveKey:
    """``concurrency``: how many signatures its backend makes at once to any use."""

    key: Key
    signer: JwsSigner
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class ReadyKeyset:
    """A keyset with everything a request needs, precomputed."""

    keyset: Keyset
    keys: tuple[Key, ...]
    timeline: tuple[tuple[int, ActiveKey], ...]  # from when (seconds) which key signs, ascending
    verifiers: Mapping[str, tuple[Key, Verifier]]  # by kid; published keys only

    def active_at(self, now: float) -> ActiveKey | None:
        """The key that signs at ``now`` (seconds), the same on every replica."""
        signing = None
        for start, active in self.timeline:
            if start <= now:
                signing = active
        return signing

    def signing_from(self, now: float) -> list[ActiveKey]:
        """The key that signs at ``now`` and those that are to follow it."""
        signing = self.active_at(now)
        return [active for start, active in self.timeline if active is signing or start > now]


@dataclass(frozen=True, slots=True)
class Snapshot:
    revision: int
    taken_at: float
    valid_until: int | None  # seconds; when a key's publication ends by time alone
    keysets: Mapping[str, ReadyKeyset]
    documents: Mapping[str, Document]  # by URL path


def take_snapshot(
    store: KeyStore,
    backends: Mapping[str, KeyBackend],
    *,
    max_age: int,
    now: float,
    release_check: ReleaseCheck = verify_all,
) -> Snapshot:
    """``release_check`` makes what new signatures must pass.

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
            keyset.name: _ready(keyset, keys[keyset.name], backends, seconds, release_check)
            for keyset in keysets
        },
        documents=render(keysets, keys, max_age=max_age, now=seconds),
    )


def _ready(
    keyset: Keyset,
    keys: list[Key],
    backends: Mapping[str, KeyBackend],
    now: int,
    release_check: ReleaseCheck,
) -> ReadyKeyset:
    verifiers = {key.kid: (key, _parsed_when_used(key)) for key in keys if is_published(key, now)}
    _remind(keys, backends)
    timeline = tuple(
        (start, _active(key, backends[key.backend], release_check(key, verifiers[key.kid][1])))
        for start, key in signing_timeline(keys)
        if key.backend in backends
    )
    return ReadyKeyset(keyset, tuple(keys), timeline, verifiers)


def _parsed_when_used(key: Key) -> Verifier:
    """A parsed key takes 2.5 KB, and most of many keys are not used in a process for long. That it
    fits its algorithm shows at once all the same, when its JWK is made."""
    parsed: list[Verifier] = []

    def verify(message: bytes, signature: bytes) -> bool:
        if not parsed:
            parsed.append(make_verifier(key.algorithm, key.spki))
        return parsed[0](message, signature)

    return verify


def _remind(keys: list[Key], backends: Mapping[str, KeyBackend]) -> None:
    """A standby signs nothing before the day it must, and is asked for its health all the same."""
    for key in keys:
        backend = backends.get(key.backend)
        if isinstance(backend, Remembering) and key.state in _IN_USE:
            backend.remember(key.ref)


def _active(key: Key, backend: KeyBackend, verify: Verifier) -> ActiveKey:
    handle = BackendKey(key.ref, key.algorithm, key.spki)
    jwk = public_jwk(key.spki, key.algorithm)
    sign = JwsSigner(key.algorithm, jwk, lambda message: backend.sign(handle, message), verify)
    return ActiveKey(key, sign, backend.concurrency if isinstance(backend, Concurrent) else 1)


@dataclass(frozen=True, slots=True)
class Refreshing:
    """How a process keeps up with the database.

    In seconds: how often it looks, and how long it signs from what it knows when the database
    does not answer. ``after`` is called with the snapshot after every look that succeeded, changed
    or not; ``last_good`` gives the documents that were published last, by any process.
    """

    interval: float
    grace: float
    after: Callable[[Snapshot], None] = lambda _: None
    last_good: Callable[[], Mapping[str, Document]] = dict


class SnapshotKeeper:
    """Holds the current snapshot. Its thread starts with the first use in a process, and only that
    thread reads the database: no request waits for one that hangs."""

    def __init__(
        self,
        take: Callable[[float], Snapshot],
        revision: Callable[[], int],
        leases: LeaseKeeper,
        clock: Clock,
        refreshing: Refreshing,
    ) -> None:
        self._take, self._revision, self._clock = take, revision, clock
        self.leases, self._refreshing = leases, refreshing
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wanted = threading.Event()
        self._rounds = 0  # looks at the database that have ended
        self._current: Snapshot | None = None
        self._confirmed = -math.inf  # monotonic seconds
        self._last_miss = -math.inf
        self._thread: threading.Thread | None = None
        self._failing = False
        self._closed = False

    def documents(self) -> Mapping[str, Document]:
        """For verifiers: of the current snapshot, else the last that any process of this service
        published, whatever the database does.

        Raises:
            StoreUnavailable: nothing was ever published.
        """
        snapshot = self.known()
        if snapshot is not None and snapshot.documents:
            return snapshot.documents
        # Also where a database was lost and made anew: what was issued goes on being verified.
        documents = self._refreshing.last_good()
        if snapshot is None and not documents:
            raise _unavailable()
        return documents

    def known(self) -> Snapshot | None:
        """What there is now, without waiting for a database that hangs."""
        return self._current or self._wait_for_first(_PUBLIC_PATIENCE)

    def held(self) -> Snapshot | None:
        """What there is now, if anything; starts no thread and waits for nothing."""
        return self._current

    def current(self) -> Snapshot:
        """
        Raises:
            StoreUnavailable: the database did not answer since this process started.
        """
        snapshot = self._current or self._wait_for_first(_PATIENCE)
        if snapshot is None:
            raise _unavailable()
        return snapshot

    def for_signing(self, name: str) -> ReadyKeyset | None:
        """The keyset, from a snapshot that is fresh enough to sign from.

        Raises:
            StoreUnavailable: the database has not answered for longer than the grace.
        """
        found = self.keyset(name)
        if self.is_stale():
            raise StoreUnavailable(
                "The database has not answered for too long; nothing is signed from old keys. "
                "Try again later.",
                retry_after=5,
            )
        return found

    def staleness(self) -> float:
        """Seconds since the database last confirmed the snapshot."""
        return time.monotonic() - self._confirmed

    def is_stale(self) -> bool:
        return self.staleness() > self._refreshing.grace

    def keyset(self, name: str) -> ReadyKeyset | None:
        """By name; a miss looks once at the store, so that what was just created is found."""
        found = self.current().keysets.get(name)
        if found is None:
            if self._may_look_again():
                self.refresh()
            found = self.current().keysets.get(name)
        return found

    def refresh(self) -> None:
        """Wait for a look at the database that begins now. Never raises, and does not wait long."""
        with self._changed:
            self._start()
            # One may be under way that began too early.
            wanted = self._rounds + 2 if self._thread is not None else self._rounds + 1
            until = time.monotonic() + _PATIENCE
            while self._rounds < wanted and time.monotonic() < until:
                self._wanted.set()
                self._changed.wait(0.05)

    def _may_look_again(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now - self._last_miss < _MISS_INTERVAL:
                return False
            self._last_miss = now
            return True

    def _wait_for_first(self, patience: float) -> Snapshot | None:
        with self._changed:
            self._start()
            self._changed.wait_for(lambda: self._rounds > 0, patience)
            return self._current

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._keep, name="kmsjwks-snapshot", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Look no more, and give the leases up.

        Raises:
            StoreUnavailable: the leases could not be given up; they run out by themselves.
        """
        with self._changed:
            self._closed = True
            thread = self._thread
        self._wanted.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
        self.leases.close()

    def _keep(self) -> None:
        while not self._closed:
            self._look()
            with self._changed:
                self._rounds += 1
                self._changed.notify_all()
            self._wanted.wait(self._refreshing.interval)
            self._wanted.clear()

    def _look(self) -> None:
        try:
            snapshot = self._renew()
            if self._failing:
                _log.info("The database answers again.")
            self._failing = False
            self._refreshing.after(snapshot)
        except StoreUnavailable as error:
            if not self._failing:
                _log.error("Going on with the last known keys: %s", error)
            self._failing = True
        except Exception:  # whatever it is, the thread that looks again must live
            _log.exception("The keys in the database cannot be used; going on with the last.")
            self._failing = True

    def _renew(self) -> Snapshot:
        """The leases come before the snapshot: no token is signed with a key before the database
        knows that this process may."""
        held, began, now = self._current, time.monotonic(), self._clock.now()
        revision = self._revision()
        if held is not None and revision < held.revision:
            # An emptied or restored database: its keys are not those that verifiers rely on.
            raise StoreUnavailable(
                f"The database went back from revision {held.revision} to {revision}. Put the "
                "right one in place, or restart the service to accept this one."
            )
        over = held is not None and held.valid_until is not None and held.valid_until <= now
        fresh = held is not None and not over and revision == held.revision
        snapshot = held if fresh and held is not None else self._take(now)
        seconds = int(now)
        self.leases.reserve(_lifetimes(snapshot, seconds), seconds)
        self.leases.settle(seconds)
        self._current, self._confirmed = snapshot, began
        return snapshot


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable(
        "The database has not answered since this process started.", retry_after=5
    )


def _lifetimes(snapshot: Snapshot, now: int) -> dict[str, int]:
    """kid -> longest lifetime, of every key that may sign now or later."""
    return {
        active.key.kid: ready.keyset.rules.max_lifetime
        for ready in snapshot.keysets.values()
        for active in ready.signing_from(now)
    }
