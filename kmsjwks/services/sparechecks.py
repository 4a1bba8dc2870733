"""Whether the keys that are to take over are still there: before they do, and now and then."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from contextlib import suppress

from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
)
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.ports import KeyBackend
from kmsjwks.domain.rotation import spares
from kmsjwks.services.keytrouble import KeyTroubles

_INTERVAL = 600.0  # seconds between two questions about one spare
_FIRST = 60.0  # seconds in which a process asks about each for the first time


class SpareChecks:
    """Asks for public keys only. ``backends`` are to answer in bounded time."""

    def __init__(self, backends: Mapping[str, KeyBackend], troubles: KeyTroubles) -> None:
        self._backends, self.troubles = backends, troubles
        self._next: dict[str, float] = {}  # by kid, in seconds since the epoch

    def check(self, key: Key) -> None:
        """Whether the backend holds the key; if not, that is noted.

        Raises:
            BackendUnavailable: the backend does not answer, or is not configured here.
            BackendError: it does not hold this key, or the key serves nothing.
        """
        backend = self._backends.get(key.backend)
        if backend is None:
            raise BackendUnavailable(f"The backend {key.backend} is not configured here.")
        try:
            if backend.get_key(key.ref).spki != key.spki:
                raise BackendProtocolError(
                    f"The backend {key.backend} holds another key as {key.ref}."
                )
        except (BackendThrottled, BackendDenied):
            return  # who may sign need not be allowed to read public keys
        except BackendUnavailable:
            raise
        except BackendError as error:
            self.troubles.refused(key, str(error))
            raise
        self.troubles.served(key.kid)

    def look(self, keysets: Iterable[tuple[Keyset, Iterable[Key]]], now: float) -> None:
        """Check those spares of keysets with a standby that are due at ``now`` (seconds), each at
        a time of its own."""
        waiting = [
            key
            for keyset, keys in keysets
            if keyset.standby is not None
            for key in spares(list(keys))
        ]
        kids = {key.kid for key in waiting}
        self._next = {kid: at for kid, at in self._next.items() if kid in kids}
        for key in waiting:
            at = self._next.setdefault(key.kid, now + random.uniform(0, _FIRST))  # noqa: S311
            if at <= now:
                self._next[key.kid] = now + _INTERVAL * random.uniform(0.8, 1.2)  # noqa: S311
                with suppress(BackendError):
                    self.check(key)
