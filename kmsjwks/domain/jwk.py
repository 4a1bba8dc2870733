"""SubjectPublicKeyInfo -> public JWK and its thumbprint; refuses private members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm as PycaUnsupported
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from joserfc.jwk import thumbprint
from joserfc.util import urlsafe_b64encode

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import BackendProtocolError, PrivateMaterialRefused

MlDsaPublicKey = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
PublicKey = (
    rsa.RSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
    | MlDsaPublicKey
)

# RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1; RFC 8037 section 2; RFC 9964 ("priv").
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})

_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
    "secp256k1": ec.SECP256K1,
}
_ML_DSA: dict[str, type[MlDsaPublicKey]] = {
    "ML-DSA-44": mldsa.MLDSA44PublicKey,
    "ML-DSA-65": mldsa.MLDSA65PublicKey,
    "ML-DSA-87": mldsa.MLDSA87PublicKey,
}


def load_public_key(spki: bytes, algorithm: Algorithm) -> PublicKey:
    """Parse a DER SubjectPublicKeyInfo and check that it is a key for ``algorithm``.

    Raises:
        BackendProtocolError: not a public key, or not one of this type, size, curve or
            ML-DSA parameter set.
    """
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, PycaUnsupported) as error:
        raise BackendProtocolError(
            "The backend returned a public key that cannot be parsed."
        ) from error
    if not _fits(key, algorithm):
        raise BackendProtocolError(
            f"The backend returned a public key that is not a {algorithm.id} key."
        )
    return key  # type: ignore[return-value]  # narrowed by _fits


def _fits(key: object, algorithm: Algorithm) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        return algorithm.kty == "RSA" and key.key_size == algorithm.key_bits and exponent >= 65537
    if isinstance(key, ec.EllipticCurvePublicKey):
        return algorithm.kty == "EC" and isinstance(key.curve, _CURVES[algorithm.curve or ""])
    if isinstance(key, MlDsaPublicKey):
        return algorithm.kty == "AKP" and isinstance(key, _ML_DSA[algorithm.jose])
    if isinstance(key, ed25519.Ed25519PublicKey):
        return algorithm.curve == "Ed25519"
    return isinstance(key, ed448.Ed448PublicKey) and algorithm.curve == "Ed448"


def _uint(value: int, length: int | None = None) -> str:
    """Base64urlUInt (RFC 7518 section 2), or fixed-width octets for EC coordinates (6.2.1.2)."""
    size = length if length is not None else max(1, (value.bit_length() + 7) // 8)
    return urlsafe_b64encode(value.to_bytes(size, "big")).decode()


def _components(key: PublicKey, algorithm: Algorithm) -> dict[str, str]:
    """The members that the thumbprint is over (RFC 7638 section 3.2, RFC 9964 section 6)."""
    if isinstance(key, rsa.RSAPublicKey):
        rsa_numbers = key.public_numbers()
        return {"e": _uint(rsa_numbers.e), "kty": "RSA", "n": _uint(rsa_numbers.n)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        numbers, width = key.public_numbers(), algorithm.signature_bytes // 2
        return {
            "crv": algorithm.curve or "",
            "kty": "EC",
            "x": _uint(numbers.x, width),
            "y": _uint(numbers.y, width),
        }
    raw = urlsafe_b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    if isinstance(key, MlDsaPublicKey):
        return {"alg": algorithm.jose, "kty": "AKP", "pub": raw}
    return {"crv": algorithm.curve or "", "kty": "OKP", "x": raw}


def public_jwk(spki: bytes, algorithm: Algorithm) -> dict[str, str]:
    """The JWK of RFC 7517 for a DER SubjectPublicKeyInfo: public components, kid, alg, use.

    ``kid`` is the SHA-256 thumbprint of RFC 7638.

    Raises:
        BackendProtocolError: the key does not fit the algorithm.
    """
    components = _components(load_public_key(spki, algorithm), algorithm)
    return {**components, "kid": thumbprint(components), "alg": algorithm.jose, "use": "sig"}


def key_id(spki: bytes, algorithm: Algorithm) -> str:
    """The RFC 7638 SHA-256 thumbprint, base64url without padding."""
    return public_jwk(spki, algorithm)["kid"]


def refuse_private_members(keys: Iterable[Mapping[str, Any]]) -> None:
    """Last check before a document leaves.

    Raises:
        PrivateMaterialRefused: a JWK is symmetric or holds a private member.
    """
    for key in keys:
        if key.get("kty") == "oct" or not PRIVATE_MEMBERS.isdisjoint(key):
            raise PrivateMaterialRefused(
                "A JWK with a private member was about to be published. Nothing was sent."
            )
