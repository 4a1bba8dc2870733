"""Which keysets may share an issuer, and so a JWKS."""

from __future__ import annotations

from collections.abc import Sequence

from kmsjwks.domain.errors import Conflict
from kmsjwks.domain.keys import Keyset
from kmsjwks.services.publication import issuer_path


def check_issuer(keyset: Keyset, others: Sequence[Keyset]) -> None:
    """One path, one issuer; and no algorithm that breaks clients in a document shared by others.

    Raises:
        Conflict: says which keyset is in the way and what to choose instead.
    """
    path = issuer_path(keyset.rules.issuer)
    for other in others:
        if issuer_path(other.rules.issuer) != path:
            continue
        if other.rules.issuer != keyset.rules.issuer:
            raise Conflict(
                f"The issuer {other.rules.issuer} of keyset {other.name} has the same path and so "
                "the same JWKS address. Give this issuer a path of its own."
            )
        if other.algorithm.breaks_clients or keyset.algorithm.breaks_clients:
            breaking = keyset if keyset.algorithm.breaks_clients else other
            raise Conflict(
                f"{breaking.algorithm.id} makes widespread clients reject a whole JWKS, so keyset "
                f"{breaking.name} cannot share the issuer {other.rules.issuer}. "
                f"Choose one of its own, such as {other.rules.issuer}/{keyset.name}."
            )
