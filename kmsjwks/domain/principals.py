"""Which configured client somebody is: identities in tokens and certificates, and their owners."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kmsjwks.domain.access import Principal


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Tokens of one issuer that have this ``sub`` (None: any) and these claims.

    A claim has to be equal, in type too. Of an object the members that are named have to be; so
    ``kubernetes.io`` may name a namespace and leave the pod open.
    """

    issuer: str
    subject: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def is_of(self, claims: Mapping[str, Any]) -> bool:
        """Whether verified ``claims`` are of this identity."""
        return (
            claims.get("iss") == self.issuer
            and (self.subject is None or claims.get("sub") == self.subject)
            and _includes(claims, self.claims)
        )


def _includes(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            name in value and _includes(value[name], one) for name, one in wanted.items()
        )
    # As JSON, because to Python true is 1 and 1 is 1.0.
    return json.dumps(value, sort_keys=True) == json.dumps(wanted, sort_keys=True)


class CertificateName(Enum):
    SPIFFE = "spiffe"  # URI in subjectAltName
    DNS = "dns"  # dNSName in subjectAltName
    SUBJECT = "subject"  # RFC 4514


@dataclass(frozen=True, slots=True)
class CertificateIdentity:
    """Certificates that have this name, compared to the letter."""

    kind: CertificateName
    value: str


class Ambiguous(Exception):
    """Credentials that belong to more than one client; the text names them."""


def owner(found: Iterable[Principal]) -> Principal | None:
    """The only one of these principals; None where there is none.

    Raises:
        Ambiguous
    """
    by_name = {principal.name: principal for principal in found}
    if len(by_name) > 1:
        raise Ambiguous(", ".join(sorted(by_name)))
    return next(iter(by_name.values()), None)
