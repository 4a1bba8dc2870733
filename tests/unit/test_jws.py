"""Compact JWS around an external signer: everything it releases verifies, or nothing leaves."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as joserfc_jws
from joserfc.jwk import RSAKey, import_key
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]
from jwcrypto.jws import JWS  # type: ignore[import-untyped]

from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, find_algorithm
from kmsjwks.domain.errors import (
    BackendProtocolError,
    BackendUnavailable,
    ClaimRejected,
    InvalidRequest,
)
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.jws import MAX_TOKEN_BYTES, ExternalSign, JwsSigner, read_compact
from kmsjwks.domain.signatures import der_from_raw, make_verifier
from tests.fakes.software import SoftwareKey
from tests.unit import rfc_vectors as rfc
from tests.unit.rfc_vectors import SIGNED_EXAMPLES, SignedExample, decode
from tests.unit.shared_keys import shared_key

KNOWN_ELSEWHERE = [a for a in ALGORITHMS if a.kty != "AKP"]  # PyJWT, joserfc, jwcrypto: no AKP
CLAIMS = {"iss": "https://issuer.example", "n": 2**70, "name": "Zoë"}
PAYLOAD = json.dumps(CLAIMS, ensure_ascii=False, separators=(",", ":")).encode()
ES256 = find_algorithm("ES256")


def _signer(key: SoftwareKey, sign: ExternalSign | None = None) -> JwsSigner:
    row = key.algorithm
    return JwsSigner(row, public_jwk(key.spki, row), sign or key.sign, make_verifier(row, key.spki))


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # joserfc, of RFC 9864
@pytest.mark.parametrize("row", KNOWN_ELSEWHERE, ids=str)
def test_every_algorithm_verifies_with_four_libraries(row: Algorithm) -> None:
    key = shared_key(row)
    jwk = public_jwk(key.spki, row)
    token = _signer(key).compact({"typ": "JWT"}, PAYLOAD)

    assert jwt.decode(token, jwt.PyJWK(dict(jwk)), algorithms=[row.jose]) == CLAIMS
    read = joserfc_jws.deserialize_compact(token, import_key(dict(jwk)), algorithms=[row.jose])
    assert read.payload == PAYLOAD
    other = JWS()
    other.allowed_algs = [row.jose]
    other.deserialize(token, JWK(**jwk))
    assert other.payload == PAYLOAD

    header, payload, signing_input, signature = read_compact(token)
    assert header == {"typ": "JWT", "alg": row.jose, "kid": jwk["kid"]}
    assert payload == PAYLOAD
    assert len(signature) == row.signature_bytes
    assert make_verifier(row, key.spki)(signing_input, signature)


@pytest.mark.parametrize("row", [a for a in ALGORITHMS if a.kty == "AKP"], ids=str)
def test_ml_dsa_verifies_with_pyca_from_the_jwk_alone(row: Algorithm) -> None:
    key = shared_key(row)
    jwk = public_jwk(key.spki, row)
    token = _signer(key).compact({"typ": "JWT"}, PAYLOAD)
    header, payload, signing_input, signature = read_compact(token)
    assert header == {"typ": "JWT", "alg": row.jose, "kid": jwk["kid"]}
    assert payload == PAYLOAD
    assert len(signature) == row.signature_bytes
    read = getattr(mldsa, f"MLDSA{row.jose[-2:]}PublicKey").from_public_bytes(decode(jwk["pub"]))
    read.verify(signature, signing_input)
    with pytest.raises(InvalidSignature):
        read.verify(signature, signing_input, b"context")
    with pytest.raises(InvalidSignature):
        read.verify(signature, signing_input + b"A")


def test_the_jws_of_rfc_9964_appendix_a_1_verifies() -> None:
    row = find_algorithm("ML-DSA-44")
    spki = rfc.ml_dsa_spki(row.id, rfc.RFC9964_SEED)
    header, payload, signing_input, signature = read_compact(rfc.RFC9964_ML_DSA_44_JWS)
    assert header == {"alg": "ML-DSA-44", "kid": public_jwk(spki, row)["kid"]}
    assert payload == rfc.RFC9964_PAYLOAD
    verify = make_verifier(row, spki)
    assert verify(signing_input, signature)
    assert not verify(signing_input + b"A", signature)
    ours = JwsSigner(row, public_jwk(spki, row), lambda _: signature, verify)
    assert ours.compact({}, payload) == rfc.RFC9964_ML_DSA_44_JWS


def test_the_bytes_are_those_that_joserfc_serialises() -> None:
    """Member order, escapes and separators of the header, as in every token issued so far."""
    key = shared_key(find_algorithm("RS256"))  # deterministic signatures
    row, jwk = key.algorithm, public_jwk(key.spki, key.algorithm)
    assert isinstance(key.private, rsa.RSAPrivateKey)
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for header in ({}, {"typ": "JWT"}, {"cty": 'Zoë \U0001f511/"', "typ": "at+jwt"}):
        protected = {**header, "alg": row.jose, "kid": jwk["kid"]}
        theirs = joserfc_jws.serialize_compact(protected, PAYLOAD, RSAKey.import_key(pem))
        assert _signer(key).compact(header, PAYLOAD) == theirs


def test_a_header_beyond_4096_bytes_is_refused() -> None:
    wide = "\U0001f511" * 128  # twelve bytes each, once escaped
    signer = _signer(shared_key(ES256))
    assert len(signer.compact({"typ": wide}, PAYLOAD).partition(".")[0]) < 4096
    with pytest.raises(ClaimRejected, match="4096") as caught:
        signer.compact({"typ": wide, "cty": wide}, PAYLOAD)
    assert caught.value.member in ("typ", "cty")


@pytest.mark.parametrize("row", KNOWN_ELSEWHERE, ids=str)
def test_a_token_changed_anywhere_fails_elsewhere_too(row: Algorithm) -> None:
    key = shared_key(row)
    head, _, tail = _signer(key).compact({}, PAYLOAD).split(".")
    forged = f"{head}.{_encode(PAYLOAD.replace(b'issuer', b'hacker'))}.{tail}"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(forged, jwt.PyJWK(public_jwk(key.spki, row)), algorithms=[row.jose])


def _flip(signature: bytes) -> bytes:
    return signature[:-1] + bytes([signature[-1] ^ 1])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "bit flipped": _flip,
    "cut": lambda signature: signature[:-1],
    "longer": lambda signature: signature + b"\0",
    "empty": lambda _: b"",
    "zeros": lambda signature: bytes(len(signature)),
    "twice": lambda signature: signature * 2,
}


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_signature_is_never_released(
    row: Algorithm, damage: Callable[[bytes], bytes]
) -> None:
    key = shared_key(row)
    with pytest.raises(BackendProtocolError, match="Nothing was released"):
        _signer(key, lambda message: damage(key.sign(message))).compact({}, PAYLOAD)


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_another_keys_signature_is_never_released(row: Algorithm) -> None:
    with pytest.raises(BackendProtocolError):
        _signer(shared_key(row), shared_key(row, serial=1).sign).compact({}, PAYLOAD)


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_a_signature_of_something_else_is_never_released(row: Algorithm) -> None:
    key = shared_key(row)
    with pytest.raises(BackendProtocolError):
        _signer(key, lambda message: key.sign(message[1:])).compact({}, PAYLOAD)


@pytest.mark.parametrize("row", [a for a in ALGORITHMS if a.kty == "EC"], ids=str)
def test_a_der_signature_is_never_released(row: Algorithm) -> None:
    key = shared_key(row)
    with pytest.raises(BackendProtocolError):
        _signer(key, lambda message: der_from_raw(key.sign(message))).compact({}, PAYLOAD)


def test_the_error_of_a_bad_signature_shows_neither_it_nor_the_claims() -> None:
    key = shared_key(ES256)
    bad = bytes(range(64))
    with pytest.raises(BackendProtocolError) as caught:
        _signer(key, lambda _: bad).compact({}, PAYLOAD)
    assert _encode(bad) not in str(caught.value)
    assert "issuer.example" not in str(caught.value)


def test_the_backends_own_errors_pass_through() -> None:
    fault = BackendUnavailable("The token does not answer.", retry_after=7)

    def sign(_: bytes) -> bytes:
        raise fault

    with pytest.raises(BackendUnavailable) as caught:
        _signer(shared_key(ES256), sign).compact({}, PAYLOAD)
    assert caught.value is fault


def test_the_backend_signs_once_and_exactly_what_is_sent() -> None:
    key, seen = shared_key(ES256), list[bytes]()

    def sign(message: bytes) -> bytes:
        seen.append(message)
        return key.sign(message)

    token = _signer(key, sign).compact({"typ": "at+jwt"}, PAYLOAD)
    assert seen == [token.rpartition(".")[0].encode()]


@given(
    header=st.fixed_dictionaries(
        {},
        optional={
            "typ": st.text(max_size=50),
            "cty": st.text(max_size=50),
        },
    )
)
def test_alg_and_kid_are_ours(header: dict[str, str]) -> None:
    key = shared_key(ES256)
    before = dict(header)
    token = _signer(key).compact(header, PAYLOAD)
    ours = {"alg": "ES256", "kid": public_jwk(key.spki, ES256)["kid"]}
    assert read_compact(token)[0] == {**header, **ours}
    assert header == before


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"kid": "mine"},
        {"jwk": {}},
        {"b64": False, "crit": ["b64"]},
        {"typ": 7},
        {"typ": "x" * 129},
        {"other": "x"},
    ],
    ids=str,
)
def test_no_other_header_parameter_gets_in(header: dict[str, Any]) -> None:
    asked: list[bytes] = []

    def sign(message: bytes) -> bytes:
        asked.append(message)
        return b""

    signer = _signer(shared_key(ES256), sign)
    with pytest.raises(ClaimRejected) as caught:
        signer.compact(header, PAYLOAD)
    assert caught.value.member in header
    assert not asked


@given(payload=st.binary(max_size=300))
def test_any_payload_arrives_unchanged(payload: bytes) -> None:
    token = _signer(shared_key(ES256)).compact({}, payload)
    assert read_compact(token)[1] == payload


def test_one_signer_serves_many_threads() -> None:
    key = shared_key(ES256)
    signer, verify = _signer(key), make_verifier(ES256, key.spki)
    payloads = [str(number).encode() for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda payload: signer.compact({}, payload), payloads))
    read = [read_compact(token) for token in tokens]
    assert [payload for _, payload, _, _ in read] == payloads
    assert all(verify(signing_input, signature) for *_, signing_input, signature in read)


@pytest.mark.parametrize("example", SIGNED_EXAMPLES, ids=str)
def test_examples_of_the_rfcs_are_read_and_verify(example: SignedExample) -> None:
    header, payload, signing_input, signature = read_compact(example.token)
    row = find_algorithm(example.algorithm_id)
    assert header == {"alg": row.jose}
    assert payload == example.payload
    assert f"{signing_input.decode()}." == example.token[: len(signing_input) + 1]
    assert make_verifier(row, example.spki)(signing_input, signature)


HEAD = _encode(b'{"alg":"ES256"}')


def _refused(token: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_compact(token)
    assert caught.value.code == "invalid-request"  # a bad token is not a malformed body
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + "=",
        lambda text: text + "==",
        lambda text: text + "\n",
        lambda text: text + "\r\n",
        lambda text: text + " ",
        lambda text: " " + text,
        lambda text: text[:2] + "\t" + text[2:],
        lambda text: text[:2] + " " + text[2:],
        lambda text: text[:2] + "+" + text[3:],
        lambda text: text[:2] + "/" + text[3:],
        lambda text: text[:2] + "!" + text[2:],
        lambda text: text[:2] + "\0" + text[2:],
        lambda text: text[:2] + "é" + text[2:],
        lambda text: text[:2] + "\ud800" + text[2:],
        lambda text: text + "A",
        lambda text: text + "A=",
        lambda text: text[:-1] + "=" + text[-1],
    ],
    ids=[
        *("pad", "pad-pad", "newline", "crlf", "space-after", "space-before", "tab-inside"),
        *("space-inside", "plus", "slash", "bang", "nul", "non-ascii", "surrogate"),
        *("five-characters", "five-padded", "pad-inside"),
    ],
)
def test_base64url_in_any_other_form_is_refused(part: int, spoil: Callable[[str], str]) -> None:
    # Each part has a multiple of four characters, so that one more can never be canonical.
    parts = [HEAD, _encode(b'{"a":"b"}'), _encode(bytes(range(48)))]
    assert [len(text) % 4 for text in parts] == [0, 0, 0]
    read_compact(".".join(parts))
    parts[part] = spoil(parts[part])
    _refused(".".join(parts))


@given(data=st.binary(min_size=1, max_size=40), part=st.sampled_from([1, 2]))
def test_trailing_bits_must_be_zero(data: bytes, part: int) -> None:
    """RFC 4648 section 3.5: otherwise one token has many spellings."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = {0: 0, 1: 4, 2: 2}[len(data) % 3]
    text = _encode(data)
    for bits in range(1, 1 << spare):
        other = text[:-1] + alphabet[alphabet.index(text[-1]) | bits]
        assert decode(other) == data
        parts = [HEAD, "e30", "AAAA"]
        parts[part] = other
        _refused(".".join(parts))


def test_trailing_bits_of_the_header_must_be_zero() -> None:
    header = _encode(b'{"alg":"x"}')
    assert header.endswith("0")
    assert decode(header[:-1] + "1") == decode(header)
    read_compact(f"{header}.e30.AAAA")
    _refused(f"{header[:-1]}1.e30.AAAA")


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        HEAD,
        f"{HEAD}.e30",
        f"{HEAD}.e30.AAAA.",
        f".{HEAD}.e30.AAAA",
        f"{HEAD}.e30.AAAA.AAAA.AAAA",
        ".e30.AAAA",
        f"{HEAD}\n.e30.AAAA",
        json.dumps({"payload": "e30", "protected": HEAD, "signature": "AAAA"}),
    ],
)
def test_other_shapes_are_refused(token: str) -> None:
    _refused(token)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"ES256"',
        b"1",
        b'{"alg":"ES256","alg":"none"}',
        b'{"alg":"ES256","\\u0061lg":"none"}',
        b'{"alg":"ES256","x":{"a":1,"a":1}}',
        b'{"alg":NaN}',
        b'{"alg":1e999}',
        b'{"alg":"\\ud800"}',
        b'{"alg":"\xff"}',
        b'\xef\xbb\xbf{"alg":"ES256"}',
        b'{"alg":"ES256"} x',
        b'{"alg":"ES256",}',
        b'{"a":' * 10_000,
        b"[" * 40_000,
    ],
    ids=lambda header: header[:24].decode("latin-1"),
)
def test_headers_that_are_not_one_strict_json_object_are_refused(header: bytes) -> None:
    _refused(f"{_encode(header)}.e30.AAAA")


def test_size_is_limited() -> None:
    room = MAX_TOKEN_BYTES - len(f"{HEAD}..AAAA")
    payload = "A" * (room - room % 4)
    assert len(read_compact(f"{HEAD}.{payload}.AAAA")[1]) == len(payload) * 3 // 4
    _refused(f"{HEAD}.{'A' * (room + 4)}.AAAA")


_NEAR_TOKENS = st.lists(
    st.one_of(
        st.sampled_from([HEAD, "e30", "AAAA", "", "=", "\n", "eyJhbGciOiJub25lIn0"]),
        st.binary(max_size=30).map(_encode),
        st.text(alphabet="AZaz09-_+/=. \n\té\0", max_size=12),
    ),
    max_size=6,
).map(".".join)


@given(token=st.one_of(st.text(max_size=200), _NEAR_TOKENS))
def test_hostile_text_raises_invalid_request_or_is_canonical(token: str) -> None:
    try:
        header, payload, signing_input, signature = read_compact(token)
    except InvalidRequest:
        return
    assert isinstance(header, dict)
    assert signing_input.decode() + "." + _encode(signature) == token
    assert signing_input.decode().partition(".")[2] == _encode(payload)


def test_each_token_has_its_own_header() -> None:
    """Though the last one's is remembered."""
    signer = _signer(shared_key(ES256))
    headers: list[dict[str, str]] = [
        {"typ": "JWT"}, {"typ": "at+jwt"}, {"typ": "at+jwt"}, {}, {"typ": "JWT", "cty": "x"},
    ]  # fmt: skip
    for header in [*headers, *reversed(headers)]:
        read, *_ = read_compact(signer.compact(header, PAYLOAD))
        assert {name: read[name] for name in read if name not in ("alg", "kid")} == header


def test_a_header_changed_by_its_owner_is_encoded_again() -> None:
    signer, header = _signer(shared_key(ES256)), {"typ": "JWT"}
    signer.signing_input(header, PAYLOAD)
    header["typ"] = "at+jwt"
    read, *_ = read_compact(signer.compact(header, PAYLOAD))
    assert read["typ"] == "at+jwt"


def test_the_steps_verify_as_compact_does() -> None:
    signer = _signer(shared_key(ES256))
    one, other = (signer.signing_input({"cty": cty}, PAYLOAD) for cty in "ab")
    signature = signer.sign(one)
    assert signer.seal(one, signature).encode().startswith(one + b".")
    with pytest.raises(BackendProtocolError):
        signer.seal(other, signature)
