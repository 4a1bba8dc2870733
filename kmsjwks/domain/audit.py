"""Audit records: what is recorded, and the line of a hash chain that a record becomes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from json.encoder import encode_basestring as quoted
from typing import Any, Protocol

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import MalformedJson

GENESIS = "0" * 64
"""``prev`` of the first record of a chain."""


class Control(StrEnum):
    """The ``event`` of records about the chain itself."""

    OPENED = "audit.opened"
    ROTATED = "audit.rotated"
    CONTINUES = "audit.continues"
    CLOSING = "audit.closing"
    CLOSED = "audit.closed"


class AuditRecord(Protocol):
    """What a sink takes. ``as_event`` has ``event`` and ``time`` (seconds) and neither ``chain``
    nor ``seq`` nor ``prev``, which the sink adds."""

    def as_event(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class SigningRecord:
    """One token about to be released: never the claims, never the token. Times in seconds."""

    time: float
    principal: str
    keyset: str
    kid: str
    jti: str
    exp: int
    claims_sha256: str
    request_id: str

    def as_event(self) -> dict[str, Any]:
        return {
            "event": "jwt.signed",
            "time": round(self.time, 3),
            "principal": self.principal,
            "keyset": self.keyset,
            "kid": self.kid,
            "jti": self.jti,
            "exp": self.exp,
            "claims_sha256": self.claims_sha256,
            "request_id": self.request_id,
        }

    def encoded(self) -> bytes:
        """``encode(as_event())``, for which a general encoder takes more than twice as long.

        Raises:
            MalformedJson: as ``encode``.
        """
        if not math.isfinite(self.time):
            raise MalformedJson("The time of an audit record is not a number.")
        line = (
            f'{{"event":"jwt.signed","time":{round(self.time, 3)!r}'
            f',"principal":{quoted(self.principal)},"keyset":{quoted(self.keyset)}'
            f',"kid":{quoted(self.kid)},"jti":{quoted(self.jti)},"exp":{self.exp}'
            f',"claims_sha256":{quoted(self.claims_sha256)},"request_id":{quoted(self.request_id)}}}'
        )
        try:
            return line.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MalformedJson("A member of an audit record is not Unicode text.") from error


class Phase(StrEnum):
    """An act is recorded as ``intent`` before it is done and once more after."""

    INTENT = "intent"
    OUTCOME = "outcome"
    FAILED = "failed"  # it was not done
    UNKNOWN = "unknown"  # whether it was done was not said; the database or the device knows


@dataclass(frozen=True, slots=True)
class ActRecord:
    """One phase of a change to keysets, keys, or keys in a backend.

    ``act`` is the same in all phases of one act; ``event`` says what it is, such as
    ``lifecycle.compromised`` or ``backend.destroy-key``. ``error`` is the code of what stopped it.
    Empty members are left out of the record. ``time`` in seconds.
    """

    time: float
    act: str
    phase: Phase
    event: str
    principal: str = ""
    keyset: str = ""
    kid: str = ""
    backend: str = ""
    ref: str = ""
    detail: str = ""
    error: str = ""
    request_id: str = ""

    def as_event(self) -> dict[str, Any]:
        optional = {
            "principal": self.principal,
            "keyset": self.keyset,
            "kid": self.kid,
            "backend": self.backend,
            "ref": self.ref,
            "detail": self.detail,
            "error": self.error,
            "request_id": self.request_id,
        }
        return {
            "event": self.event,
            "time": round(self.time, 3),
            "phase": str(self.phase),
            "act": self.act,
            **{name: value for name, value in optional.items() if value},
        }


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last record of a chain that is known: ``sha256`` is that of its line, without newline,
    in lower-case hex; ``file`` the name of the file that it is in."""

    chain: str
    seq: int
    sha256: str
    file: str = ""


def encode(event: dict[str, Any]) -> bytes:
    """The record as it will stand in its line, but for its place in the chain.

    Raises:
        MalformedJson: a value that JSON cannot carry.
    """
    return strictjson.dumps(event)


def encode_record(record: AuditRecord) -> bytes:
    """
    Raises:
        MalformedJson: a value that JSON cannot carry.
    """
    return record.encoded() if isinstance(record, SigningRecord) else encode(record.as_event())


def link(body: bytes, chain: str, sequence: int, previous: str) -> tuple[bytes, str]:
    """The line (without newline) that puts ``body``, as ``encode`` made it, into its place, and
    the SHA-256 of that line in hex: the next line's ``prev``."""
    line = b'%b,"chain":"%b","seq":%d,"prev":"%b"}' % (
        body[:-1],
        chain.encode(),
        sequence,
        previous.encode(),
    )
    return line, hashlib.sha256(line).hexdigest()
