"""Hand-overs that took place by the clock and that nobody has written down yet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.rotation import active_key, due_spare, withdrawal
from kmsjwks.domain.timing import InstallationTiming


def handed_over(
    keyset: Keyset, keys: Sequence[Key], timing: InstallationTiming, now: int
) -> list[tuple[Key, Key]]:
    """Before and after, for each key that changes when the next hand-over is written down that is
    due at ``now`` (seconds), the key that takes over first; it took place at its own time. Empty
    where none is due."""
    due, old = due_spare(keys, now), active_key(keys)
    if due is None:
        return []
    changed = [(due, replace(due, state=KeyState.ACTIVE))]
    at = due.times.activate_at
    if old is not None and at is not None:
        end = withdrawal(keyset, old, timing, at)
        times = replace(old.times, deactivated_at=at, withdraw_at=end)
        changed.append((old, replace(old, state=KeyState.DEACTIVATED, times=times)))
    return changed


def caught_up(
    keyset: Keyset, keys: Sequence[Key], timing: InstallationTiming, now: int
) -> list[Key]:
    """The keys as they are once every hand-over that is due at ``now`` (seconds) is recorded."""
    found = list(keys)
    while changed := handed_over(keyset, found, timing, now):
        after = {before.kid: key for before, key in changed}
        found = [after.get(key.kid, key) for key in found]
    return found
