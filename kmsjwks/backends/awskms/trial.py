"""Everything the roles do to a key, tried for real with one that is thrown away."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from botocore.exceptions import ClientError

from kmsjwks.backends.awskms.arns import KeyArn
from kmsjwks.backends.awskms.metadata import key_metadata
from kmsjwks.backends.awskms.naming import Label
from kmsjwks.backends.awskms.patience import Patience
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.backends.awskms.signing import jose_signature, signing_input
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import BackendError, BackendUnavailable, KeyNotFound
from kmsjwks.domain.ports import BackendKey
from kmsjwks.domain.signatures import make_verifier

_ALGORITHM = find_algorithm("ES256")
_MESSAGE = b"kmsjwks doctor"
_NEW_KEY_SECONDS = 20.0  # until all servers of AWS know it
_REPLICA_SECONDS = 60.0
_DENIED = frozenset({"AccessDeniedException", "AccessDenied", "NotAuthorized"})
_NAMED_ACTION = re.compile(r"to perform: (\w+:\w+)")


@dataclass(frozen=True, slots=True)
class Attempt:
    """``what``: an IAM action, or what else was tried. ``denied``: the action that AWS refused for
    want of a permission, which may be another one."""

    what: str
    region: str
    ok: bool
    said: str
    denied: str | None = None

    @classmethod
    def failed(
        cls, action: str, region: str, error: BackendError, *, what: str | None = None
    ) -> Self:
        return cls(what or action, region, False, str(error), _denied_action(action, error))


class Trial:
    """One run makes one key, and leaves it pending deletion."""

    def __init__(
        self, settings: KmsSettings, regions: Regions, *, patience: Patience | None = None
    ) -> None:
        self._settings, self._regions = settings, regions
        self._patience = patience or Patience()
        self._label = Label(
            settings.installation, "doctor", _ALGORITHM.id, f"doctor-{uuid.uuid4().hex}"
        )
        self._made: KeyArn | None = None
        self._left: list[KeyArn] = []
        self._spki = b""
        self._answer: Mapping[str, Any] = {}

    @property
    def made(self) -> KeyArn | None:
        """The throw-away key, once there is one."""
        return self._made

    def run(self) -> Iterator[Attempt]:
        """Raises nothing."""
        home = self._settings.regions[0]
        created = self._try("CreateKey", home, self._creation())
        yield created
        if not created.ok:
            told = "the rest was not tried: there is no throw-away key to try it with"
            yield Attempt("permissions", home, False, told)
            return
        try:
            key = self._made = key_metadata(self._answer).arn
        except BackendError as error:
            yield Attempt.failed("kms:CreateKey", home, error, what="throw-away key")
            return
        self._left = [key]
        try:
            yield from self._use(key)
            yield from self._replicate(key)
            yield from self._stop(key)
        finally:
            self._dispose()

    def _creation(self) -> dict[str, Any]:
        return {
            "KeySpec": _ALGORITHM.kms_key_spec,
            "KeyUsage": "SIGN_VERIFY",
            "Origin": "AWS_KMS",
            "MultiRegion": self._settings.multi_region,
            "Description": self._label.description(),
            "Tags": self._label.tags(),
        }

    def _use(self, key: KeyArn) -> Iterator[Attempt]:
        for operation in ("DescribeKey", "ListResourceTags", "GetPublicKey"):
            yield self._try_key(operation, key)
        self._spki = bytes(self._answer.get("PublicKey", b""))
        alias = self._label.alias(hashlib.sha256(str(key).encode()).hexdigest()[:16])
        yield self._try("CreateAlias", key.region, {"AliasName": alias, "TargetKeyId": str(key)})
        yield self._sign(key)

    def _sign(self, key: KeyArn) -> Attempt:
        known = BackendKey(str(key), _ALGORITHM, self._spki)
        attempt = self._try_key("Sign", key, signing_input(known, _MESSAGE))
        if not attempt.ok or not self._spki:
            return attempt
        try:
            signature = jose_signature(self._answer, key, _ALGORITHM)
            valid = make_verifier(_ALGORITHM, self._spki)(_MESSAGE, signature)
        except BackendError as error:
            return Attempt.failed("kms:Sign", key.region, error)
        said = "allowed; the signature verifies" if valid else "the signature does NOT verify"
        return Attempt("kms:Sign", key.region, valid, said)

    def _replicate(self, key: KeyArn) -> Iterator[Attempt]:
        if not self._settings.multi_region:
            return
        for region in self._settings.regions[1:]:
            params = {
                "KeyId": str(key),
                "ReplicaRegion": region,
                "Description": self._label.description(),
                "Tags": self._label.tags(),
            }
            attempt = self._try("ReplicateKey", key.region, params)
            yield attempt
            if not attempt.ok:
                continue
            replica = key.in_region(region)
            self._left.insert(0, replica)
            yield self._replica_described(replica)
            yield self._sign(replica)

    def _replica_described(self, replica: KeyArn) -> Attempt:
        def ready() -> Attempt | None:
            attempt = self._try_key("DescribeKey", replica)
            creating = attempt.ok and key_metadata(self._answer).state == "Creating"
            return None if creating else attempt

        try:
            return self._patience.until(
                ready, _REPLICA_SECONDS, f"AWS KMS is still making the replica {replica}."
            )
        except BackendUnavailable as error:
            return Attempt.failed("kms:DescribeKey", replica.region, error)

    def _stop(self, key: KeyArn) -> Iterator[Attempt]:
        yield self._try_key("DisableKey", key)
        yield self._try_key("EnableKey", key)
        for place, one in enumerate(list(self._left)):
            scheduled = self._schedule(one)
            yield scheduled
            if not scheduled.ok:
                continue
            if place == 0:
                cancelled = self._try_key("CancelKeyDeletion", one)
                yield cancelled
                again = self._schedule(one) if cancelled.ok else scheduled
                if not again.ok:
                    yield again
                    continue
            self._left.remove(one)
            yield self._end(one)

    def _schedule(self, key: KeyArn) -> Attempt:
        days = self._settings.deletion_window_days
        attempt = self._try_key("ScheduleKeyDeletion", key, {"PendingWindowInDays": days})
        if attempt.ok:
            return attempt
        return Attempt(
            attempt.what,
            attempt.region,
            False,
            f"{attempt.said} The throw-away key {key} is left over and costs as any key does: "
            f"aws kms schedule-key-deletion --region {key.region} --key-id {key.key_id} "
            f"--pending-window-in-days {days}",
            attempt.denied,
        )

    def _end(self, key: KeyArn) -> Attempt:
        days = self._settings.deletion_window_days
        told = (
            f"the throw-away key {key} is pending deletion for {days} days, and costs nothing from "
            f"now on; until then aws kms cancel-key-deletion would bring it back"
        )
        return Attempt("throw-away key", key.region, True, told)

    def _dispose(self) -> None:
        """Where the run was broken off."""
        days = self._settings.deletion_window_days
        for key in self._left:
            with suppress(BackendError):
                self._ask(
                    "ScheduleKeyDeletion",
                    key.region,
                    {"KeyId": str(key), "PendingWindowInDays": days},
                )

    def _try_key(
        self, operation: str, key: KeyArn, params: Mapping[str, Any] | None = None
    ) -> Attempt:
        return self._try(operation, key.region, {"KeyId": str(key), **(params or {})})

    def _try(self, operation: str, region: str, params: Mapping[str, Any]) -> Attempt:
        action = f"kms:{operation}"
        self._answer = {}
        try:
            self._answer = self._ask(operation, region, params)
        except BackendError as error:
            return Attempt.failed(action, region, error)
        return Attempt(action, region, True, "allowed")

    def _ask(self, operation: str, region: str, params: Mapping[str, Any]) -> dict[str, Any]:
        def known() -> dict[str, Any] | None:
            try:
                return self._patience.unthrottled(
                    lambda: self._regions.call(
                        operation, params, doing=f"trying kms:{operation}", region=region
                    )
                )
            except KeyNotFound as error:
                missing.append(error)
                return None

        missing: list[KeyNotFound] = []
        try:
            return self._patience.until(known, _NEW_KEY_SECONDS, "")
        except BackendUnavailable:
            if missing:
                raise missing[-1] from None
            raise


def _denied_action(action: str, error: BackendError) -> str | None:
    """The permission that is missing: AWS names it where it is not the operation's own, as with
    kms:TagResource in CreateKey."""
    cause = error.__cause__
    said = cause.response.get("Error", {}) if isinstance(cause, ClientError) else {}
    if said.get("Code") not in _DENIED:
        return None
    named = _NAMED_ACTION.search(str(said.get("Message", "")))
    return named[1] if named else action
