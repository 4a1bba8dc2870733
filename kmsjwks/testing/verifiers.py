"""Three independent verifiers of compact JWTs, given nothing but a public key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError
from joserfc.jwk import import_key
from joserfc.util import urlsafe_b64decode

from kmsjwks.domain.algorithms import Algorithm, Scheme

_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}

_ML_DSA = (mldsa.MLDSA44PublicKey, mldsa.MLDSA65PublicKey, mldsa.MLDSA87PublicKey)

Claims = dict[str, Any]
VerifyToken = Callable[[str, Algorithm, bytes, Mapping[str, str]], Claims]
"""``(token, algorithm, spki, jwk) -> claims``; raises ``Rejected``."""


class Rejected(Exception):
    """The signature does not verify."""


def verifies(algorithm: Algorithm, spki: bytes, message: bytes, signature: bytes) -> bool:
    """A JOSE signature by pyca, decoded here from the RFCs and not by the code under test."""
    try:
        _check(load_der_public_key(spki), algorithm, message, signature)
    except InvalidSignature:
        return False
    return True


def _check(key: object, algorithm: Algorithm, message: bytes, signature: bytes) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, message)  # RFC 8037 section 3.1
        return
    if isinstance(key, _ML_DSA):
        key.verify(signature, message)  # RFC 9964 section 5: the empty context
        return
    hash_ = _HASHES[algorithm.jose[2:5]]
    if isinstance(key, ec.EllipticCurvePublicKey):  # RFC 7518 section 3.4: R || S
        width = (key.key_size + 7) // 8
        if len(signature) != 2 * width:
            raise InvalidSignature
        r, s = (int.from_bytes(half, "big") for half in (signature[:width], signature[width:]))
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hash_))
        return
    assert isinstance(key, rsa.RSAPublicKey)
    if algorithm.scheme is Scheme.RSASSA_PSS:  # RFC 7518 section 3.5: salt as long as the hash
        pss = padding.PSS(padding.MGF1(hash_), salt_length=hash_.digest_size)
        key.verify(signature, message, pss, hash_)
        return
    key.verify(signature, message, padding.PKCS1v15(), hash_)


def _pyca(token: str, algorithm: Algorithm, spki: bytes, _jwk: Mapping[str, str]) -> Claims:
    head, body, tail = token.split(".")
    if not verifies(algorithm, spki, f"{head}.{body}".encode(), urlsafe_b64decode(tail.encode())):
        raise Rejected
    claims: Claims = json.loads(urlsafe_b64decode(body.encode()))
    return claims


def _pyjwt(token: str, algorithm: Algorithm, _spki: bytes, jwk: Mapping[str, str]) -> Claims:
    try:
        return jwt.decode(token, jwt.PyJWK(dict(jwk)), algorithms=[algorithm.jose])
    except jwt.InvalidTokenError as error:
        raise Rejected from error


def _joserfc(token: str, algorithm: Algorithm, _spki: bytes, jwk: Mapping[str, str]) -> Claims:
    try:
        return joserfc_jwt.decode(token, import_key(dict(jwk)), algorithms=[algorithm.jose]).claims
    except (JoseError, ValueError) as error:
        raise Rejected from error


TOKEN_VERIFIERS: Mapping[str, VerifyToken] = {
    "pyca": _pyca,
    "PyJWT": _pyjwt,
    "joserfc": _joserfc,
}

KNOWS: Mapping[str, frozenset[str]] = {
    "pyca": frozenset({"RSA", "EC", "OKP", "AKP"}),
    "PyJWT": frozenset({"RSA", "EC", "OKP"}),
    "joserfc": frozenset({"RSA", "EC", "OKP"}),
}
"""The ``kty`` values of which each of ``TOKEN_VERIFIERS`` can read a key."""
