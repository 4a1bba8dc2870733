"""What Sign is asked for a JOSE signature, and what its answer must be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsjwks.backends.awskms.arns import KeyArn
from kmsjwks.domain.algorithms import Algorithm, Scheme
from kmsjwks.domain.errors import BackendError, BackendProtocolError, MessageTooLarge
from kmsjwks.domain.jwk import load_public_key
from kmsjwks.domain.ports import BackendKey
from kmsjwks.domain.signatures import digest, raw_from_der

MAX_RAW_BYTES = 4096  # Sign, Message


def signing_input(key: BackendKey, message: bytes) -> dict[str, Any]:
    """The parameters of Sign but for KeyId.

    Raises:
        MessageTooLarge: Ed25519 signs the message itself, and Sign takes 4,096 bytes.
        BackendError: Ed25519 and no message at all; Sign takes at least one byte.
    """
    message_type, data = _message(key, message)
    return {
        "Message": data,
        "MessageType": message_type,
        "SigningAlgorithm": key.alg.kms_signing_algorithm,
    }


def _message(key: BackendKey, message: bytes) -> tuple[str, bytes]:
    if key.alg.hash is not None:
        return "DIGEST", digest(key.alg, message)
    if 0 < len(message) <= MAX_RAW_BYTES:
        return "RAW", message
    if key.alg.scheme is Scheme.ML_DSA:
        return "EXTERNAL_MU", _mu(key, message)
    if not message:
        raise BackendError(f"AWS KMS signs no empty message with {key.alg.id}.")
    raise MessageTooLarge(
        f"AWS KMS signs at most {MAX_RAW_BYTES} bytes with {key.alg.id}, and this token has "
        f"{len(message)} before its signature. Send fewer claims, or use a keyset of another "
        "algorithm."
    )


def _mu(key: BackendKey, message: bytes) -> bytes:
    """FIPS 204 algorithm 7 line 6, for pure ML-DSA (algorithm 2) with an empty context."""
    public = load_public_key(key.spki, key.alg).public_bytes(Encoding.Raw, PublicFormat.Raw)
    tr = hashlib.shake_256(public).digest(64)
    return hashlib.shake_256(tr + b"\x00\x00" + message).digest(64)


def jose_signature(answer: Mapping[str, Any], asked: KeyArn, alg: Algorithm) -> bytes:
    """The signature of an answer of Sign.

    An emulator may leave ``KeyId`` or ``SigningAlgorithm`` out, or give the bare key id: what it
    says must fit, and whether the signature does is for whoever verifies it.

    Raises:
        BackendProtocolError: not one by this key, with this algorithm, of this length.
    """
    if (answer.get("KeyId") or str(asked)) not in (str(asked), asked.key_id):
        raise BackendProtocolError(
            f"AWS KMS signed with another key than {asked}. The signature was dropped."
        )
    wanted = alg.kms_signing_algorithm
    if (answer.get("SigningAlgorithm") or wanted) != wanted:
        raise BackendProtocolError(
            f"AWS KMS signed with another algorithm than {wanted}. The signature was dropped."
        )
    signature = answer.get("Signature")
    if not isinstance(signature, bytes):
        raise BackendProtocolError("AWS KMS answered Sign without a signature.")
    if alg.scheme is Scheme.ECDSA:
        signature = raw_from_der(signature, alg)
    if len(signature) != alg.signature_bytes:
        raise BackendProtocolError(
            f"AWS KMS returned a signature of {len(signature)} bytes; {alg.id} has "
            f"{alg.signature_bytes}."
        )
    return signature
