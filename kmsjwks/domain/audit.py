"""Audit records: what is recorded of a signature, and the hash chain that shows tampering."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmsjwks.domain import strictjson

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class SigningRecord:
    """One released token: never the claims, never the token. Times in seconds."""

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


def link(event: Mapping[str, Any], sequence: int, previous: str) -> tuple[bytes, str]:
    """One line (without newline) of a chain, and its SHA-256 in hex: the next line's ``prev``."""
    line = strictjson.dumps({**event, "seq": sequence, "prev": previous})
    return line, hashlib.sha256(line).hexdigest()
