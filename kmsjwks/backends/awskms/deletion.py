"""Destroying keys with a waiting window, and bringing them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from kmsjwks.backends.awskms.arns import KeyArn
from kmsjwks.backends.awskms.inventory import Inventory
from kmsjwks.backends.awskms.keycalls import KeyCalls
from kmsjwks.backends.awskms.metadata import KeyMetadata, in_utc
from kmsjwks.domain.errors import BackendDenied, BackendError, KeyNotFound, KeyPendingDeletion

T = TypeVar("T")


class Deletion:
    """Touches keys of this installation only. Thread-safe."""

    def __init__(self, calls: KeyCalls, inventory: Inventory) -> None:
        self._calls, self._inventory = calls, inventory
        self._days = calls.settings.deletion_window_days

    def destroy(self, ref: str) -> datetime:
        """Disable the key in every Region, then schedule its deletion there, replicas first.

        A primary key is kept until its last replica is deleted, and its own window begins then;
        the end of that is returned.

        Raises:
            BackendDenied: the key is not this installation's.
            BackendError: some Region did not do it; the others did. Do it again.
        """
        arn = self._calls.locate(ref)
        try:
            metadata = self._ours(arn)
        except KeyNotFound:
            return datetime.now(UTC)
        _, failed = _each(metadata.everywhere, self._disable)
        dates, also_failed = _each(metadata.everywhere, self._schedule)
        for error in (*failed, *also_failed):
            raise error
        known = [date for date in dates if date is not None]
        last = max(known, default=datetime.now(UTC))
        return last + timedelta(days=self._days) if len(known) < len(dates) else last

    def cancel(self, ref: str) -> None:
        """
        Raises:
            KeyNotFound: the key is deleted.
            BackendDenied: it is not this installation's.
        """
        metadata = self._ours(self._calls.locate(ref))
        self._revive(metadata.primary)
        for replica in metadata.replicas:
            try:
                self._revive(replica)
            except KeyNotFound:
                continue  # the next creation by the same request makes it anew

    def _ours(self, arn: KeyArn) -> KeyMetadata:
        metadata = self._calls.describe(arn)
        if self._inventory.label(arn) is None:
            raise BackendDenied(
                f"The key {arn} has no tags of the installation "
                f"{self._calls.settings.installation!r}, so it is left alone. Delete it in AWS, or "
                "put its tags back."
            )
        return metadata

    def _there(self, arn: KeyArn) -> KeyMetadata:
        return self._calls.describe_there(self._calls.locate(str(arn)))

    def _call(self, operation: str, arn: KeyArn, doing: str, **params: object) -> dict[str, object]:
        asked = {"KeyId": str(arn), **params}
        return self._calls.regions.call(operation, asked, doing=doing, region=arn.region)

    def _disable(self, arn: KeyArn) -> None:
        try:
            metadata = self._there(arn)
            if metadata.state != "Disabled" and not metadata.pending_deletion:
                self._call("DisableKey", arn, "disabling a key")
        except KeyNotFound:
            return  # deleted, or pending deletion by now

    def _schedule(self, arn: KeyArn) -> datetime | None:
        """When AWS deletes the key; None while that waits for its replicas."""
        try:
            metadata = self._there(arn)
            if metadata.pending_deletion:
                return metadata.deletion_date
            doing = "scheduling a key's deletion"
            answer = self._call("ScheduleKeyDeletion", arn, doing, PendingWindowInDays=self._days)
        except KeyPendingDeletion:  # scheduled by somebody else a moment ago
            return self._there(arn).deletion_date
        except KeyNotFound:
            return datetime.now(UTC)
        date = answer.get("DeletionDate")
        return in_utc(date) if isinstance(date, datetime) else None

    def _revive(self, arn: KeyArn) -> None:
        metadata = self._there(arn)
        if metadata.pending_deletion:
            self._call("CancelKeyDeletion", arn, "cancelling a key's deletion")
        if metadata.pending_deletion or metadata.state == "Disabled":
            self._call("EnableKey", arn, "enabling a key")


def _each(arns: Iterable[KeyArn], act: Callable[[KeyArn], T]) -> tuple[list[T], list[BackendError]]:
    """What came of each, and what went wrong; one Region in trouble does not keep the others."""
    done: list[T] = []
    failed: list[BackendError] = []
    for arn in arns:
        try:
            done.append(act(arn))
        except BackendError as error:
            failed.append(error)
    return done, failed
