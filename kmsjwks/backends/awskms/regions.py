"""Calls to AWS KMS in several Regions: each with a breaker and a limiter of its own."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kmsjwks.backends.awskms.breaker import Breaker
from kmsjwks.backends.awskms.client import Clients
from kmsjwks.backends.awskms.failures import is_outage, is_region_trouble, translate
from kmsjwks.backends.awskms.limiter import Limiter
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.domain.errors import (
    BackendError,
    BackendProtocolError,
    BackendThrottled,
    CredentialsExpired,
    CredentialsMissing,
    WrongRegion,
)
from kmsjwks.domain.ports import BackendStatus

_log = logging.getLogger(__name__)
_MOST_PAGES = 10_000  # of at least one element; AWS's default quota is 100,000 keys


@dataclass(slots=True)
class _Region:
    """What is known of a Region. ``refused``: its last answer was about our credentials."""

    name: str
    breaker: Breaker
    limiter: Limiter
    answered: bool = False
    refused: str = ""
    refused_since: float | None = None


class Regions:
    """Raises only BackendError. Thread-safe."""

    def __init__(
        self,
        settings: KmsSettings,
        clients: Clients | None = None,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``now``: seconds since the epoch. Asks nothing yet."""
        self._clients = clients or Clients(settings, monotonic=monotonic)
        self._now = now
        self._regions = {
            name: _Region(
                name,
                Breaker(
                    name,
                    failure_threshold=settings.failure_threshold,
                    open_seconds=settings.open_seconds,
                    monotonic=monotonic,
                    now=now,
                ),
                Limiter(settings.requests_per_second, monotonic=monotonic),
            )
            for name in settings.regions
        }
        self._home = settings.regions[0]

    def call(
        self,
        operation: str,
        params: Mapping[str, Any],
        *,
        doing: str,
        region: str | None = None,
        limited: bool = False,
    ) -> dict[str, Any]:
        """The answer of AWS KMS to an API ``operation`` such as "Sign", at home unless a
        ``region`` is named. ``doing`` says what for, as a present participle.

        Raises:
            BackendError: also when the breaker is open, or ``limited`` and the limiter empty.
        """
        place = self._place(region)
        permit = _admit(place, limited)
        try:
            answer = getattr(self._clients.kms(place.name), _method(operation))(**params)
            self._note_answer(place)
        except Exception as error:
            ref = str(params.get("KeyId") or params.get("TargetKeyId") or "")
            failure = translate(error, doing, region=place.name, ref=ref)
            self._note_failure(place, permit, failure)
            raise failure from error
        except BaseException:
            place.breaker.abandoned(permit)
            raise
        return _checked(answer, place.name, doing)

    def call_preferred(
        self,
        operation: str,
        params_for: Callable[[str], Mapping[str, Any]],
        *,
        doing: str,
        limited: bool = False,
    ) -> tuple[str, dict[str, Any]]:
        """The first Region, in order of preference, that answers, and what it says;
        ``params_for`` gives the parameters for a Region.

        Raises:
            BackendError: the preferred Region's, when none answers; or one that no other Region
                would answer differently.
        """
        first: BackendError | None = None
        for region in self._regions:
            try:
                return region, self.call(
                    operation, params_for(region), doing=doing, region=region, limited=limited
                )
            except BackendError as error:
                if not is_region_trouble(error):
                    raise
                first = first or error
        if first is None:
            raise BackendProtocolError("No Region is configured.")
        raise first

    def probe(self, operation: str, params: Mapping[str, Any]) -> list[threading.Thread]:
        """Ask each Region whose breaker is open and may be probed. One that is seldom needed would
        otherwise refuse those who need it, until the first of them has found out. Does nothing
        where there is one Region only: that one is asked anyway.

        Returns the threads that ask, since a Region may hang and the others must not wait for it.
        """
        if len(self._regions) == 1:
            return []
        due = [place.name for place in self._regions.values() if place.breaker.is_due]
        threads = [
            threading.Thread(
                target=self._probe,
                args=(operation, params, region),
                name=f"kmsjwks-probe-{region}",
                daemon=True,
            )
            for region in due
        ]
        for thread in threads:
            thread.start()
        return threads

    def _probe(self, operation: str, params: Mapping[str, Any], region: str) -> None:
        with suppress(BackendError):  # the breaker remembers
            self.call(operation, params, doing="answering", region=region)

    def pages(
        self,
        operation: str,
        params: Mapping[str, Any],
        result_key: str,
        *,
        doing: str,
        region: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The elements of all pages of a list (``Truncated``, ``NextMarker``). Raises what
        ``call`` does."""
        asked = dict(params)
        for _ in range(_MOST_PAGES):
            answer = self.call(operation, asked, doing=doing, region=region)
            yield from answer.get(result_key) or ()
            marker = answer.get("NextMarker")
            if not answer.get("Truncated"):
                return
            if not marker or marker == asked.get("Marker"):
                break
            asked["Marker"] = marker
        raise BackendProtocolError(f"AWS KMS gave a list that does not end while {doing}.")

    def caller(self) -> dict[str, Any]:
        """``Account``, ``Arn`` and ``UserId`` of our credentials, as AWS STS states them.

        Raises:
            BackendError
        """
        doing = "asking AWS STS for our identity"
        try:
            answer = self._clients.sts().get_caller_identity()
        except Exception as error:
            failure = translate(error, doing, region=self._home)
            if isinstance(failure, CredentialsMissing | CredentialsExpired):
                self._clients.renew()
            raise failure from error
        return _checked(answer, self._home, doing)

    def status(self) -> BackendStatus:
        """Unavailable when no Region can be used: those asked do not answer or refuse our
        credentials, and no other is left to try."""
        troubles = [self._trouble(place) for place in self._regions.values()]
        known = [trouble for trouble in troubles if trouble is not None]
        if len(known) < len(troubles) or not known:
            return BackendStatus(True)
        reasons = dict.fromkeys(reason for reason, _ in known)
        return BackendStatus(False, " ".join(reasons), max(since for _, since in known))

    def close(self) -> None:
        self._clients.close()

    def _place(self, region: str | None) -> _Region:
        place = self._regions.get(region or self._home)
        if place is None:
            raise WrongRegion(
                f"{region} is not a Region of this backend, which has {', '.join(self._regions)}. "
                "Add it to replica_regions, or make it the region."
            )
        return place

    def _trouble(self, place: _Region) -> tuple[str, float] | None:
        """Why a Region cannot be used, and since when; None where it can, or nobody knows."""
        since = place.breaker.since
        if since is not None:
            return place.breaker.reason, since
        if place.refused_since is not None:
            return place.refused, place.refused_since
        if place.answered:
            return None
        # Refused credentials are refused everywhere, as far as is known.
        refusals = (
            (other.refused, other.refused_since)
            for other in self._regions.values()
            if other.refused_since is not None
        )
        return next(refusals, None)

    def _note_answer(self, place: _Region) -> None:
        if place.breaker.succeeded():
            _log.warning("AWS KMS in %s answers again.", place.name)
        place.answered, place.refused, place.refused_since = True, "", None

    def _note_failure(self, place: _Region, permit: int, failure: BackendError) -> None:
        if is_outage(failure):
            if place.breaker.failed(permit, str(failure)):
                _log.warning("AWS KMS in %s is not asked for a while. %s", place.name, failure)
        elif isinstance(failure, CredentialsMissing):  # nobody was asked
            place.breaker.abandoned(permit)
            self._note_refusal(place, failure)
        elif isinstance(failure, CredentialsExpired):
            place.breaker.succeeded()
            self._note_refusal(place, failure)
        else:
            self._note_answer(place)

    def _note_refusal(self, place: _Region, failure: BackendError) -> None:
        if place.refused_since is None:
            place.refused_since = self._now()
            _log.warning("AWS KMS in %s cannot be used. %s", place.name, failure)
        place.refused = str(failure)
        self._clients.renew()


def _admit(place: _Region, limited: bool) -> int:
    """The breaker's permit. The breaker comes first: in an outage nobody waits for a quota."""
    permit = place.breaker.admit()
    if limited:
        try:
            place.limiter.acquire()
        except BackendThrottled:
            place.breaker.abandoned(permit)
            raise
    return permit


def _checked(answer: object, region: str, doing: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise BackendProtocolError(f"AWS KMS in {region} gave no answer to use while {doing}.")
    return answer


@lru_cache(maxsize=64)
def _method(operation: str) -> str:
    """boto3's name of an API operation: GetPublicKey, get_public_key."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
