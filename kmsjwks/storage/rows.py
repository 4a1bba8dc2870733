"""Domain objects to rows and back."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, NamedTuple

from sqlalchemy import RowMapping

from kmsjwks.domain import strictjson
from kmsjwks.domain.algorithms import Algorithm, find_algorithm
from kmsjwks.domain.errors import MalformedJson, StoreUnavailable, UnsupportedAlgorithm
from kmsjwks.domain.keys import Key, Keyset, KeyState, KeyTimes, Standby
from kmsjwks.domain.ports import Lease, LifecycleEvent
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules

_TIMES = tuple(field.name for field in fields(KeyTimes))
_LATER_RULES: tuple[tuple[str, Any], ...] = (
    ("fixed", {}),
    ("allowed", ()),
    ("nbf", "allowed"),
    ("jti", "allowed"),
    ("profile", ""),
)
_EVENT = tuple(field.name for field in fields(LifecycleEvent) if field.name != "request_id")


class CreationIntent(NamedTuple):
    """A key creation that was begun. ``created_at`` is in seconds since the epoch."""

    request_id: str
    keyset: str
    backend: str
    algorithm: Algorithm
    created_at: int


def keyset_to_row(keyset: Keyset) -> dict[str, Any]:
    return {
        "name": keyset.name,
        "algorithm": keyset.algorithm.id,
        "backend": keyset.backend,
        "rules": rules_to_text(keyset.rules),
        "created_at": keyset.created_at,
        "schedule": _text(keyset.schedule),
        "standby": None if keyset.standby is None else _text(keyset.standby),
    }


def rules_to_text(rules: TokenRules) -> str:
    """Without rules that came later and are not used, so that an older replica goes on reading."""
    members = asdict(rules)
    unused = [name for name, default in _LATER_RULES if members[name] == default]
    return strictjson.dumps(
        {name: value for name, value in members.items() if name not in unused}
    ).decode()


def key_to_row(key: Key) -> dict[str, Any]:
    return {
        "kid": key.kid,
        "keyset": key.keyset,
        "algorithm": key.algorithm.id,
        "backend": key.backend,
        "ref": key.ref,
        "spki": key.spki,
        "state": key.state.value,
        "hold": key.hold,
        "version": key.version,
        **asdict(key.times),
    }


def intent_to_row(intent: CreationIntent) -> dict[str, Any]:
    return {**intent._asdict(), "algorithm": intent.algorithm.id}


def keyset_from_row(row: RowMapping) -> Keyset:
    """
    Raises:
        StoreUnavailable: the row is not one that this version can read.
    """
    try:
        return Keyset(
            name=row["name"],
            algorithm=find_algorithm(row["algorithm"]),
            backend=row["backend"],
            rules=rules_from_text(row["rules"]),
            created_at=row["created_at"],
            schedule=RotationSchedule(**strictjson.loads(row["schedule"].encode())),
            standby=_standby(row["standby"]),
        )
    except (UnsupportedAlgorithm, MalformedJson, TypeError, AttributeError) as error:
        raise _unreadable(f"keyset {row['name']}") from error


def key_from_row(row: RowMapping) -> Key:
    """
    Raises:
        StoreUnavailable: the row is not one that this version can read.
    """
    try:
        return Key(
            kid=row["kid"],
            keyset=row["keyset"],
            algorithm=find_algorithm(row["algorithm"]),
            backend=row["backend"],
            ref=row["ref"],
            spki=row["spki"],
            state=KeyState(row["state"]),
            times=KeyTimes(**{name: row[name] for name in _TIMES}),
            hold=row["hold"],
            version=row["version"],
        )
    except (UnsupportedAlgorithm, ValueError) as error:
        raise _unreadable(f"key {row['kid']}") from error


def intent_from_row(row: RowMapping) -> CreationIntent:
    """
    Raises:
        StoreUnavailable: the row is not one that this version can read.
    """
    try:
        return CreationIntent(
            request_id=row["request_id"],
            keyset=row["keyset"],
            backend=row["backend"],
            algorithm=find_algorithm(row["algorithm"]),
            created_at=row["created_at"],
        )
    except UnsupportedAlgorithm as error:
        raise _unreadable(f"creation {row['request_id']}") from error


def event_to_row(event: LifecycleEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _EVENT}


def event_from_row(row: RowMapping) -> LifecycleEvent:
    return LifecycleEvent(**{name: row[name] for name in _EVENT})


def lease_to_row(lease: Lease) -> dict[str, Any]:
    return asdict(lease)


def lease_from_row(row: RowMapping) -> Lease:
    return Lease(row["kid"], row["holder"], row["max_exp"], row["final"])


def _text(value: RotationSchedule | Standby) -> str:
    return strictjson.dumps(asdict(value)).decode()


def _standby(stored: str | None) -> Standby | None:
    return None if stored is None else Standby(**strictjson.loads(stored.encode()))


def rules_from_text(text: str) -> TokenRules:
    """
    Raises:
        MalformedJson, TypeError, AttributeError: not rules that this version knows.
    """
    members = strictjson.loads(text.encode())
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in members.items()
    }
    return TokenRules(**values)


def _unreadable(what: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"This version of kmsjwks cannot read the {what} in the database. Run the version that "
        "wrote it, or restore a backup."
    )
