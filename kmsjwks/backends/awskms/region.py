"""What is known of one Region of AWS KMS: whether it signs, answers, and takes our credentials."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from kmsjwks.backends.awskms.breaker import LONGEST_PAUSE, Breaker
from kmsjwks.backends.awskms.failures import CredentialsUnavailable, is_outage
from kmsjwks.backends.awskms.limiter import Limiter
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendThrottled,
    CredentialsExpired,
    CredentialsMissing,
    KeyNotFound,
)

_log = logging.getLogger(__name__)
SIGN = "Sign"
# What makes something with every call. It may time out where all is well, so it says nothing about
# the Region.
MAKING = frozenset({"CreateKey", "ReplicateKey"})


class Region:
    """Sign has a breaker of its own. Thread-safe. Whoever was admitted reports exactly once:
    ``answered``, ``failed`` or ``abandoned``, with the operation and the permit."""

    def __init__(
        self,
        name: str,
        settings: KmsSettings,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``now``: seconds since the epoch."""
        self.name, self._now, self._threshold = name, now, settings.failure_threshold

        def breaker(longest_pause: float) -> Breaker:
            return Breaker(
                name,
                failure_threshold=settings.failure_threshold,
                open_seconds=settings.open_seconds,
                longest_pause=longest_pause,
                monotonic=monotonic,
                now=now,
            )

        self._signing = breaker(LONGEST_PAUSE)  # its probes are callers, who wait for them
        # The health check probes this one, at nobody's expense. That it answers brings the other
        # back too, so however long the Region was out, it is used again after one pause.
        self._others = breaker(settings.open_seconds)
        self._limiter = Limiter(settings.requests_per_second, monotonic=monotonic)
        self._has_answered = False
        self._unsigned = 0  # refusals to sign, one after the other
        self._refused = ""  # what it said of our credentials
        self._refused_since: float | None = None

    @property
    def is_mute(self) -> bool:
        """It answers nothing but perhaps Sign."""
        return self._others.is_open

    @property
    def may_be_probed(self) -> bool:
        """Whether an answer to something else than Sign would be news."""
        return self._others.is_due or (self._signing.is_due and not self._others.is_open)

    @property
    def only_refuses(self) -> bool:
        """It answers, and has refused to sign again and again."""
        return self._unsigned >= self._threshold

    @property
    def refusal(self) -> tuple[str, float] | None:
        """What it said of our credentials, and since when (seconds since the epoch)."""
        since = self._refused_since
        return None if since is None else (self._refused, since)

    @property
    def trouble(self) -> tuple[str, float] | None:
        """Why it cannot be used, and since when (seconds since the epoch); None where it can be,
        or nobody knows."""
        for breaker in (self._signing, self._others):
            since = breaker.since
            if since is not None:
                return breaker.reason, since
        return self.refusal

    @property
    def is_unknown(self) -> bool:
        """It was never heard of."""
        return not self._has_answered and self.trouble is None

    def admit(self, operation: str, *, limited: bool) -> int:
        """The breaker's permit. The breaker comes first: in an outage nobody waits for a quota.

        Raises:
            BackendUnavailable: the breaker is open.
            OwnLimitReached: ``limited``, and the limiter is empty.
        """
        breaker = self._breaker(operation)
        permit = breaker.admit()
        if limited:
            try:
                self._limiter.acquire()
            except BackendThrottled:
                breaker.abandoned(permit)
                raise
        return permit

    def abandoned(self, operation: str, permit: int) -> None:
        self._breaker(operation).abandoned(permit)

    def answered(self, operation: str, *, signed: bool = True) -> None:
        """``signed``: Sign was not refused."""
        was_mute = self._others.succeeded()
        if was_mute:
            _log.warning("AWS KMS in %s answers again.", self.name)
        if operation == SIGN:
            self._unsigned = 0 if signed else self._unsigned + 1
            if self._signing.succeeded():
                _log.warning("AWS KMS in %s signs again.", self.name)
        elif self._signing.elsewhere_answered(region_is_back=was_mute):
            _log.warning("AWS KMS in %s is asked to sign again, on probation.", self.name)
        self._has_answered, self._refused, self._refused_since = True, "", None

    def failed(self, operation: str, permit: int, failure: BackendError) -> bool:
        """Returns whether credentials are to be looked for anew."""
        breaker = self._breaker(operation)
        if isinstance(failure, CredentialsUnavailable):
            breaker.abandoned(permit)
        elif is_outage(failure):
            self._out(operation, permit, failure)
        elif isinstance(failure, CredentialsMissing):  # nobody was asked
            breaker.abandoned(permit)
            self._refuse(failure)
            return True
        elif isinstance(failure, CredentialsExpired):
            breaker.succeeded()
            self._refuse(failure)
            return True
        else:
            self.answered(operation, signed=not isinstance(failure, BackendDenied | KeyNotFound))
        return False

    def _out(self, operation: str, permit: int, failure: BackendError) -> None:
        breaker, signing = self._breaker(operation), operation == SIGN
        if operation in MAKING:
            breaker.abandoned(permit)
        elif breaker.failed(permit, str(failure), certain=signing and self._others.is_open):
            what = "to sign " if signing else ""
            _log.warning("AWS KMS in %s is not asked %sfor a while. %s", self.name, what, failure)

    def _refuse(self, failure: BackendError) -> None:
        if self._refused_since is None:
            self._refused_since = self._now()
            _log.warning("AWS KMS in %s cannot be used. %s", self.name, failure)
        self._refused = str(failure)

    def _breaker(self, operation: str) -> Breaker:
        return self._signing if operation == SIGN else self._others
