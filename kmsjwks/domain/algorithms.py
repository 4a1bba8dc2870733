"""The one table: JOSE algorithm <-> key type, curve, hash, PKCS#11 mechanism, AWS KMS spec."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kmsjwks.domain.errors import UnsupportedAlgorithm


class Scheme(Enum):
    """Signature schemes, by the names of their specifications."""

    RSASSA_PKCS1_V1_5 = "RSASSA-PKCS1-v1_5"  # RFC 8017 section 8.2
    RSASSA_PSS = "RSASSA-PSS"  # RFC 8017 section 8.1
    ECDSA = "ECDSA"  # FIPS 186-5
    EDDSA = "EdDSA"  # RFC 8032
    ML_DSA = "ML-DSA"  # FIPS 204


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A JOSE algorithm together with the key that it needs.

    ``id`` names the row in configuration, database and CLI; ``jose`` is what ``alg`` says in
    tokens and in the JWKS (RFC 7518 section 3.1, RFC 8037, RFC 8812, RFC 9964). The PKCS#11
    names are None where python-pkcs11 knows no mechanism, the KMS names where KMS has no such key.
    """

    id: str
    jose: str
    scheme: Scheme
    kty: str
    key_bits: int  # RSA: modulus; EC, OKP: as the curve is named; AKP: encoded public key
    curve: str | None  # JWK "crv"
    curve_oid: str | None
    hash: str | None  # hashlib name; None where the scheme takes the message itself
    signature_bytes: int  # the JOSE signature (RFC 7518 sections 3.3 to 3.5, RFC 8037, FIPS 204)
    pkcs11_mechanism: str | None
    pkcs11_keygen: str | None
    kms_key_spec: str | None
    kms_signing_algorithm: str | None
    breaks_clients: bool = False  # measured: makes real clients reject a whole JWKS

    def __str__(self) -> str:
        return self.id


_HASHES = {"256": "sha256", "384": "sha384", "512": "sha512"}
DEFAULT_RSA_BITS = 2048


def _rsa(jose: str, bits: int) -> Algorithm:
    pss, digits = jose.startswith("PS"), jose[2:]
    return Algorithm(
        id=jose if bits == DEFAULT_RSA_BITS else f"{jose}-{bits}",
        jose=jose,
        scheme=Scheme.RSASSA_PSS if pss else Scheme.RSASSA_PKCS1_V1_5,
        kty="RSA",
        key_bits=bits,
        curve=None,
        curve_oid=None,
        hash=_HASHES[digits],
        signature_bytes=bits // 8,
        pkcs11_mechanism="RSA_PKCS_PSS" if pss else "RSA_PKCS",
        pkcs11_keygen="RSA_PKCS_KEY_PAIR_GEN",
        kms_key_spec=f"RSA_{bits}",
        kms_signing_algorithm=f"RSASSA_{'PSS' if pss else 'PKCS1_V1_5'}_SHA_{digits}",
    )


def _ec(
    jose: str, curve: str, oid: str, bits: int, kms_spec: str, *, breaks: bool = False
) -> Algorithm:
    digits = jose[2:5]
    return Algorithm(
        id=jose,
        jose=jose,
        scheme=Scheme.ECDSA,
        kty="EC",
        key_bits=bits,
        curve=curve,
        curve_oid=oid,
        hash=_HASHES[digits],
        signature_bytes=2 * ((bits + 7) // 8),
        pkcs11_mechanism="ECDSA",
        pkcs11_keygen="EC_KEY_PAIR_GEN",
        kms_key_spec=kms_spec,
        kms_signing_algorithm=f"ECDSA_SHA_{digits}",
        breaks_clients=breaks,
    )


def _okp(curve: str, oid: str, bits: int, size: int, kms_spec: str | None) -> Algorithm:
    return Algorithm(
        id=curve,
        jose="EdDSA",
        scheme=Scheme.EDDSA,
        kty="OKP",
        key_bits=bits,
        curve=curve,
        curve_oid=oid,
        hash=None,
        signature_bytes=size,
        pkcs11_mechanism="EDDSA",
        pkcs11_keygen="EC_EDWARDS_KEY_PAIR_GEN",
        kms_key_spec=kms_spec,
        kms_signing_algorithm="ED25519_SHA_512" if kms_spec else None,
        breaks_clients=curve != "Ed25519",
    )


def _akp(level: int, public_bytes: int, signature_bytes: int) -> Algorithm:
    """ML-DSA (RFC 9964); sizes in bytes from FIPS 204 table 2.

    Few JOSE libraries know the key type "AKP" yet, and some reject a whole JWKS for it.
    """
    return Algorithm(
        id=f"ML-DSA-{level}",
        jose=f"ML-DSA-{level}",
        scheme=Scheme.ML_DSA,
        kty="AKP",
        key_bits=8 * public_bytes,
        curve=None,
        curve_oid=None,
        hash=None,
        signature_bytes=signature_bytes,
        pkcs11_mechanism=None,
        pkcs11_keygen=None,
        kms_key_spec=f"ML_DSA_{level}",
        kms_signing_algorithm="ML_DSA_SHAKE_256",
        breaks_clients=True,
    )


ALGORITHMS: tuple[Algorithm, ...] = (
    *(
        _rsa(jose, bits)
        for jose in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        for bits in (2048, 3072, 4096)
    ),
    _ec("ES256", "P-256", "1.2.840.10045.3.1.7", 256, "ECC_NIST_P256"),
    _ec("ES384", "P-384", "1.3.132.0.34", 384, "ECC_NIST_P384"),
    _ec("ES512", "P-521", "1.3.132.0.35", 521, "ECC_NIST_P521"),
    _ec("ES256K", "secp256k1", "1.3.132.0.10", 256, "ECC_SECG_P256K1", breaks=True),
    _okp("Ed25519", "1.3.101.112", 256, 64, "ECC_NIST_EDWARDS25519"),
    _okp("Ed448", "1.3.101.113", 456, 114, None),
    _akp(44, 1312, 2420),
    _akp(65, 1952, 3309),
    _akp(87, 2592, 4627),
)

_BY_ID = {algorithm.id: algorithm for algorithm in ALGORITHMS}
_ALIASES = {
    "EdDSA": "Ed25519",
    **{f"EdDSA-{curve}": curve for curve in ("Ed25519", "Ed448")},
    **{
        f"{a.jose}-{DEFAULT_RSA_BITS}": a.id
        for a in ALGORITHMS
        if a.kty == "RSA" and a.key_bits == DEFAULT_RSA_BITS
    },
}


def find_algorithm(
    name: str, *, key_bits: int | None = None, curve: str | None = None
) -> Algorithm:
    """The row for a name such as ``ES256``, ``RS256`` (2048 bits), ``RS256-3072`` or ``Ed448``.

    ``key_bits`` picks the RSA modulus (bits), ``curve`` the curve of ``EdDSA``.

    Raises:
        UnsupportedAlgorithm: no such row.
    """
    if key_bits is not None and name in _BY_ID and _BY_ID[name].kty == "RSA":
        name = f"{name}-{key_bits}"
    if curve is not None and name == "EdDSA":
        name = f"EdDSA-{curve}"
    found = _BY_ID.get(_ALIASES.get(name, name))
    wrong_size = found is not None and key_bits is not None and found.key_bits != key_bits
    wrong_curve = found is not None and curve is not None and found.curve != curve
    if found is None or wrong_size or wrong_curve:
        raise UnsupportedAlgorithm(
            f"There is no algorithm {name!r}"
            + (f" with a {key_bits}-bit key" if wrong_size else "")
            + (f" on the curve {curve!r}" if wrong_curve else "")
            + f". Use one of: {', '.join(_BY_ID)}."
        )
    return found
