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
_SHORT_PATIENCE = 1.0  # seconds, where waiting does harm


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an act does: for people in ``says``, for the store in the rest."""

    says: tuple[str, ...]
    changes: tuple[Change, ...]
    event: LifecycleEvent


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and whether only to see what would happen."""

    name: str
    dry_run: bool = False


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


@contextmanager
def turn_or_not(store: KeyStore) -> Iterator[bool]:
    """Wait a moment for the planner's lock, then go on without it: whoever has it may hang in the
    very device that is down. What is written is checked against what was read all the same. Yields
    whether we have the lock; who has not must not ask a backend for anything that lasts."""
    deadline = time.monotonic() + _SHORT_PATIENCE
    while True:
        with store.planner_lock() as ours:
            if ours or time.monotonic() >= deadline:
                yield ours
                return
        time.sleep(0.05)
