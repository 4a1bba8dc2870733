"""Signature encodings (DER <-> r||s), hashing, and local verification with the public key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from kmsjwks.domain.algorithms import Algorithm, Scheme
from kmsjwks.domain.errors import BackendProtocolError
from kmsjwks.domain.jwk import MlDsaPublicKey, load_public_key

Verifier = Callable[[bytes, bytes], bool]
"""``(message, JOSE signature) -> valid``."""

_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_DIGESTS = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


def digest(algorithm: Algorithm, message: bytes) -> bytes:
    """The hash that the scheme signs. Only for algorithms that have one."""
    assert algorithm.hash is not None
    return _DIGESTS[algorithm.hash](message).digest()


def raw_from_der(der: bytes, algorithm: Algorithm) -> bytes:
    """ECDSA-Sig-Value (RFC 3279) -> fixed-width r||s (RFC 7518 section 3.4).

    Raises:
        BackendProtocolError: not DER, or a number that does not fit the curve.
    """
    width = algorithm.signature_bytes // 2
    try:
        r, s = decode_dss_signature(der)
        return r.to_bytes(width, "big") + s.to_bytes(width, "big")
    except (ValueError, OverflowError) as error:
        raise BackendProtocolError("The backend returned a malformed ECDSA signature.") from error


def der_from_raw(raw: bytes) -> bytes:
    """Fixed-width r||s -> DER ECDSA-Sig-Value."""
    half = len(raw) // 2
    return encode_dss_signature(
        int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    )


def _pss(hash_: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(padding.MGF1(hash_), salt_length=hash_.digest_size)


def make_verifier(algorithm: Algorithm, spki: bytes) -> Verifier:
    """A function that verifies JOSE signatures of one key. Thread-safe; parse once, use often.

    Raises:
        BackendProtocolError: the key does not fit the algorithm.
    """
    key = load_public_key(spki, algorithm)
    check = _check_function(key, algorithm)
    size = algorithm.signature_bytes

    def verify(message: bytes, signature: bytes) -> bool:
        if len(signature) != size:
            return False
        try:
            check(signature, message)
        except InvalidSignature:
            return False
        return True

    return verify


def _check_function(key: object, algorithm: Algorithm) -> Callable[[bytes, bytes], None]:
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return key.verify
    if isinstance(key, MlDsaPublicKey):
        return key.verify  # RFC 9964 section 5: the empty context, pyca's default
    hash_ = _HASHES[algorithm.hash or ""]()
    if isinstance(key, rsa.RSAPublicKey):
        rsa_key = key
        pad = _pss(hash_) if algorithm.scheme is Scheme.RSASSA_PSS else padding.PKCS1v15()
        return lambda signature, message: rsa_key.verify(signature, message, pad, hash_)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    ec_key, ecdsa = key, ec.ECDSA(hash_)
    return lambda signature, message: ec_key.verify(der_from_raw(signature), message, ecdsa)
