"""The custody report: every key, what its device says, who did what, and what the trail proves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kmsjwks.domain.errors import BackendError, KeysetNotFound
from kmsjwks.domain.jwk import public_jwk, refuse_private_members
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.ports import Evidence, KeyBackend, KeyStore
from kmsjwks.services.auditproof import AuditProof

_MAX_EVENTS = 10_000  # of one keyset
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Occasion:
    """Who asked for the report, when (seconds), of which installation and program version.

    ``verification``: which signatures this configuration has verified before release.
    """

    installation: str
    version: str
    time: int
    asked_by: str
    verification: str
    development: bool = False


@dataclass(slots=True)
class _Use:
    """What was signed with one key, as far as the trail goes. Times in seconds."""

    tokens: int = 0
    first: float | None = None
    last: float | None = None
    by_principal: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        principal, moment = str(record.get("principal")), record.get("time")
        self.tokens += 1
        self.by_principal[principal] = self.by_principal.get(principal, 0) + 1
        if isinstance(moment, int | float):
            self.first = moment if self.first is None else min(self.first, moment)
            self.last = moment if self.last is None else max(self.last, moment)


class _Trail:
    """The trail in one pass: acts by keyset, uses by key; acts of no keyset by backend ref."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.uses: dict[str, _Use] = {}
        self.acts: dict[str, list[Record]] = {}
        self.acts_on_ref: dict[str, list[Record]] = {}
        for record in records:
            self._take(record)

    def _take(self, record: Record) -> None:
        event = str(record.get("event"))
        if event == "jwt.signed":
            self.uses.setdefault(str(record.get("kid")), _Use()).add(record)
        elif "act" in record:
            if "keyset" in record:
                self.acts.setdefault(str(record["keyset"]), []).append(record)
            elif "ref" in record:
                self.acts_on_ref.setdefault(str(record["ref"]), []).append(record)


@dataclass(frozen=True, slots=True)
class CustodyParts:
    """What the report is made from."""

    store: KeyStore
    backends: Mapping[str, KeyBackend]
    records: Iterable[Record]
    proof: AuditProof | None


def custody_report(parts: CustodyParts, occasion: Occasion, keyset: str | None) -> dict[str, Any]:
    """Plain members for JSON and templates; times in seconds. A device that does not answer is a
    statement in the report, not the end of it.

    Raises:
        KeysetNotFound, StoreUnavailable, AuditUnavailable.
    """
    chosen = [one for one in parts.store.keysets() if keyset in (None, one.name)]
    if keyset is not None and not chosen:
        raise KeysetNotFound(f"There is no keyset {keyset}.")
    trail = _Trail(parts.records)
    shown = [_keyset(one, parts, trail) for one in chosen]
    return {
        "kind": "kmsjwks.custody-report",
        **asdict(occasion),
        "scope": keyset or "all keysets",
        "findings": [
            f"{one['name']} / {key['kid']}: {finding}"
            for one in shown
            for key in one["keys"]
            for finding in key["findings"]
        ],
        "keysets": shown,
        "audit": parts.proof.as_members() if parts.proof is not None else None,
    }


def _keyset(keyset: Keyset, parts: CustodyParts, trail: _Trail) -> dict[str, Any]:
    keys = list(parts.store.keys(keyset.name))
    acts = list(trail.acts.get(keyset.name, ()))
    for key in keys:
        acts += trail.acts_on_ref.get(key.ref, ())
    jwks = [public_jwk(key.spki, key.algorithm) for key in keys]
    refuse_private_members(jwks)
    return {
        "name": keyset.name,
        "algorithm": keyset.algorithm.id,
        "backends": list(keyset.backends),
        "created_at": keyset.created_at,
        "rules": asdict(keyset.rules),
        "schedule": asdict(keyset.schedule),
        "keys": [_key(key, parts.backends, trail) for key in keys],
        "events": [
            {"time": one.time, "actor": one.actor, "event": one.event, "kid": one.kid or "",
             "detail": one.detail}
            for one in reversed(parts.store.events(keyset.name, _MAX_EVENTS))
        ],
        "acts": [_act(one) for one in sorted(acts, key=_moment)],
        "jwks": {"keys": jwks},
    }  # fmt: skip


def _moment(record: Record) -> float:
    moment = record.get("time")
    return float(moment) if isinstance(moment, int | float) else 0.0


def _act(record: Record) -> dict[str, Any]:
    names = ("time", "event", "phase", "principal", "kid", "backend", "ref", "detail", "error")
    where = ("request_id", "chain", "seq")
    return {name: record.get(name, "") for name in (*names, *where)}


def _key(key: Key, backends: Mapping[str, KeyBackend], trail: _Trail) -> dict[str, Any]:
    use = trail.uses.get(key.kid, _Use())
    device = _device(key, backends.get(key.backend))
    return {
        "kid": key.kid,
        "state": key.state.value,
        "hold": key.hold,
        "algorithm": key.algorithm.id,
        "backend": key.backend,
        "ref": key.ref,
        "times": asdict(key.times),
        "device": device,
        "findings": _findings(device),
        "use": asdict(use),
    }


def _device(key: Key, backend: KeyBackend | None) -> dict[str, Any]:
    """What the device says, or why it says nothing."""
    if key.times.private_destroyed_at is not None or key.times.destroyed_at is not None:
        return {"reachable": None, "said": "The private key was destroyed; there is none to ask."}
    if backend is None:
        return {"reachable": False, "said": f"The backend {key.backend} is not configured here."}
    try:
        evidence = backend.evidence(key.ref)
    except BackendError as error:
        return {"reachable": False, "said": f"Not reachable: {error}"}
    return _told(evidence)


def _told(evidence: Evidence) -> dict[str, Any]:
    return {
        "reachable": True,
        "said": "",
        "sound": evidence.sound,
        "custody": dict(evidence.custody),
        "attributes": dict(evidence.attributes),
        "extraction_refused": evidence.extraction_refused,
        "findings": list(evidence.findings),
    }


def _findings(device: Mapping[str, Any]) -> Sequence[str]:
    if not device["reachable"]:
        return [device["said"]] if device["reachable"] is False else []
    found = list(device["findings"])
    if not device["extraction_refused"]:
        found.append("The device did not refuse to hand out the private value.")
    return found
