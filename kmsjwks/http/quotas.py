"""Counting requests against quotas, in this process.

The generic cell rate algorithm of throttled-py: one number a counter, under one lock, by the
monotonic clock, without a thread. A refused request costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from throttled.rate_limiter import BaseRateLimiter, RateLimiterRegistry, per_duration
from throttled.store import MemoryStore

from kmsjwks.domain.errors import QuotaExceeded
from kmsjwks.domain.quotas import Quota, QuotaPlan

_MOST_COUNTERS = 65536  # the one that was not used for longest goes first
_MOST_CHOICES = 4096  # remembered answers to "which quota"


class Quotas:
    """Thread-safe. Only authenticated principals and existing keysets make counters, so nobody
    can fill the memory with names."""

    def __init__(self, plan: QuotaPlan, is_keyset: Callable[[str], bool]) -> None:
        """``is_keyset`` tells whether a keyset of this name exists; it is asked for every token."""
        self._plan, self._is_keyset = plan, is_keyset
        self._store = MemoryStore(options={"MAX_SIZE": _MOST_COUNTERS})
        self._limiters: dict[Quota, BaseRateLimiter] = {}
        self._choices: dict[tuple[str, str], tuple[Quota | None, str]] = {}

    def count_use(self, client: str, keyset: str) -> None:
        """Count one token to be signed or verified.

        Raises:
            QuotaExceeded
        """
        _, refusal = self.count_uses(client, keyset, 1)
        if refusal is not None:
            raise refusal

    def count_uses(self, client: str, keyset: str, times: int) -> tuple[int, QuotaExceeded | None]:
        """Count so many tokens, or as many of them as fit: how many that are, and why not more."""
        if not self._plan.limits_use or not times:
            return times, None
        # Names of keysets that do not exist share a counter.
        where = keyset if self._is_keyset(keyset) else ""
        quota, rule = self._choice(client, where)
        if quota is None:
            return times, None
        counter, which = f"use {client} {where}", f"for this keyset ({rule})"
        if times > 1 and not self._limiter(quota).limit(counter, times).limited:
            return times, None
        for counted in range(times):
            try:
                self._count(quota, counter, which, client)
            except QuotaExceeded as refusal:
                return counted, refusal
        return times, None

    def count_management(self, client: str) -> None:
        """Count one request that neither signs nor verifies.

        Raises:
            QuotaExceeded
        """
        quota = self._plan.management
        if quota is not None:
            self._count(quota, f"management {client}", "(quotas.management)", client)

    def _choice(self, client: str, keyset: str) -> tuple[Quota | None, str]:
        found = self._choices.get((client, keyset))
        if found is None:
            found = self._plan.for_use(client, keyset)
            if len(self._choices) >= _MOST_CHOICES:
                self._choices.clear()
            self._choices[client, keyset] = found
        return found

    def _count(self, quota: Quota, counter: str, which: str, client: str) -> None:
        result = self._limiter(quota).limit(counter)
        if result.limited:
            raise QuotaExceeded(
                f"{client} has used up its quota of {quota} {which}. Nothing was done; send less, "
                "or ask the operator for more.",
                retry_after=result.state.retry_after,
            )

    def _limiter(self, quota: Quota) -> BaseRateLimiter:
        found = self._limiters.get(quota)
        if found is None:
            rate = per_duration(timedelta(seconds=quota.period), quota.count, quota.burst)
            found = RateLimiterRegistry.get("gcra")(rate, self._store)
            found = self._limiters.setdefault(quota, found)
        return found
