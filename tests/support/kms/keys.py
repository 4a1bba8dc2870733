"""Key material of the fake and signatures made as AWS KMS documents them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, utils

from tests.support.kms.errors import AwsError, validation

MlDsaKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | MlDsaKey

SYMMETRIC = "SYMMETRIC_DEFAULT"
_RSA_SIZES = {"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}
_CURVES: Mapping[str, tuple[type[ec.EllipticCurve], str]] = {
    "ECC_NIST_P256": (ec.SECP256R1, "ECDSA_SHA_256"),
    "ECC_NIST_P384": (ec.SECP384R1, "ECDSA_SHA_384"),
    "ECC_NIST_P521": (ec.SECP521R1, "ECDSA_SHA_512"),
    "ECC_SECG_P256K1": (ec.SECP256K1, "ECDSA_SHA_256"),
}
_ED25519 = "ECC_NIST_EDWARDS25519"
_ML_DSA: Mapping[str, Callable[[], MlDsaKey]] = {
    "ML_DSA_44": mldsa.MLDSA44PrivateKey.generate,
    "ML_DSA_65": mldsa.MLDSA65PrivateKey.generate,
    "ML_DSA_87": mldsa.MLDSA87PrivateKey.generate,
}
_RSA_ALGORITHMS = tuple(
    f"RSASSA_{scheme}_SHA_{bits}" for scheme in ("PKCS1_V1_5", "PSS") for bits in (256, 384, 512)
)
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "SHA_256": hashes.SHA256(),
    "SHA_384": hashes.SHA384(),
    "SHA_512": hashes.SHA512(),
}
_MU_LENGTH = 64  # bytes, FIPS 204 section 6.2


def signing_algorithms(spec: str) -> tuple[str, ...]:
    """SigningAlgorithms of a key with usage SIGN_VERIFY; empty for what cannot sign."""
    if spec in _RSA_SIZES:
        return _RSA_ALGORITHMS
    if spec in _CURVES:
        return (_CURVES[spec][1],)
    if spec == _ED25519:
        return ("ED25519_PH_SHA_512", "ED25519_SHA_512")
    return ("ML_DSA_SHAKE_256",) if spec in _ML_DSA else ()


def usages(spec: str) -> tuple[str, ...]:
    """KeyUsage values that CreateKey takes with ``spec``."""
    if spec == SYMMETRIC or spec in _RSA_SIZES:
        return ("ENCRYPT_DECRYPT",) if spec == SYMMETRIC else ("SIGN_VERIFY", "ENCRYPT_DECRYPT")
    if spec in _CURVES and spec.startswith("ECC_NIST"):
        return ("SIGN_VERIFY", "KEY_AGREEMENT")
    return ("SIGN_VERIFY",) if signing_algorithms(spec) else ()


class Foundry:
    """Makes keys. RSA ones of one size may share a prime with another key: quick, and distinct."""

    def __init__(self) -> None:
        self._rsa: dict[int, Iterator[rsa.RSAPrivateKey]] = {}

    def make(self, spec: str) -> PrivateKey | None:
        if spec in _RSA_SIZES:
            size = _RSA_SIZES[spec]
            return next(self._rsa.setdefault(size, _rsa_keys(size)))
        if spec in _CURVES:
            return ec.generate_private_key(_CURVES[spec][0]())
        if spec == _ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        return _ML_DSA[spec]() if spec in _ML_DSA else None


def _rsa_keys(size: int) -> Iterator[rsa.RSAPrivateKey]:
    primes: list[int] = []
    while True:
        fresh = rsa.generate_private_key(65537, size)
        numbers = fresh.private_numbers()
        yield fresh
        for old, new in itertools.product(tuple(primes), (numbers.p, numbers.q)):
            if (key := _from_primes(old, new, size)) is not None:
                yield key
        primes += [numbers.p, numbers.q]


def _from_primes(p: int, q: int, size: int) -> rsa.RSAPrivateKey | None:
    if (p * q).bit_length() != size or p == q:
        return None
    d = pow(65537, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q),
        rsa.RSAPublicNumbers(65537, p * q),
    ).private_key()  # fmt: skip


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def stored(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def restored(data: bytes) -> PrivateKey:
    key = serialization.load_der_private_key(data, None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, PrivateKey)
    return key


def sign(key: PrivateKey, algorithm: str, message_type: str, message: bytes) -> bytes:
    """The signature over ``message``; DIGEST is not hashed again; ECDSA is DER.

    :raises AwsError: ValidationException where MessageType, length and algorithm do not fit.
    """
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return _sign_ed25519(key, algorithm, message_type, message)
    if isinstance(key, MlDsaKey):
        return _sign_mldsa(key, message_type, message)
    digest = _digest(algorithm, message_type, message)
    prehashed = utils.Prehashed(_HASHES[algorithm[-7:]])
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(digest, ec.ECDSA(prehashed))
    if "_PSS_" in algorithm:
        scheme = padding.PSS(padding.MGF1(_HASHES[algorithm[-7:]]), padding.PSS.DIGEST_LENGTH)
        return key.sign(digest, scheme, prehashed)
    return key.sign(digest, padding.PKCS1v15(), prehashed)


def _digest(algorithm: str, message_type: str, message: bytes) -> bytes:
    if message_type == "EXTERNAL_MU":
        raise validation(f"MessageType EXTERNAL_MU is not valid for algorithm {algorithm}.")
    if message_type == "RAW":
        return hashlib.new("sha" + algorithm[-3:], message).digest()
    if len(message) * 8 != int(algorithm[-3:]):
        raise validation(f"Digest is invalid length for algorithm {algorithm}.")
    return message


def _sign_ed25519(
    key: ed25519.Ed25519PrivateKey, algorithm: str, message_type: str, message: bytes
) -> bytes:
    wanted = "RAW" if algorithm == "ED25519_SHA_512" else "DIGEST"
    if message_type != wanted:
        raise validation(f"Algorithm {algorithm} requires MessageType {wanted}.")
    if wanted == "RAW":
        return key.sign(message)
    if len(message) != 64:
        raise validation(f"Digest is invalid length for algorithm {algorithm}.")
    raise AwsError("UnsupportedOperationException", "This fake does not sign with Ed25519ph.")


def _sign_mldsa(key: MlDsaKey, message_type: str, message: bytes) -> bytes:
    if message_type == "RAW":
        return key.sign(message)
    if message_type == "DIGEST":
        raise validation("MessageType DIGEST is not valid for algorithm ML_DSA_SHAKE_256.")
    if len(message) != _MU_LENGTH:
        raise validation("Message must have a length of 64 bytes for MessageType EXTERNAL_MU.")
    return key.sign_mu(message)
