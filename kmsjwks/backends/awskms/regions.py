"""Calls to AWS KMS in several Regions: each with breakers and a limiter of its own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from kmsjwks.backends.awskms.client import Clients
from kmsjwks.backends.awskms.failures import (
    OwnLimitReached,
    is_region_trouble,
    translate,
    translate_sts,
)
from kmsjwks.backends.awskms.region import MAKING, SIGN, Region
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.domain.errors import (
    BackendError,
    BackendProtocolError,
    CredentialsExpired,
    CredentialsMissing,
    WrongRegion,
)
from kmsjwks.domain.ports import BackendStatus

_MOST_PAGES = 10_000  # of at least one element; AWS's default quota is 100,000 keys


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
        self._regions = {
            name: Region(name, settings, now=now, monotonic=monotonic) for name in settings.regions
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
        permit, url = place.admit(operation, limited=limited), None
        try:
            client = self._client(operation, place.name)
            url = client.meta.endpoint_url
            answer = getattr(client, _method(operation))(**params)
            place.answered(operation)
        except Exception as error:
            ref = str(params.get("KeyId") or params.get("TargetKeyId") or "")
            failure = translate(error, doing, region=place.name, ref=ref, kms_url=url)
            if place.failed(operation, permit, failure):
                self._clients.renew()
            raise failure from error
        except BaseException:
            place.abandoned(operation, permit)
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
        ``params_for`` gives the parameters for a Region. One that answers nothing else is asked
        last to sign.

        Raises:
            BackendError: the first Region's that did not answer, when none does: also when
                another refuses, which is then the cause; else one that no other Region would
                answer differently; or our own limit, which is the same wherever it is reached.
        """
        first: BackendError | None = None
        for region in self._in_order(operation):
            try:
                return region, self.call(
                    operation, params_for(region), doing=doing, region=region, limited=limited
                )
            except BackendError as error:
                if first is None or isinstance(error, OwnLimitReached):
                    if not is_region_trouble(error):
                        raise
                    first = error
                elif not is_region_trouble(error):
                    raise first from error
        if first is None:
            raise BackendProtocolError("No Region is configured.")
        raise first

    def probe(self, operation: str, params: Mapping[str, Any]) -> list[threading.Thread]:
        """Ask each Region that failed and may be probed. One that is seldom needed would otherwise
        refuse those who need it, until the first of them has found out. Does nothing where there
        is one Region only: that one is asked anyway.

        Returns the threads that ask, since a Region may hang and the others must not wait for it.
        """
        if len(self._regions) == 1:
            return []
        due = [place.name for place in self._regions.values() if place.may_be_probed]
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
            failure = translate_sts(error, doing, region=self._home)
            if isinstance(failure, CredentialsMissing | CredentialsExpired):
                self._clients.renew()
            raise failure from error
        return _checked(answer, self._home, doing)

    def endpoint(self, region: str) -> str:
        """The URL that is really asked in a Region, wherever it was configured.

        Raises:
            BackendError
        """
        try:
            return self._clients.kms_endpoint(region)
        except Exception as error:
            raise translate(error, "looking for its endpoint", region=region) from error

    def status(self) -> BackendStatus:
        """Unavailable when no Region can be used: those asked do not sign, do not answer or
        refuse our credentials, and no other is left to try. One that only refuses to sign, again
        and again, is none to turn to while another is out."""
        places = list(self._regions.values())
        refusal = next((place.refusal for place in places if place.refusal is not None), None)
        # Refused credentials are refused everywhere, as far as is known.
        troubles = [refusal if place.is_unknown else place.trouble for place in places]
        outage = next((trouble for trouble in troubles if trouble is not None), None)
        if outage is None:
            return BackendStatus(True)
        known = [
            trouble or outage
            for place, trouble in zip(places, troubles, strict=True)
            if trouble is not None or place.only_refuses
        ]
        if len(known) < len(places):
            return BackendStatus(True)
        reasons = dict.fromkeys(reason for reason, _ in known)
        return BackendStatus(False, " ".join(reasons), max(since for _, since in known))

    def close(self) -> None:
        self._clients.close()

    def _client(self, operation: str, region: str) -> Any:
        clients = self._clients
        return clients.making(region) if operation in MAKING else clients.kms(region)

    def _in_order(self, operation: str) -> list[str]:
        if operation != SIGN:
            return list(self._regions)
        places = sorted(self._regions.values(), key=lambda place: place.is_mute)
        return [place.name for place in places]

    def _place(self, region: str | None) -> Region:
        place = self._regions.get(region or self._home)
        if place is None:
            raise WrongRegion(
                f"{region} is not a Region of this backend, which has {', '.join(self._regions)}. "
                "Add it to replica_regions, or make it the region."
            )
        return place


def _checked(answer: object, region: str, doing: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise BackendProtocolError(f"AWS KMS in {region} gave no answer to use while {doing}.")
    return answer


@lru_cache(maxsize=64)
def _method(operation: str) -> str:
    """boto3's name of an API operation: GetPublicKey, get_public_key."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
