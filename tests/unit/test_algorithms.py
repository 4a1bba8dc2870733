"""The algorithm table against the RFCs, pyca's registry and the PKCS#11 and KMS vocabularies."""

from __future__ import annotations

import hashlib

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ObjectIdentifier

from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, Scheme, find_algorithm
from kmsjwks.domain.errors import BackendError, UnsupportedAlgorithm
from tests.unit.shared_keys import shared_key

PYCA_CURVES = {
    "P-256": "secp256r1",
    "P-384": "secp384r1",
    "P-521": "secp521r1",
    "secp256k1": "secp256k1",
}


def _by_kty(kty: str) -> list[Algorithm]:
    return [a for a in ALGORITHMS if a.kty == kty]


def test_the_table_holds_what_the_service_promises() -> None:
    rsa = {
        f"{jose}{suffix}"
        for jose in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        for suffix in ("", "-3072", "-4096")
    }
    assert {a.id for a in ALGORITHMS} == rsa | {
        *("ES256", "ES384", "ES512", "ES256K", "Ed25519", "Ed448"),
        *("ML-DSA-44", "ML-DSA-65", "ML-DSA-87"),
    }
    assert len({a.id for a in ALGORITHMS}) == len(ALGORITHMS)


@pytest.mark.parametrize(
    ("name", "jose", "curve", "hash_", "size"),
    [
        ("ES256", "ES256", "P-256", "sha256", 64),  # RFC 7518 section 3.4
        ("ES384", "ES384", "P-384", "sha384", 96),
        ("ES512", "ES512", "P-521", "sha512", 132),
        ("ES256K", "ES256K", "secp256k1", "sha256", 64),  # RFC 8812 section 3.2
        ("Ed25519", "EdDSA", "Ed25519", None, 64),  # RFC 8037, RFC 8032 section 5.1
        ("Ed448", "EdDSA", "Ed448", None, 114),  # RFC 8032 section 5.2
    ],
)
def test_curve_rows_say_what_their_rfcs_say(
    name: str, jose: str, curve: str, hash_: str | None, size: int
) -> None:
    row = find_algorithm(name)
    assert (row.jose, row.curve, row.hash, row.signature_bytes) == (jose, curve, hash_, size)


@pytest.mark.parametrize("row", _by_kty("RSA"), ids=str)
def test_rsa_rows_say_what_rfc_7518_says(row: Algorithm) -> None:
    pss = row.jose.startswith("PS")
    assert row.scheme is (Scheme.RSASSA_PSS if pss else Scheme.RSASSA_PKCS1_V1_5)
    assert row.hash == f"sha{row.jose[2:]}"
    assert hashlib.new(row.hash).digest_size * 8 == int(row.jose[2:])
    assert row.signature_bytes * 8 == row.key_bits
    assert row.curve is None
    assert row.curve_oid is None


@pytest.mark.parametrize("row", _by_kty("EC"), ids=str)
def test_curve_oids_are_the_ones_pyca_knows(row: Algorithm) -> None:
    curve = ec.get_curve_for_oid(ObjectIdentifier(row.curve_oid or ""))()
    assert curve.name == PYCA_CURVES[row.curve or ""]
    assert curve.key_size == row.key_bits


@pytest.mark.parametrize(("name", "last"), [("Ed25519", 0x70), ("Ed448", 0x71)])
def test_edwards_oids_are_the_ones_in_the_public_key(name: str, last: int) -> None:
    row = find_algorithm(name)
    assert bytes([0x06, 0x03, 0x2B, 0x65, last]) in shared_key(row).spki  # RFC 8410 section 3
    assert row.curve_oid == f"1.3.101.{last}"


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_signature_bytes_is_the_length_of_a_real_signature(row: Algorithm) -> None:
    assert len(shared_key(row).sign(b"message")) == row.signature_bytes


@pytest.mark.parametrize(
    ("name", "key_bytes", "signature_bytes"),
    [("ML-DSA-44", 1312, 2420), ("ML-DSA-65", 1952, 3309), ("ML-DSA-87", 2592, 4627)],
)
def test_ml_dsa_rows_say_what_rfc_9964_section_5_says(
    name: str, key_bytes: int, signature_bytes: int
) -> None:
    row = find_algorithm(name)
    assert (row.jose, row.kty, row.scheme) == (name, "AKP", Scheme.ML_DSA)
    assert (row.hash, row.curve, row.curve_oid) == (None, None, None)
    assert (row.key_bits, row.signature_bytes) == (8 * key_bytes, signature_bytes)


@pytest.mark.parametrize("row", [a for a in ALGORITHMS if a.kty != "AKP"], ids=str)
def test_mechanism_names_exist_in_pkcs11(row: Algorithm) -> None:
    assert row.pkcs11_mechanism in pkcs11.Mechanism.__members__
    assert row.pkcs11_keygen in pkcs11.Mechanism.__members__


def test_no_pkcs11_mechanism_is_named_for_ml_dsa() -> None:
    assert {(a.pkcs11_mechanism, a.pkcs11_keygen) for a in _by_kty("AKP")} == {(None, None)}


def test_the_default_pss_and_ecdsa_mechanisms_are_the_prehashed_ones() -> None:
    assert {a.pkcs11_mechanism for a in ALGORITHMS if a.pkcs11_mechanism} == {
        *("RSA_PKCS", "RSA_PKCS_PSS", "ECDSA", "EDDSA")
    }


@pytest.mark.parametrize(
    ("name", "spec", "signing"),
    [
        ("RS256", "RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256"),
        ("PS512-4096", "RSA_4096", "RSASSA_PSS_SHA_512"),
        ("RS384-3072", "RSA_3072", "RSASSA_PKCS1_V1_5_SHA_384"),
        ("ES256", "ECC_NIST_P256", "ECDSA_SHA_256"),
        ("ES384", "ECC_NIST_P384", "ECDSA_SHA_384"),
        ("ES512", "ECC_NIST_P521", "ECDSA_SHA_512"),
        ("ES256K", "ECC_SECG_P256K1", "ECDSA_SHA_256"),
        ("Ed25519", "ECC_NIST_EDWARDS25519", "ED25519_SHA_512"),
        ("Ed448", None, None),
        ("ML-DSA-44", "ML_DSA_44", "ML_DSA_SHAKE_256"),
        ("ML-DSA-65", "ML_DSA_65", "ML_DSA_SHAKE_256"),
        ("ML-DSA-87", "ML_DSA_87", "ML_DSA_SHAKE_256"),
    ],
)
def test_kms_names(name: str, spec: str | None, signing: str | None) -> None:
    row = find_algorithm(name)
    assert (row.kms_key_spec, row.kms_signing_algorithm) == (spec, signing)


def test_only_these_are_kept_out_of_the_default_document() -> None:
    assert {a.id for a in ALGORITHMS if a.breaks_clients} == {
        *("ES256K", "Ed448", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87")
    }


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_every_row_is_found_by_its_id(row: Algorithm) -> None:
    assert find_algorithm(row.id) is row
    assert str(row) == row.id


@pytest.mark.parametrize(
    ("name", "bits", "curve", "found"),
    [
        ("EdDSA", None, None, "Ed25519"),
        ("EdDSA", None, "Ed448", "Ed448"),
        ("EdDSA-Ed448", None, None, "Ed448"),
        ("Ed25519", 256, "Ed25519", "Ed25519"),
        ("RS256", 2048, None, "RS256"),
        ("RS256-2048", None, None, "RS256"),
        ("RS256-2048", 2048, None, "RS256"),
        ("PS384", 4096, None, "PS384-4096"),
        ("ES512", 521, "P-521", "ES512"),
    ],
)
def test_aliases(name: str, bits: int | None, curve: str | None, found: str) -> None:
    assert find_algorithm(name, key_bits=bits, curve=curve).id == found


@pytest.mark.parametrize(
    ("name", "bits", "curve"),
    [
        ("none", None, None),
        ("HS256", None, None),
        ("es256", None, None),
        ("", None, None),
        ("RS256", 1024, None),
        ("RS256", 2047, None),
        ("RS256-3072", 2048, None),
        ("RS256-2048", 3072, None),
        ("ES256", 384, None),
        ("ES256", None, "P-384"),
        ("EdDSA", None, "X25519"),
        ("Ed25519", None, "Ed448"),
        ("RS256", None, "P-256"),
        ("ML-DSA", None, None),
        ("ML-DSA-44", 2048, None),
    ],
)
def test_what_is_not_in_the_table_is_refused(
    name: str, bits: int | None, curve: str | None
) -> None:
    with pytest.raises(UnsupportedAlgorithm, match="Use one of: ") as caught:
        find_algorithm(name, key_bits=bits, curve=curve)
    assert isinstance(caught.value, BackendError)
