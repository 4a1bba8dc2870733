"""Keysets, keys and rendered documents for tests of publication."""

from __future__ import annotations

from collections.abc import Sequence

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.documents import Document
from kmsjwks.domain.jwk import key_id
from kmsjwks.domain.keys import Key, Keyset, KeyState, KeyTimes
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.publication import render
from tests.unit.shared_keys import shared_key

NOW = 1_750_000_000
ISSUER = "https://issuer.example"


def keyset_of(name: str, algorithm: str = "ES256", issuer: str = ISSUER) -> Keyset:
    rules = TokenRules(issuer=issuer)
    return Keyset(name, find_algorithm(algorithm), "hsm", rules, NOW)


def key_in(keyset: Keyset, serial: int = 0, state: KeyState = KeyState.ACTIVE) -> Key:
    spki = shared_key(keyset.algorithm, serial).spki
    return Key(
        kid=key_id(spki, keyset.algorithm),
        keyset=keyset.name,
        algorithm=keyset.algorithm,
        backend="hsm",
        ref=f"{keyset.name}-{serial}",
        spki=spki,
        state=state,
        times=KeyTimes(created_at=NOW, published_at=NOW, activate_at=NOW),
    )


def rendered(*keysets: Keyset, serials: Sequence[int] = (0,)) -> dict[str, Document]:
    """The documents of these keysets, each with the keys of these serials."""
    keys = {keyset.name: [key_in(keyset, serial) for serial in serials] for keyset in keysets}
    return render(keysets, keys, max_age=300, now=NOW)
