"""Private keys in the memory of the test process, one for any row of the algorithm table."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsjwks.domain.algorithms import Algorithm, Scheme

MlDsaPrivateKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | MlDsaPrivateKey
)

CURVES: dict[str, type[ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
    "secp256k1": ec.SECP256K1,
}
ML_DSA: dict[str, type[MlDsaPrivateKey]] = {
    "ML-DSA-44": mldsa.MLDSA44PrivateKey,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey,
}
HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


def generate_private_key(algorithm: Algorithm) -> PrivateKey:
    """A new pyca key of the type, size and curve that ``algorithm`` asks for."""
    if algorithm.kty == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=algorithm.key_bits)
    if algorithm.kty == "EC":
        return ec.generate_private_key(CURVES[algorithm.curve or ""]())
    if algorithm.kty == "AKP":
        return ML_DSA[algorithm.jose].generate()
    if algorithm.curve == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ed448.Ed448PrivateKey.generate()


@dataclass(frozen=True, slots=True)
class SoftwareKey:
    """A pyca private key that signs as one JOSE algorithm.

    Its encodings are written here from the RFCs, not with the code under test.
    """

    algorithm: Algorithm
    private: PrivateKey

    @classmethod
    def generate(cls, algorithm: Algorithm) -> SoftwareKey:
        return cls(algorithm, generate_private_key(algorithm))

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return self.private.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, message: bytes) -> bytes:
        """The JOSE signature (RFC 7518 sections 3.3 to 3.5, RFC 8037 section 3.1, RFC 9964)."""
        key = self.private
        if isinstance(key, MlDsaPrivateKey):
            return key.sign(message)
        if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
            return key.sign(message)
        hash_ = HASHES[self.algorithm.hash or ""]()
        if isinstance(key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hash_)))
            width = (key.curve.key_size + 7) // 8
            return r.to_bytes(width, "big") + s.to_bytes(width, "big")
        if self.algorithm.scheme is Scheme.RSASSA_PSS:
            pss = padding.PSS(padding.MGF1(hash_), salt_length=hash_.digest_size)
            return key.sign(message, pss, hash_)
        return key.sign(message, padding.PKCS1v15(), hash_)
