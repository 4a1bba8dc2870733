"""Waiting for AWS KMS: for what it has not told all its servers yet, and for its control quotas."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kmsjwks.domain.errors import BackendThrottled, BackendUnavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds. Not for the sign path, which never waits."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    first_pause: float = 0.1
    longest_pause: float = 2.0
    quota_wait: float = 30.0

    def until(self, look: Callable[[], T | None], seconds: float, unmet: str) -> T:
        """What ``look`` returns as soon as that is not None.

        Raises:
            BackendUnavailable: with ``unmet`` as its message, after ``seconds``.
        """
        deadline, pause = self.clock() + seconds, self.first_pause
        while True:
            found = look()
            if found is not None:
                return found
            if self.clock() + pause > deadline:
                raise BackendUnavailable(unmet, retry_after=pause)
            self.sleep(pause)
            pause = min(2 * pause, self.longest_pause)

    def unthrottled(self, call: Callable[[], T]) -> T:
        """``call`` again while the quota of its operation is used up.

        Raises:
            BackendThrottled: it still is after ``quota_wait``.
        """
        deadline, pause = self.clock() + self.quota_wait, self.first_pause
        while True:
            try:
                return call()
            except BackendThrottled as error:
                pause = max(pause, error.retry_after)
                if self.clock() + pause > deadline:
                    raise
            self.sleep(pause)
            pause = min(2 * pause, self.longest_pause)
