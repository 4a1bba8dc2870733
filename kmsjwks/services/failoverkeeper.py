"""Looks at the health of backends and keys from time to time, and has done what is due."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from kmsjwks.domain.errors import BackendError
from kmsjwks.domain.failover import Sight, Stuck, decide
from kmsjwks.domain.ports import Clock
from kmsjwks.domain.rotation import spares
from kmsjwks.services.backendwatch import BackendWatch
from kmsjwks.services.failover import FailoverService
from kmsjwks.services.snapshot import ReadyKeyset, SnapshotKeeper

_log = logging.getLogger(__name__)
_INTERVAL = 1.0  # seconds between two looks
_AGAIN = 10.0  # seconds until a spare that could not take over is asked for again


class FailoverKeeper:
    """In threads of a serving process."""

    def __init__(
        self,
        service: FailoverService,
        watch: BackendWatch,
        snapshots: SnapshotKeeper,
        clock: Clock,
    ) -> None:
        self._service, self._watch, self._snapshots = service, watch, snapshots
        self._clock = clock
        self._stuck: dict[str, str] = {}
        self._closing = threading.Event()

    def start(self) -> None:
        self._watch.start()
        # Apart, since a device that hangs must keep nobody from failing over.
        for name, look in (("failover", self.look), ("spares", self.look_at_spares)):
            threading.Thread(
                target=self._run, args=(look,), name=f"kmsjwks-{name}", daemon=True
            ).start()

    def close(self) -> None:
        self._closing.set()
        self._watch.close()

    def _run(self, look: Callable[[], None]) -> None:
        while not self._closing.wait(_INTERVAL):
            try:
                look()
            except Exception:  # the thread must survive a bug, or nothing fails over any more
                _log.exception("The failover of keysets could not be looked after.")

    def look_at_spares(self) -> None:
        """Ask for those spares of keysets with a standby that were not asked for in a while."""
        snapshot = self._snapshots.known()
        if snapshot is not None:
            found = [(ready.keyset, ready.keys) for ready in snapshot.keysets.values()]
            self._service.checks.look(found, self._clock.now())

    def look(self) -> None:
        """Once, by what this process knows; the store is asked only where something is due."""
        snapshot = self._snapshots.known()
        if snapshot is None:
            return
        sight = Sight(self._watch.health(), self._service.troubles.all())
        down = any(not one.available for one in sight.backends.values())
        due = [
            name
            for name, ready in snapshot.keysets.items()
            if (down or ready.keyset.standby is not None) and self._is_due(ready, sight)
        ]
        if due:
            self._do(due, sight)

    def _is_due(self, ready: ReadyKeyset, sight: Sight) -> bool:
        service, now = self._service, int(self._clock.now())
        decision = decide(ready.keyset, ready.keys, sight, service.timing, now, gated=service.gated)
        if isinstance(decision, Stuck):
            self._complain(ready.keyset.name, decision.why)
            self._ask_again(ready, sight)
            return False
        if decision is None:
            self._stuck.pop(ready.keyset.name, None)
        return decision is not None

    def _ask_again(self, ready: ReadyKeyset, sight: Sight) -> None:
        """For the spares that stand in the way; they may have been mended."""
        for key in spares(ready.keys):
            trouble = sight.keys.get(key.kid)
            if trouble is not None and self._clock.now() - trouble.last >= _AGAIN:
                with suppress(BackendError):
                    self._service.checks.check(key)

    def _do(self, due: Sequence[str], sight: Sight) -> None:
        looked = self._service.look_after(due, sight)
        for name in due:
            if name in looked.refused:
                self._complain(name, looked.refused[name])
            else:
                self._stuck.pop(name, None)
        for said in looked.done:
            _log.warning("%s", said)
        if looked.done:
            self._snapshots.refresh()

    def _complain(self, name: str, why: str) -> None:
        """Once for each reason: it is looked at every second."""
        if self._stuck.get(name) != why:
            _log.error("Keyset %s cannot fail over: %s", name, why)
            self._stuck[name] = why
