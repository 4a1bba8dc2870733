"""One software key for each kind of key, generated once: RSA-4096 takes seconds."""

from __future__ import annotations

from functools import cache

from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm
from tests.fakes.software import PrivateKey, SoftwareKey, generate_private_key

KEY_KINDS: tuple[Algorithm, ...] = tuple(
    {(a.kty, a.key_bits, a.curve): a for a in reversed(ALGORITHMS)}.values()
)
"""One algorithm for each distinct kind of key."""


@cache
def _private(kind: tuple[str, int, str | None], _serial: int) -> PrivateKey:
    algorithm = next(a for a in ALGORITHMS if (a.kty, a.key_bits, a.curve) == kind)
    return generate_private_key(algorithm)


def shared_key(algorithm: Algorithm, serial: int = 0) -> SoftwareKey:
    """A key for ``algorithm``, the same one on every call; another ``serial``, another key."""
    kind = (algorithm.kty, algorithm.key_bits, algorithm.curve)
    return SoftwareKey(algorithm, _private(kind, serial))
