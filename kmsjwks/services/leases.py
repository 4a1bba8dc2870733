"""What this process may have signed with each key, so that a key is withdrawn in time, not early.

A lease reserves, ahead of any signature, the highest ``exp`` that this process could sign before
it either renews the lease or stops signing for want of a database. A process that moves on to the
next key replaces its reservation by what it really signed; one that dies leaves the reservation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.domain.ports import KeyStore, Lease

_SETTLE_AFTER = 30  # seconds after its last use: longer than any call into a backend may take


@dataclass(slots=True)
class _Held:
    holder: str
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
        self._successors = 0
        self._closed = False

    def signed(self, kid: str, exp: int) -> None:
        """Remember a token before it is released. ``exp`` in seconds.

        Raises:
            StoreUnavailable: it is beyond what was reserved; do not release it.
        """
        with self._lock:
            held = self._held.get(kid)
            if held is None or exp > held.reserved:
                raise StoreUnavailable(
                    "The database does not know that this process signs with this key for so "
                    "long. Try again.",
                    retry_after=1,
                )
            held.signed = max(held.signed, exp)

    def reserve(self, lifetimes: Mapping[str, int], now: int) -> None:
        """Renew the leases of the keys that this process may sign with (kid -> longest lifetime,
        seconds) where they run low.

        Raises:
            StoreUnavailable
        """
        low: list[tuple[_Held, Lease]] = []
        with self._lock:
            if self._closed:
                return
            for kid, lifetime in lifetimes.items():
                held = self._held.get(kid)
                if held is None:
                    held = self._held[kid] = _Held(self._holder)
                held.last_wanted = now
                # From this look at the database on, this process may sign for its grace.
                needed = now + self._grace + lifetime
                if held.reserved < needed:
                    # More than that, so that not every look has to write.
                    extended = needed + self._grace // 2
                    low.append((held, Lease(kid, held.holder, extended, final=False)))
        if low:
            self._extend(low)

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
            self._closed = True
            everything = list(self._held)
        self._finish(everything)

    def _extend(self, low: Sequence[tuple[_Held, Lease]]) -> None:
        """In one transaction: those of a thousand keys run low at the same time."""
        final = {lease.kid for lease in self._store.extend_leases([lease for _, lease in low])}
        for held, lease in low:
            if lease.kid in final:
                if self._closed:  # by ``close``, while the database was slow
                    return
                # A key that comes back, after a hold for one: what is final stays so.
                held.holder = self._successor()
                self._store.extend_lease(lease.kid, held.holder, lease.max_exp)
        with self._lock:
            for held, lease in low:
                held.reserved = max(held.reserved, lease.max_exp)

    def _successor(self) -> str:
        self._successors += 1
        return f"{self._holder}.{self._successors}"

    def _finish(self, kids: Iterable[str]) -> None:
        for kid in kids:
            with self._lock:  # first, so that nothing is signed on a lease that is final
                held = self._held.pop(kid, None)
            if held is None:
                continue
            try:
                self._store.finish_lease(kid, held.holder, held.signed)
            except StoreUnavailable:
                with self._lock:
                    held.reserved = held.signed  # whether it is final is not known
                    self._held.setdefault(kid, held)
                raise
