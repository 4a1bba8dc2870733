"""A circuit breaker: stops asking a Region that does not answer, and finds out when it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmsjwks.domain.errors import BackendUnavailable

LONGEST_PAUSE = 60.0  # seconds between two probes
_QUIET_PAUSES = 2  # without anybody who asks, until probation
_PROBE_PAUSE = 1.0  # seconds that a caller waits while another one probes


class Breaker:
    """Closed: all calls pass. Open: none does. Half-open: one does, the probe.

    A Region has two: one of Sign, one of all other operations. An answer to DescribeKey says
    nothing about Sign, so it neither clears failures of Sign nor closes the breaker that these
    opened; with failures far apart it opens all the same, and it stays open, and known to be
    down, for as long as somebody asks for signatures and none succeeds.

    After a failover nobody asks any more, and nobody would ever probe. So an answer to something
    else (``elsewhere_answered``) puts the breaker on probation once nobody has asked for
    two pauses, or when the Region as a whole comes back: it is no longer known to be down,
    all calls pass, and the next of them is the probe. One that fails opens it at once, with twice
    the pause, up to 60 seconds; only one that succeeds brings the first pause back.

    Thread-safe. Whoever was admitted reports exactly once, with the permit: ``succeeded``,
    ``failed`` or ``abandoned``.
    """

    def __init__(
        self,
        region: str,
        *,
        failure_threshold: int,
        open_seconds: float,
        longest_pause: float = LONGEST_PAUSE,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``open_seconds`` until the first probe, doubled after each that fails, up to
        ``longest_pause`` seconds."""
        self._region, self._threshold, self._open_seconds = region, failure_threshold, open_seconds
        self._longest = max(longest_pause, open_seconds)
        self._monotonic, self._now = monotonic, now
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = open_seconds
        self._probe_at: float | None = None  # None: closed
        self._probes, self._probe = 0, 0  # how many there were; which is on its way, or 0
        self._asked_at = 0.0  # when somebody last wanted to pass, while it was open
        self._on_probation = False
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
            return self._is_due()

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
            self._asked_at = self._monotonic()
            left = self._probe_at - self._asked_at
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
        if self._failures == 0 and self._probe_at is None and not self._on_probation:
            return False
        with self._lock:
            closed = self._probe_at is not None
            self._failures, self._pause, self._on_probation = 0, self._open_seconds, False
            self._close()
        return closed

    def elsewhere_answered(self, *, region_is_back: bool) -> bool:
        """The Region answered, but nothing that this breaker is of; ``region_is_back``: after it
        had answered nothing. Returns whether that closed the breaker, on probation."""
        if self._probe_at is None:
            return False
        with self._lock:
            quiet_at = self._asked_at + _QUIET_PAUSES * self._pause
            quiet = self._is_due() and self._monotonic() >= quiet_at
            if self._probe_at is None or not (quiet or region_is_back):
                return False
            self._on_probation = True
            self._close()
            return True

    def failed(self, permit: int, reason: str, *, certain: bool = False) -> bool:
        """A retryable failure; ``certain``: something else shows the outage too, so that one is
        enough. Returns whether that opened a closed breaker."""
        with self._lock:
            if self._probe_at is not None:
                if permit and permit == self._probe:  # what began before it opened is no news
                    self._probe, self._reason = 0, reason
                    self._open_for_longer()
                return False
            self._failures += 1
            if self._on_probation:
                self._open_for_longer()
            elif certain or self._failures >= self._threshold:
                self._probe_at = self._monotonic() + self._pause
            else:
                return False
            self._on_probation, self._asked_at = False, self._monotonic()
            self._since, self._reason = self._now(), reason
            return True

    def abandoned(self, permit: int) -> None:
        """The call never reached the Region, or was broken off: the next one may probe."""
        if permit:
            with self._lock:
                if permit == self._probe:
                    self._probe = 0

    def _is_due(self) -> bool:
        due = self._probe_at is not None and self._monotonic() >= self._probe_at
        return due and not self._probe

    def _close(self) -> None:
        self._probe_at, self._probe, self._since, self._reason = None, 0, None, ""

    def _open_for_longer(self) -> None:
        self._pause = min(self._pause * 2, self._longest)
        self._probe_at = self._monotonic() + self._pause
