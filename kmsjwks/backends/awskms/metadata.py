"""KeyMetadata as DescribeKey returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kmsjwks.backends.awskms.arns import KeyArn, parse_key_arn
from kmsjwks.domain.errors import BackendProtocolError, KeyNotFound

_NO_DATE = datetime.fromtimestamp(0, UTC)
_PENDING = frozenset({"PendingDeletion", "PendingReplicaDeletion"})


@dataclass(frozen=True, slots=True)
class KeyMetadata:
    """One key in one Region. ``primary`` and ``replicas`` are those of a multi-Region key; any
    other key is its own primary. Times are aware, UTC."""

    arn: KeyArn
    state: str
    spec: str
    usage: str
    created: datetime
    deletion_date: datetime | None
    primary: KeyArn
    replicas: tuple[KeyArn, ...]
    said: Mapping[str, Any]

    @property
    def enabled(self) -> bool:
        return self.state == "Enabled"

    @property
    def pending_deletion(self) -> bool:
        return self.state in _PENDING

    @property
    def everywhere(self) -> tuple[KeyArn, ...]:
        """Replicas first: a primary key is deleted after its last replica (ScheduleKeyDeletion)."""
        return (*self.replicas, self.primary)


def key_metadata(answer: Mapping[str, Any]) -> KeyMetadata:
    """Of KeyMetadata the API Reference promises the KeyId only. What AWS KMS has had a second
    member for, or what nothing depends on, an older emulator may leave out.

    Raises:
        BackendProtocolError: what is needed is missing.
    """
    try:
        said = answer["KeyMetadata"]
        arn = parse_key_arn(said["Arn"])
        family = said.get("MultiRegionConfiguration") or {}
        return KeyMetadata(
            arn=arn,
            state=said.get("KeyState") or ("Enabled" if said["Enabled"] else "Disabled"),
            spec=said.get("KeySpec") or said["CustomerMasterKeySpec"],
            usage=said["KeyUsage"],
            created=in_utc(said.get("CreationDate", _NO_DATE)),
            deletion_date=in_utc(said["DeletionDate"]) if said.get("DeletionDate") else None,
            primary=parse_key_arn(family["PrimaryKey"]["Arn"]) if family else arn,
            replicas=tuple(parse_key_arn(one["Arn"]) for one in family.get("ReplicaKeys", ())),
            said=said,
        )
    except (KeyError, TypeError, AttributeError, KeyNotFound) as error:
        raise BackendProtocolError(
            "AWS KMS described a key in a way that is not understood. Check that the endpoint "
            "is one of AWS KMS."
        ) from error


def in_utc(time: datetime) -> datetime:
    return time.astimezone(UTC)
