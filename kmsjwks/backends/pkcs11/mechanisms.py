"""Which algorithms a token really offers."""

from __future__ import annotations

from typing import Any

from pkcs11.mechanisms import Mechanism

from kmsjwks.backends.pkcs11 import objects
from kmsjwks.backends.pkcs11.failures import Remedy, VendorError, remedy
from kmsjwks.backends.pkcs11.session import PooledSession
from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm


def offered_algorithms(pooled: PooledSession) -> frozenset[Algorithm]:
    """Both mechanisms listed, the key size in range, and for curves, which no mechanism tells
    apart, a pair generated as a session object and thrown away."""
    slot = pooled.session().token.slot
    listed = {
        mechanism.name for mechanism in slot.get_mechanisms() if isinstance(mechanism, Mechanism)
    }
    by_list = [
        alg
        for alg in ALGORITHMS
        if {alg.pkcs11_mechanism, alg.pkcs11_keygen} <= listed and _size_fits(slot, alg)
    ]
    on_curves = [alg for alg in by_list if alg.curve]
    tried = [alg for alg in on_curves if _generates(pooled, alg)]
    # None at all: the token makes no session key pairs, so nothing was learnt about curves.
    refused = set(on_curves) - set(tried) if tried else set()
    return frozenset(by_list) - refused


def _size_fits(slot: Any, alg: Algorithm) -> bool:
    info = slot.get_mechanism_info(objects.mechanism(alg.pkcs11_keygen))
    low, high = info.min_key_length, info.max_key_length
    if not high > 0 or low > high:
        return True  # the module does not say
    if alg.kty == "OKP":  # 255 or 256 bits, 448 or 456: modules differ
        low, high = low - 1, high + 8
    return bool(low <= alg.key_bits <= high or (low <= 448 <= high and alg.curve == "Ed448"))


def _generates(pooled: PooledSession, alg: Algorithm) -> bool:
    session: Any = pooled.session()
    try:
        pair = session._generate_keypair(
            private_template=objects.private_template(frozenset({"sign"}), token=False),
            public_template=objects.public_template(alg, frozenset({"verify"}), token=False),
            **objects.generation_arguments(alg),
        )
        for half in pair:
            half.destroy()
    except VendorError as error:
        if remedy(error) is Remedy.RECONNECT:
            raise
        return False
    return True
