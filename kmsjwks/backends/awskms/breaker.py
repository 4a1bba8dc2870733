"""A circuit breaker: stops asking a Region that does not answer, and finds out when it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmsjwks.domain.errors import BackendUnavailable

_LONGEST = 60.0  # seconds between two probes
_PROBE_PAUSE = 1.0  # seconds that a caller waits while another one probes


class Breaker:
    """Closed: all calls pass. Open: none does. Half-open: one does, the probe.

    Thread-safe. Whoever was admitted reports exactly once, with the permit: ``succeeded``,
    ``failed`` or ``abandoned``.
    """

    def __init__(
        self,
        region: str,
        *,
        failure_threshold: int,
        open_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``open_seconds`` until the first probe, doubled after each that fails, up to 60."""
        self._region, self._threshold, self._open_seconds = region, failure_threshold, open_seconds
        self._monotonic, self._now = monotonic, now
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = open_seconds
        self._probe_at: float | None = None  # None: closed
        self._probes, self._probe = 0, 0  # how many there were; which is on its way, or 0
        self._since: float | None = None
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """Open or half-open: the Region has not proved itself yet."""
        return self._probe_at is not None

    @property
    def is_due(self) -> bool:
        """Whether the next call would be the probe."""
        with self._lock:
            due = self._probe_at is not None and self._monotonic() >= self._probe_at
            return due and not self._probe

    @property
    def since(self) -> float | None:
        """Seconds since the epoch; None while closed."""
        return self._since

    @property
    def reason(self) -> str:
        """What the last failure said; empty while closed."""
        return self._reason

    def admit(self) -> int:
        """A permit: the number of the probe that this call is, or 0.

        Raises:
            BackendUnavailable: not now; ``retry_after`` is when the Region is probed again.
        """
        if self._probe_at is None:  # a single read, without the lock: this is every signature
            return 0
        with self._lock:
            if self._probe_at is None:
                return 0
            left = self._probe_at - self._monotonic()
            if left <= 0 and not self._probe:
                self._probes += 1
                self._probe = self._probes
                return self._probe
            reason = self._reason
        raise BackendUnavailable(
            f"AWS KMS in {self._region} failed repeatedly and is not asked for now. {reason}",
            retry_after=left if left > 0 else _PROBE_PAUSE,
        )

    def succeeded(self) -> bool:
        """The Region answered, be it a probe or not. Returns whether that closed the breaker."""
        if self._failures == 0 and self._probe_at is None:
            return False
        with self._lock:
            closed = self._probe_at is not None
            self._failures, self._probe_at, self._pause = 0, None, self._open_seconds
            self._probe, self._since, self._reason = 0, None, ""
        return closed

    def failed(self, permit: int, reason: str) -> bool:
        """A retryable failure. Returns whether that opened a closed breaker."""
        with self._lock:
            if self._probe_at is not None:
                if permit and permit == self._probe:  # what began before it opened is no news
                    self._probe, self._reason = 0, reason
                    self._pause = min(self._pause * 2, max(_LONGEST, self._open_seconds))
                    self._probe_at = self._monotonic() + self._pause
                return False
            self._failures += 1
            if self._failures < self._threshold:
                return False
            self._probe_at = self._monotonic() + self._pause
            self._since, self._reason = self._now(), reason
            return True

    def abandoned(self, permit: int) -> None:
        """The call never reached the Region, or was broken off: the next one may probe."""
        if permit:
            with self._lock:
                if permit == self._probe:
                    self._probe = 0
