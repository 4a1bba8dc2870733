"""Signature encodings, and the local verification that stands before every release."""

from __future__ import annotations

import hashlib
from itertools import count

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, find_algorithm
from kmsjwks.domain.errors import BackendProtocolError
from kmsjwks.domain.signatures import der_from_raw, digest, make_verifier, raw_from_der
from tests.unit.rfc_vectors import SIGNED_EXAMPLES, SignedExample, decode
from tests.unit.shared_keys import shared_key

EC_ROWS = [a for a in ALGORITHMS if a.kty == "EC"]
RSA_ROWS = [a for a in ALGORITHMS if a.kty == "RSA"]
WIDTH = {"ES256": 32, "ES384": 48, "ES512": 66, "ES256K": 32}  # RFC 7518 3.4, RFC 8812 3.2
MESSAGE = b"eyJhbGciOiJub25lIn0.e30"


def _numbers(width: int) -> st.SearchStrategy[int]:
    """Positive integers that fit, with short ones and high bits as often as the rest."""
    top = 1 << (8 * width)
    return st.one_of(
        st.integers(1, top - 1),
        st.integers(1, 1 << (8 * (width - 2))),
        st.integers(top >> 1, top - 1),
        st.sampled_from([1, 0x7F, 0x80, 0xFF, 0x100, (top >> 1) - 1, top >> 1, top - 1, top >> 8]),
    )


@given(row=st.sampled_from(EC_ROWS), data=st.data())
def test_der_to_raw_and_back_keeps_both_numbers_at_full_width(
    row: Algorithm, data: st.DataObject
) -> None:
    width = WIDTH[row.id]
    r, s = data.draw(_numbers(width)), data.draw(_numbers(width))
    der = encode_dss_signature(r, s)
    raw = raw_from_der(der, row)
    assert len(raw) == 2 * width == row.signature_bytes
    assert int.from_bytes(raw[:width], "big") == r
    assert int.from_bytes(raw[width:], "big") == s
    assert der_from_raw(raw) == der


@given(row=st.sampled_from(EC_ROWS), data=st.data())
def test_raw_to_der_and_back_is_the_same_bytes(row: Algorithm, data: st.DataObject) -> None:
    width = WIDTH[row.id]
    raw = data.draw(st.binary(min_size=2 * width, max_size=2 * width))
    assert raw_from_der(der_from_raw(raw), row) == raw


@given(row=st.sampled_from(EC_ROWS), excess=st.integers(0, 2**64), first=st.booleans())
def test_numbers_too_wide_for_the_curve_are_refused(
    row: Algorithm, excess: int, first: bool
) -> None:
    wide = (1 << (8 * WIDTH[row.id])) + excess
    der = encode_dss_signature(wide, 1) if first else encode_dss_signature(1, wide)
    with pytest.raises(BackendProtocolError):
        raw_from_der(der, row)


@pytest.mark.parametrize("row", EC_ROWS, ids=str)
@pytest.mark.parametrize(
    "der",
    [
        bytes.fromhex("30060201ff020101"),  # negative r
        bytes.fromhex("300602010102010100"),  # trailing octet
        bytes.fromhex("300702020001020101"),  # r with a needless leading zero
        bytes.fromhex("3003020101"),  # s is missing
        bytes.fromhex("3080020101020101" + "0000"),  # indefinite length
        bytes.fromhex("3006020101020101")[:-1],
        bytes(64),
        b"",
    ],
    ids=["negative", "trailing", "padded", "one-number", "indefinite", "cut", "raw", "empty"],
)
def test_what_is_not_der_is_refused(der: bytes, row: Algorithm) -> None:
    with pytest.raises(BackendProtocolError):
        raw_from_der(der, row)


@given(garbage=st.binary(max_size=160), row=st.sampled_from(EC_ROWS))
def test_garbage_gives_our_error_or_a_full_width_signature(garbage: bytes, row: Algorithm) -> None:
    try:
        raw = raw_from_der(garbage, row)
    except BackendProtocolError:
        return
    assert len(raw) == row.signature_bytes


@pytest.mark.parametrize("row", EC_ROWS, ids=str)
@pytest.mark.parametrize("half", [0, 1], ids=["r", "s"])
def test_a_real_signature_with_a_leading_zero_octet_verifies(row: Algorithm, half: int) -> None:
    key, width = shared_key(row), WIDTH[row.id]
    verify = make_verifier(row, key.spki)
    # P-521 numbers have seven spare bits in their first octet: ask for a zero second octet too.
    zeros = 2 if row.id == "ES512" else 1
    for attempt in count():
        message = attempt.to_bytes(4, "big")
        raw = key.sign(message)
        number = raw[half * width :][:width]
        if not any(number[:zeros]):
            break
    assert verify(message, raw)
    assert raw_from_der(encode_dss_signature(*decode_dss_signature(der_from_raw(raw))), row) == raw
    shortened = raw[: half * width] + number[zeros:] + raw[(half + 1) * width :]
    assert not verify(message, shortened)


def test_an_rsa_signature_keeps_its_leading_zero_octet() -> None:
    row = find_algorithm("RS256")
    key = shared_key(row)
    verify = make_verifier(row, key.spki)
    message, signature = next(
        (message, signature)
        for message in (attempt.to_bytes(4, "big") for attempt in count())
        if (signature := key.sign(message))[0] == 0
    )
    assert len(signature) == row.signature_bytes
    assert verify(message, signature)
    assert not verify(message, signature[1:])


@pytest.mark.parametrize("row", [a for a in ALGORITHMS if a.hash], ids=str)
def test_digest_is_the_hash_of_the_jose_name(row: Algorithm) -> None:
    assert digest(row, MESSAGE) == hashlib.new(f"sha{row.jose[2:5]}", MESSAGE).digest()


@pytest.mark.parametrize("example", SIGNED_EXAMPLES, ids=str)
def test_signatures_printed_in_the_rfcs_verify(example: SignedExample) -> None:
    verify = make_verifier(find_algorithm(example.algorithm_id), example.spki)
    signing_input, _, tail = example.token.rpartition(".")
    signature = decode(tail)
    assert verify(signing_input.encode(), signature)
    assert not verify(signing_input.encode() + b"A", signature)
    assert not verify(signing_input.encode(), signature[:-1] + bytes([signature[-1] ^ 1]))


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_only_the_right_signature_of_the_right_length_verifies(row: Algorithm) -> None:
    key = shared_key(row)
    verify = make_verifier(row, key.spki)
    good = key.sign(MESSAGE)
    assert verify(MESSAGE, good)
    assert not verify(MESSAGE + b" ", good)
    assert not verify(b"", good)
    size = row.signature_bytes
    for bad in (b"", good[:-1], good[1:], good + b"\0", b"\0" + good, bytes(size), b"\xff" * size):
        assert not verify(MESSAGE, bad)


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_another_keys_signature_does_not_verify(row: Algorithm) -> None:
    foreign = shared_key(row, serial=1).sign(MESSAGE)
    assert not make_verifier(row, shared_key(row).spki)(MESSAGE, foreign)


@given(row=st.sampled_from(ALGORITHMS), data=st.data())
def test_one_flipped_bit_anywhere_does_not_verify(row: Algorithm, data: st.DataObject) -> None:
    key = shared_key(row)
    signature = bytearray(key.sign(MESSAGE))
    position = data.draw(st.integers(0, 8 * len(signature) - 1))
    signature[position // 8] ^= 1 << (position % 8)
    assert not make_verifier(row, key.spki)(MESSAGE, bytes(signature))


@pytest.mark.parametrize("row", EC_ROWS, ids=str)
def test_der_is_not_a_jose_signature(row: Algorithm) -> None:
    key = shared_key(row)
    assert not make_verifier(row, key.spki)(MESSAGE, der_from_raw(key.sign(MESSAGE)))


@pytest.mark.parametrize("row", EC_ROWS, ids=str)
def test_r_and_s_are_not_interchangeable(row: Algorithm) -> None:
    key = shared_key(row)
    raw = key.sign(MESSAGE)
    half = len(raw) // 2
    assert not make_verifier(row, key.spki)(MESSAGE, raw[half:] + raw[:half])


@pytest.mark.parametrize("signed", RSA_ROWS, ids=str)
def test_schemes_and_hashes_of_one_rsa_key_do_not_mix(signed: Algorithm) -> None:
    key = shared_key(signed)
    signature = key.sign(MESSAGE)
    same_key = [a for a in RSA_ROWS if a.key_bits == signed.key_bits]
    accepted = [a.id for a in same_key if make_verifier(a, key.spki)(MESSAGE, signature)]
    assert accepted == [signed.id]


@pytest.mark.parametrize("salt", [0, 20, 31, 33, 222])
def test_pss_salt_is_as_long_as_the_hash(salt: int) -> None:
    """RFC 7518 section 3.5."""
    row = find_algorithm("PS256")
    key = shared_key(row)
    assert isinstance(key.private, rsa.RSAPrivateKey)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=salt)
    signature = key.private.sign(MESSAGE, pss, hashes.SHA256())
    assert not make_verifier(row, key.spki)(MESSAGE, signature)


def test_pss_mask_hash_is_the_message_hash() -> None:
    """RFC 7518 section 3.5: many devices default MGF1 to SHA-1."""
    row = find_algorithm("PS256")
    key = shared_key(row)
    assert isinstance(key.private, rsa.RSAPrivateKey)
    pss = padding.PSS(padding.MGF1(hashes.SHA1()), salt_length=32)
    signature = key.private.sign(MESSAGE, pss, hashes.SHA256())
    assert not make_verifier(row, key.spki)(MESSAGE, signature)


@pytest.mark.parametrize("row", ALGORITHMS, ids=str)
def test_a_verifier_is_not_made_for_a_key_that_does_not_fit(row: Algorithm) -> None:
    wrong = find_algorithm("Ed25519" if row.kty != "OKP" else "ES256")
    with pytest.raises(BackendProtocolError):
        make_verifier(row, shared_key(wrong).spki)
