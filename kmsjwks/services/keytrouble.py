"""Which keys their backends refuse, as this process met it: no backend's health says that."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from kmsjwks.domain.failover import Trouble
from kmsjwks.domain.keys import Key, KeyState
from kmsjwks.domain.ports import Clock

_log = logging.getLogger(__name__)
_JUST = 1.0  # seconds
_RECENT = 900.0  # seconds; what was met before says little about now


class KeyTroubles:
    """By kid, until the key serves again. Thread-safe; a signature that succeeds costs one look at
    a dict that is usually empty."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._met: dict[str, Trouble] = {}

    def refused(self, key: Key, reason: str) -> None:
        """The backend answers, and does not let the key serve; ``reason`` is for the operator."""
        now = self._clock.now()
        with self._lock:
            known = self._met.get(key.kid)
            first = Trouble(now, now, reason)
            self._met[key.kid] = first if known is None else replace(known, last=now, reason=reason)
        if known is None:
            _tell(key, reason)

    def served(self, kid: str) -> None:
        if kid in self._met:
            with self._lock:
                self._met.pop(kid, None)
            _log.info("The key %s serves again.", kid)

    def was_just_refused(self, kid: str) -> bool:
        """Within the last second: what a look at the database would tell is known."""
        met = self._met.get(kid)
        return met is not None and 0 <= self._clock.now() - met.last < _JUST

    def all(self) -> dict[str, Trouble]:
        with self._lock:
            return dict(self._met)

    def recent(self) -> dict[str, Trouble]:
        """Without those that nobody has asked for in a while: they may have been mended."""
        since = self._clock.now() - _RECENT
        return {kid: trouble for kid, trouble in self.all().items() if trouble.last >= since}


def _tell(key: Key, reason: str) -> None:
    """Once: it is met with every request."""
    if key.state is KeyState.PRE_ACTIVATION:
        _log.error(
            "Keyset %s: the spare %s in %s cannot take over: %s Mend it, or destroy it with "
            "'keys destroy', and another is made.",
            key.keyset, key.kid, key.backend, reason,
        )  # fmt: skip
    else:
        _log.error(
            "Keyset %s: its key %s in %s cannot sign: %s A standby takes over by itself; without "
            "one it is for a person to decide: mend it, or use 'keys compromise'.",
            key.keyset, key.kid, key.backend, reason,
        )  # fmt: skip
