"""A token bucket that refuses instead of waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kmsjwks.backends.awskms.sentences import OwnLimitReached

_ROUNDING = 1e-6  # of a token: who comes back when told to must not fail by a float's last digit
_LEAST_PAUSE = 0.05  # seconds; what a caller is told to wait at least


class Limiter:
    """At most ``rate`` calls a second, and ``burst`` at once. Thread-safe, never blocks."""

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rate`` in calls a second. ``burst`` defaults to a tenth of a second's calls: no second
        ever sees more than 1.1 times the rate, which keeps the default below AWS's quota."""
        self._rate, self._monotonic = rate, monotonic
        self._burst = max(1.0, rate / 10 if burst is None else burst)
        self._tokens, self._filled_at = self._burst, monotonic()
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """
        Raises:
            OwnLimitReached: none left; ``retry_after`` is when there is one again.
        """
        with self._lock:
            now = self._monotonic()
            gained = (now - self._filled_at) * self._rate
            self._tokens = min(self._burst, self._tokens + max(0.0, gained))
            self._filled_at = now
            if self._tokens > 1.0 - _ROUNDING:
                self._tokens -= 1.0
                return
            missing = (1.0 - self._tokens) / self._rate
        raise OwnLimitReached(
            "This worker signs as often as requests_per_second of the AWS KMS backend allows. "
            "Ask again shortly; if AWS raised the account's quota, raise the setting too.",
            retry_after=max(_LEAST_PAUSE, missing),
        )
