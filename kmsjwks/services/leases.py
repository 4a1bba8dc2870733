"""What this process may have signed with each key, so that a key is withdrawn in time, not early.

A lease reserves, ahead of any signature, the highest ``exp`` that this process could sign before
it either renews the lease or stops signing for want of a database. A process that moves on to the
next key replaces its reservation by what it really signed; one that dies leaves the reservation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmsjwks.domain.ports import KeyStore

_SETTLE_AFTER = 30  # seconds after its last use: longer than any call into a backend may take


@dataclass(slots=True)
class _Held:
    reserved: int = 0
    signed: int = 0
    last_wanted: int = 0


class LeaseKeeper:
    """Thread-safe. One per process, named ``holder``."""

    def __init__(self, store: KeyStore, holder: str, grace: int) -> None:
        """``grace`` in seconds: how long this process signs without the database."""
        self._store, self._holder, self._grace = store, holder, grace
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def signed(self, kid: str, exp: int) -> None:
        """Remember a token before it is released. ``exp`` in seconds."""
        with self._lock:
            held = self._held.setdefault(kid, _Held())
            held.signed = max(held.signed, exp)

    def reserve(self, lifetimes: Mapping[str, int], now: int) -> None:
        """Renew the leases of the keys that this process may sign with (kid -> longest lifetime,
        seconds) where they run low.

        Raises:
            StoreUnavailable
        """
        for kid, lifetime in lifetimes.items():
            with self._lock:
                held = self._held.setdefault(kid, _Held())
                held.last_wanted = now
                low = held.reserved < now + self._grace // 2 + lifetime
            if low:
                reserved = now + self._grace + lifetime
                self._store.extend_lease(kid, self._holder, reserved)
                held.reserved = max(held.reserved, reserved)

    def settle(self, now: int) -> None:
        """Finish the leases of keys that this process has left behind.

        Raises:
            StoreUnavailable
        """
        with self._lock:
            left = [
                kid for kid, held in self._held.items() if held.last_wanted + _SETTLE_AFTER <= now
            ]
        self._finish(left)

    def close(self) -> None:
        """Finish all of them: this process signs no more.

        Raises:
            StoreUnavailable
        """
        with self._lock:
            everything = list(self._held)
        self._finish(everything)

    def _finish(self, kids: Iterable[str]) -> None:
        for kid in kids:
            with self._lock:
                held = self._held.pop(kid)
            self._store.finish_lease(kid, self._holder, held.signed)
