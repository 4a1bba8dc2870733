"""Asks every backend again and again whether it can serve, and remembers since when it can or not.

A process that has nothing to sign would not notice otherwise that a backend is down, or up again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from kmsjwks.domain.errors import BackendError, BackendThrottled
from kmsjwks.domain.failover import Health
from kmsjwks.domain.ports import Clock, KeyBackend

_log = logging.getLogger(__name__)
_UNKNOWN = "It has not answered yet."  # and is taken to be well from the start of this process on


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """In seconds: between two questions to a backend, and how long an answer may take, which is to
    be longer than the backends bound a call themselves."""

    interval: float = 5.0
    patience: float = 8.0


class BackendWatch:
    """One thread a backend, since a device that hangs keeps its thread. Thread-safe."""

    def __init__(
        self,
        backends: Mapping[str, KeyBackend],
        clock: Clock,
        timing: WatchTiming | None = None,
    ) -> None:
        timing = timing or WatchTiming()
        self._closing = threading.Event()
        self._watched = {
            name: _Watched(name, backend, clock, timing, self._closing)
            for name, backend in backends.items()
        }

    def start(self) -> None:
        for watched in self._watched.values():
            threading.Thread(
                target=watched.run, name=f"kmsjwks-watch-{watched.name}", daemon=True
            ).start()

    def close(self) -> None:
        self._closing.set()

    def health(self) -> dict[str, Health]:
        """By backend; asks nobody. Before ``start`` it is what the backends themselves noticed."""
        return {name: watched.health() for name, watched in self._watched.items()}


class _Watched:
    """One backend. It is up again only when it has answered: that it may be tried says nothing."""

    def __init__(
        self,
        name: str,
        backend: KeyBackend,
        clock: Clock,
        timing: WatchTiming,
        closing: threading.Event,
    ) -> None:
        self.name, self._backend, self._clock = name, backend, clock
        self._timing, self._closing = timing, closing
        self._lock = threading.Lock()
        self._health = Health(True, clock.now(), _UNKNOWN)
        self._asked: float | None = None  # monotonic seconds, while an answer is waited for
        self._answered = True

    def run(self) -> None:
        while not self._closing.is_set():
            self._ask()
            self._closing.wait(self._timing.interval)

    def health(self) -> Health:
        status = self._backend.status()
        with self._lock:
            asked = self._asked
            if not status.available:
                self._answered = False
                self._note(False, status.reason)
            elif asked is not None and time.monotonic() - asked > self._timing.patience:
                self._answered = False
                self._note(False, "It does not answer.")
            elif self._answered and self._health.reason != _UNKNOWN:
                self._note(True, "")
            return self._health

    def _ask(self) -> None:
        with self._lock:
            self._asked = time.monotonic()
        reason = None
        try:
            self._backend.check()
        except BackendThrottled:
            pass  # it answered, and is well
        except BackendError as error:
            reason = str(error)
        except Exception as error:  # the thread must survive a bug, or nobody asks any more
            _log.exception("The backend %s cannot be asked.", self.name)
            reason = f"It cannot be asked ({type(error).__name__})."
        status = self._backend.status()
        if reason is None and not status.available:  # it answers, and does not sign
            reason = status.reason
        with self._lock:
            self._asked = None
            self._answered = reason is None
            self._note(reason is None, reason or "")

    def _note(self, available: bool, reason: str) -> None:
        before = self._health
        first = before.reason == _UNKNOWN
        if available == before.available and not first:
            return
        self._health = Health(available, self._clock.now(), reason)
        if available and not first:
            _log.info("The backend %s answers again.", self.name)
        elif not available:
            _log.error("The backend %s is down: %s", self.name, reason)
