"""Who acts, what an act comes to, and whose turn it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kmsjwks.domain.errors import (
    KeysetNotFound,
    StoreUnavailable,
)
from kmsjwks.domain.keys import Keyset
from kmsjwks.domain.ports import Change, KeyStore, LifecycleEvent

_LOCK_PATIENCE = 20.0  # seconds to wait for another process's turn


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an act does: for people in ``says``, for the store in the rest."""

    says: tuple[str, ...]
    changes: tuple[Change, ...]
    event: LifecycleEvent


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, whether only to see what would happen, and in which request, if any."""

    name: str
    dry_run: bool = False
    request_id: str = ""


def find_keyset(store: KeyStore, name: str) -> Keyset:
    found = next((one for one in store.keysets() if one.name == name), None)
    if found is None:
        raise KeysetNotFound(f"There is no keyset {name}.")
    return found


@contextmanager
def planner_turn(store: KeyStore) -> Iterator[None]:
    """Wait for the planner's lock.

    Raises:
        StoreUnavailable: another process has had it for too long.
    """
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        with store.planner_lock() as ours:
            if ours:
                yield
                return
        if time.monotonic() >= deadline:
            raise StoreUnavailable("Another process is changing keys; try again.", retry_after=5)
        time.sleep(0.05)
