"""What the health check asks AWS KMS: about a key of ours, which it does not refuse us."""

from __future__ import annotations

import time
from collections.abc import Callable

from kmsjwks.backends.awskms.arns import KeyArn
from kmsjwks.backends.awskms.keycalls import KeyCalls
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendThrottled,
    KeyNotFound,
    WrongAccount,
)

# What is denied to DescribeKey may be allowed to Sign, also across accounts.
_ABOUT_KEYS = (BackendDenied, WrongAccount)
_MOST_KEYS = 16
_REFUSAL_HOLDS = 60.0  # seconds


class Health:
    """Thread-safe.

    Where no key is known, which is so in a new installation only, it asks about an alias that
    need not exist: refusing us that, AWS KMS still answered and knew our credentials. CloudTrail
    records each refusal as an error, so one counts for a minute.
    """

    def __init__(
        self, calls: KeyCalls, alias: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._calls, self._alias, self._monotonic = calls, alias, monotonic
        self._last: KeyArn | None = None
        self._known: tuple[KeyArn, ...] = ()
        self._refused_at: float | None = None

    def used(self, arn: KeyArn) -> None:
        """It was there a moment ago. Of every signature, so it costs next to nothing."""
        self._last = arn

    def remember(self, arn: KeyArn) -> None:
        """It should be there."""
        if arn not in self._known:
            self._known = (arn, *self._known)[:_MOST_KEYS]

    def check(self) -> None:
        """One Region is enough; others that failed are probed beside it.

        Raises:
            BackendError
        """
        regions = self._calls.regions
        regions.probe("DescribeKey", {"KeyId": str(self._last or self._alias)})
        try:
            self._describe_something()
        except BackendThrottled:
            return
        except BackendDenied as error:
            if type(error) not in _ABOUT_KEYS:  # about our credentials
                raise

    def _describe_something(self) -> None:
        for arn in dict.fromkeys(one for one in (self._last, *self._known) if one is not None):
            try:
                self._calls.describe(arn)
            except KeyNotFound:
                self._forget(arn)
            else:
                self._last = arn
                return
        self._describe_alias()

    def _forget(self, arn: KeyArn) -> None:
        self._known = tuple(one for one in self._known if one != arn)
        if self._last == arn:
            self._last = None

    def _describe_alias(self) -> None:
        refused_at = self._refused_at
        if refused_at is not None and self._monotonic() - refused_at < _REFUSAL_HOLDS:
            return
        self._refused_at = None
        try:
            self._calls.regions.call_preferred(
                "DescribeKey", lambda _: {"KeyId": self._alias}, doing="answering"
            )
        except KeyNotFound:
            self._refused_at = self._monotonic()
        except BackendDenied as error:
            if type(error) in _ABOUT_KEYS:
                self._refused_at = self._monotonic()
            raise
