"""Public JWKs: RFC vectors, lengths, interoperability, and what must never be published."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import import_key
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]

from kmsjwks.domain import strictjson
from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, find_algorithm
from kmsjwks.domain.documents import is_key_of_its_kid
from kmsjwks.domain.errors import BackendError, BackendProtocolError, PrivateMaterialRefused
from kmsjwks.domain.jwk import key_id, load_public_key, public_jwk, refuse_private_members
from tests.fakes.software import CURVES, MlDsaPrivateKey, SoftwareKey
from tests.unit import rfc_vectors as rfc
from tests.unit.shared_keys import KEY_KINDS, shared_key

EC_ROWS = [a for a in ALGORITHMS if a.kty == "EC"]
AKP_ROWS = [a for a in ALGORITHMS if a.kty == "AKP"]
KNOWN_ELSEWHERE = [a for a in ALGORITHMS if a.kty != "AKP"]  # joserfc, PyJWT and jwcrypto: no AKP
MAX_DOCUMENT_BYTES = 50 * 1024
COORDINATE_BYTES = {"P-256": 32, "P-384": 48, "P-521": 66, "secp256k1": 32}  # RFC 7518 6.2.1.2
# RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1, and RFC 9964, copied from the documents.
PRIVATE_NAMES = ("d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv")


def _spki_of(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _same_key_elsewhere(jwk: dict[str, str]) -> Iterator[bytes]:
    """The SPKI that each other library makes of our JWK."""
    yield _spki_of(import_key(dict(jwk)).public_key)
    yield _spki_of(jwt.PyJWK(dict(jwk)).key)
    yield _spki_of(load_pem_public_key(JWK(**jwk).export_to_pem()))


def _thumbprint_elsewhere(jwk: dict[str, str]) -> str:
    if jwk["kty"] != "AKP":
        return str(JWK(**jwk).thumbprint())
    required = f'{{"alg":"{jwk["alg"]}","kty":"AKP","pub":"{jwk["pub"]}"}}'  # RFC 9964 section 6
    digest = hashlib.sha256(required.encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _short_coordinates(row: Algorithm) -> tuple[SoftwareKey, SoftwareKey]:
    """Keys whose x, and whose y, begin with a zero octet; about one in 256 each."""
    curve, limit = CURVES[row.curve or ""](), 1 << (8 * (COORDINATE_BYTES[row.curve or ""] - 1))
    short_x = short_y = None
    secret = 1
    while short_x is None or short_y is None:
        secret += 1
        key = ec.derive_private_key(secret, curve)
        point = key.public_key().public_numbers()
        short_x = key if short_x is None and point.x < limit else short_x
        short_y = key if short_y is None and point.y < limit else short_y
    return SoftwareKey(row, short_x), SoftwareKey(row, short_y)


def test_rfc_7638_section_3_1() -> None:
    jwk = public_jwk(rfc.rsa_spki(rfc.RFC7638_N, "AQAB"), find_algorithm("RS256"))
    assert jwk == {
        "kty": "RSA",
        "n": rfc.RFC7638_N,
        "e": "AQAB",
        "alg": "RS256",
        "use": "sig",
        "kid": rfc.RFC7638_THUMBPRINT,
    }


def test_rfc_8037_appendix_a_1_to_a_3() -> None:
    jwk = public_jwk(rfc.ed25519_spki(rfc.RFC8037_X), find_algorithm("Ed25519"))
    assert jwk == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": rfc.RFC8037_X,
        "alg": "EdDSA",
        "use": "sig",
        "kid": rfc.RFC8037_THUMBPRINT,
    }


@pytest.mark.parametrize("name", rfc.RFC9964_THUMBPRINTS)
def test_rfc_9964_appendix_a_1(name: str) -> None:
    jwk = public_jwk(rfc.ml_dsa_spki(name, rfc.RFC9964_SEED), find_algorithm(name))
    assert jwk["kid"] == rfc.RFC9964_THUMBPRINTS[name]
    assert (jwk["kty"], jwk["alg"], jwk["use"]) == ("AKP", name, "sig")
    if name == "ML-DSA-44":  # RFC 9964 section 3 prints both ends of it
        assert jwk["pub"].startswith("unH59k4Ru")
        assert jwk["pub"].endswith("DZgbTP07e7gEWzw4MFRrndjbDQ")


@pytest.mark.parametrize("row", AKP_ROWS, ids=str)
def test_pub_is_the_raw_public_key_and_nothing_else(row: Algorithm) -> None:
    key = shared_key(row)
    raw = key.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    pub = rfc.decode(public_jwk(key.spki, row)["pub"])
    assert pub == raw
    assert len(pub) * 8 == row.key_bits


def test_two_of_the_largest_keys_fit_into_a_document() -> None:
    row = find_algorithm("ML-DSA-87")
    keys = [public_jwk(shared_key(row, serial).spki, row) for serial in (0, 1)]
    assert 2 * 2592 < len(strictjson.dumps({"keys": keys})) < MAX_DOCUMENT_BYTES


@pytest.mark.parametrize("row", KEY_KINDS, ids=str)
def test_a_published_key_is_recognised_by_its_kid(row: Algorithm) -> None:
    one, other = (public_jwk(shared_key(row, serial).spki, row) for serial in (0, 1))
    assert is_key_of_its_kid(one)
    assert not is_key_of_its_kid({**other, "kid": one["kid"]})


def test_an_ml_dsa_key_under_another_alg_is_not_the_key_of_its_kid() -> None:
    jwk = public_jwk(shared_key(AKP_ROWS[0]).spki, AKP_ROWS[0])
    assert not is_key_of_its_kid({**jwk, "alg": AKP_ROWS[1].jose})


@pytest.mark.parametrize("example", rfc.SIGNED_EXAMPLES, ids=str)
def test_keys_of_the_rfcs_come_out_as_printed(example: rfc.SignedExample) -> None:
    jwk = public_jwk(example.spki, find_algorithm(example.algorithm_id))
    assert {name: jwk[name] for name in example.members} == example.members


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_members_are_exactly_the_public_ones(row: Algorithm) -> None:
    jwk = public_jwk(shared_key(row).spki, row)
    names = {"RSA": "n e", "EC": "crv x y", "OKP": "crv x", "AKP": "pub"}[row.kty]
    public = set(names.split())
    assert set(jwk) == {"kty", "kid", "alg", "use"} | public
    assert (jwk["kty"], jwk["alg"], jwk["use"]) == (row.kty, row.jose, "sig")
    assert jwk.get("crv") == row.curve
    assert not any("=" in value for value in jwk.values())
    refuse_private_members([jwk])


@pytest.mark.parametrize("row", KNOWN_ELSEWHERE, ids=str)
def test_other_libraries_read_the_same_key(row: Algorithm) -> None:
    key = shared_key(row)
    for spki in _same_key_elsewhere(public_jwk(key.spki, row)):
        assert spki == key.spki


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_kid_is_the_thumbprint(row: Algorithm) -> None:
    jwk = public_jwk(shared_key(row).spki, row)
    assert jwk["kid"] == _thumbprint_elsewhere(jwk)


@pytest.mark.parametrize("row", KNOWN_ELSEWHERE, ids=str)
def test_kid_is_the_thumbprint_that_others_compute(row: Algorithm) -> None:
    spki = shared_key(row).spki
    jwk = public_jwk(spki, row)
    assert jwk["kid"] == key_id(spki, row)
    assert jwk["kid"] == JWK(**jwk).thumbprint()
    assert jwk["kid"] == import_key(dict(jwk)).thumbprint()


def test_kid_depends_on_the_key_alone() -> None:
    rs256, ps512 = find_algorithm("RS256"), find_algorithm("PS512")
    spki = shared_key(rs256).spki
    assert key_id(spki, rs256) == key_id(spki, ps512)
    assert key_id(spki, rs256) != key_id(shared_key(rs256, serial=1).spki, rs256)


@pytest.mark.parametrize("row", [a for a in KEY_KINDS if a.kty == "RSA"], ids=str)
def test_rsa_numbers_have_no_leading_zero_octet(row: Algorithm) -> None:
    jwk = public_jwk(shared_key(row).spki, row)
    modulus = rfc.decode(jwk["n"])
    assert len(modulus) * 8 == row.key_bits
    assert modulus[0] != 0
    assert jwk["e"] == "AQAB"


@pytest.mark.parametrize(
    ("exponent", "octets"), [(0x10001, 3), (0x800001, 3), (0x1000001, 4), (0xFFFFFFFF, 4)]
)
def test_rsa_exponent_is_minimal_even_with_its_high_bit_set(exponent: int, octets: int) -> None:
    row = find_algorithm("RS256")
    modulus = int.from_bytes(rfc.decode(rfc.RFC7638_N), "big")
    jwk = public_jwk(_spki_of(rsa.RSAPublicNumbers(exponent, modulus).public_key()), row)
    assert rfc.decode(jwk["e"]) == exponent.to_bytes(octets, "big")


@pytest.mark.parametrize("row", EC_ROWS, ids=str)
def test_coordinates_keep_their_leading_zero_octets(row: Algorithm) -> None:
    width = COORDINATE_BYTES[row.curve or ""]
    for key, member in zip(_short_coordinates(row), ("x", "y"), strict=True):
        jwk = public_jwk(key.spki, row)
        assert rfc.decode(jwk[member])[0] == 0
        assert len(rfc.decode(jwk["x"])) == len(rfc.decode(jwk["y"])) == width
        for spki in _same_key_elsewhere(jwk):
            assert spki == key.spki
        assert jwk["kid"] == JWK(**jwk).thumbprint()


@pytest.mark.parametrize(("name", "octets"), [("Ed25519", 32), ("Ed448", 57)])
def test_edwards_keys_have_their_full_length(name: str, octets: int) -> None:
    row = find_algorithm(name)
    for _ in range(50):
        jwk = public_jwk(SoftwareKey.generate(row).spki, row)
        assert len(rfc.decode(jwk["x"])) == octets


@pytest.mark.parametrize("name", PRIVATE_NAMES)
@pytest.mark.parametrize("value", ["AQAB", "", None, []])
def test_private_members_are_refused_whatever_their_value(name: str, value: object) -> None:
    row = find_algorithm("ES256")
    clean = public_jwk(shared_key(row).spki, row)
    with pytest.raises(PrivateMaterialRefused) as caught:
        refuse_private_members([clean, {**clean, name: value}])
    assert "AQAB" not in str(caught.value)


def test_symmetric_keys_are_refused() -> None:
    with pytest.raises(PrivateMaterialRefused):
        refuse_private_members([{"kty": "oct", "kid": "shared"}])


def _private_jwk(key: SoftwareKey) -> dict[str, str]:
    if isinstance(key.private, MlDsaPrivateKey):
        seed = urlsafe_b64encode(key.private.private_bytes_raw()).rstrip(b"=").decode()
        return {**public_jwk(key.spki, key.algorithm), "priv": seed}  # RFC 9964 section 4
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    exported: dict[str, str] = json.loads(JWK.from_pem(pem).export_private())
    return exported


@pytest.mark.parametrize("row", KEY_KINDS, ids=str)
def test_a_private_jwk_of_any_kind_is_refused(row: Algorithm) -> None:
    exported = _private_jwk(shared_key(row))
    assert not set(PRIVATE_NAMES).isdisjoint(exported)
    with pytest.raises(PrivateMaterialRefused):
        refuse_private_members(iter([exported]))


def test_an_empty_document_and_public_keys_pass() -> None:
    refuse_private_members([])
    refuse_private_members(public_jwk(shared_key(a).spki, a) for a in KEY_KINDS)


@pytest.mark.parametrize("wanted", ALGORITHMS, ids=str)
def test_a_key_of_another_kind_is_refused(wanted: Algorithm) -> None:
    kind = (wanted.kty, wanted.key_bits, wanted.curve)
    for other in KEY_KINDS:
        spki = shared_key(other).spki
        if (other.kty, other.key_bits, other.curve) == kind:
            load_public_key(spki, wanted)
            continue
        with pytest.raises(BackendProtocolError) as caught:
            load_public_key(spki, wanted)
        assert isinstance(caught.value, BackendError)


@pytest.mark.parametrize("row", KEY_KINDS, ids=str)
def test_encodings_other_than_spki_are_refused(row: Algorithm) -> None:
    key = shared_key(row)
    private = key.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    pem = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for encoded in (private, pem, key.spki[:-1], key.spki + b"\0", b"", b"\x30\x00"):
        with pytest.raises(BackendProtocolError):
            load_public_key(encoded, row)


@given(garbage=st.binary(max_size=200), row=st.sampled_from(KEY_KINDS))
def test_garbage_is_refused(garbage: bytes, row: Algorithm) -> None:
    with pytest.raises(BackendProtocolError):
        load_public_key(garbage, row)


@given(data=st.data(), row=st.sampled_from(KEY_KINDS))
def test_a_damaged_key_is_refused_or_still_a_key_of_its_kind(
    data: st.DataObject, row: Algorithm
) -> None:
    spki = bytearray(shared_key(row).spki)
    position = data.draw(st.integers(0, len(spki) - 1))
    spki[position] ^= data.draw(st.integers(1, 255))
    try:
        jwk = public_jwk(bytes(spki), row)
    except BackendProtocolError:
        return
    assert set(jwk) == set(public_jwk(shared_key(row).spki, row))
    assert jwk["kid"] == _thumbprint_elsewhere(jwk)


@pytest.mark.parametrize("exponent", [3, 17, 257, 65535])
def test_small_rsa_exponents_are_refused(exponent: int) -> None:
    modulus = int.from_bytes(rfc.decode(rfc.RFC7638_N), "big")
    spki = _spki_of(rsa.RSAPublicNumbers(exponent, modulus).public_key())
    with pytest.raises(BackendProtocolError):
        load_public_key(spki, find_algorithm("RS256"))


def test_rsa_just_below_its_size_is_refused() -> None:
    modulus = int.from_bytes(rfc.decode(rfc.RFC7638_N), "big") >> 1 | 1
    spki = _spki_of(rsa.RSAPublicNumbers(65537, modulus).public_key())
    with pytest.raises(BackendProtocolError):
        load_public_key(spki, find_algorithm("RS256"))


@pytest.mark.parametrize("row", KEY_KINDS, ids=str)
def test_keys_that_do_not_sign_for_us_are_refused(row: Algorithm) -> None:
    x25519_key = x25519.X25519PrivateKey.generate().public_key()
    p224 = ec.generate_private_key(ec.SECP224R1()).public_key()
    for key in (x25519_key, p224, _DSA):
        with pytest.raises(BackendProtocolError):
            load_public_key(_spki_of(key), row)


_DSA = dsa.DSAPublicNumbers(
    y=4, parameter_numbers=dsa.DSAParameterNumbers(p=(1 << 1023) | 1, q=(1 << 159) | 1, g=2)
).public_key()
