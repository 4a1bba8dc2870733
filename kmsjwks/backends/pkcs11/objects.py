"""Token objects: templates for generation, SubjectPublicKeyInfo from attributes, evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, MechanismFlag
from pkcs11.mechanisms import Mechanism
from pkcs11.types import Token

from kmsjwks.backends.pkcs11.failures import Remedy, VendorError, remedy
from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm, find_algorithm
from kmsjwks.domain.errors import BackendProtocolError, UnsupportedAlgorithm
from kmsjwks.domain.ports import Evidence

LABEL_PREFIX = "kmsjwks/"
_FLAGS = {
    "sign": Attribute.SIGN,
    "decrypt": Attribute.DECRYPT,
    "unwrap": Attribute.UNWRAP,
    "derive": Attribute.DERIVE,
    "verify": Attribute.VERIFY,
    "encrypt": Attribute.ENCRYPT,
    "wrap": Attribute.WRAP,
}
_KEY_TYPES = {"RSA": KeyType.RSA, "EC": KeyType.EC, "OKP": KeyType.EC_EDWARDS}
_CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
    "secp256k1": ec.SECP256K1(),
}


def mechanism(name: str | None) -> Mechanism:
    """A mechanism of the algorithm table.

    Raises:
        UnsupportedAlgorithm: the row names none.
    """
    if name is None:
        raise UnsupportedAlgorithm("PKCS#11 has no mechanism for this algorithm here.")
    return Mechanism[name]


def key_id_for(request_id: str) -> str:
    """The CKA_ID of a request: 16 bytes in lower-case hex, as random as the request id."""
    return hashlib.sha256(b"kmsjwks\x00" + request_id.encode()).digest()[:16].hex()


def label_for(alg: Algorithm, ref: str) -> str:
    """For humans, and to tell our keys and their algorithm in a listing; never an identity."""
    return f"{LABEL_PREFIX}{alg.id}/{ref[:8]}"


def algorithm_from_label(label: str) -> Algorithm | None:
    parts = label.split("/")
    if len(parts) != 3 or not label.startswith(LABEL_PREFIX):
        return None
    try:
        labelled = find_algorithm(parts[1])
    except UnsupportedAlgorithm:
        return None
    return labelled if labelled.pkcs11_mechanism else None


def curve_parameters(alg: Algorithm) -> bytes:
    """CKA_EC_PARAMS: the DER OBJECT IDENTIFIER of the curve."""
    arcs = [int(arc) for arc in (alg.curve_oid or "").split(".")]
    body = bytes([arcs[0] * 40 + arcs[1]]) + b"".join(_base128(arc) for arc in arcs[2:])
    return bytes([0x06, len(body)]) + body


def _base128(arc: int) -> bytes:
    digits = [arc & 0x7F]
    while arc := arc >> 7:
        digits.append(0x80 | (arc & 0x7F))
    return bytes(reversed(digits))


def private_template(usage: frozenset[str], *, token: bool = True) -> dict[Attribute, Any]:
    """Sensitive, non-extractable, private, unchangeable afterwards; nothing here is optional."""
    return {
        Attribute.TOKEN: token,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        **{_FLAGS[use]: use in usage for use in ("sign", "decrypt", "unwrap", "derive")},
    }


def public_template(
    alg: Algorithm, usage: frozenset[str], *, token: bool = True
) -> dict[Attribute, Any]:
    template: dict[Attribute, Any] = {
        Attribute.TOKEN: token,
        Attribute.PRIVATE: False,
        **{_FLAGS[use]: use in usage for use in ("verify", "encrypt", "wrap")},
    }
    if alg.kty == "RSA":
        template[Attribute.MODULUS_BITS] = alg.key_bits
        template[Attribute.PUBLIC_EXPONENT] = b"\x01\x00\x01"
    else:
        template[Attribute.EC_PARAMS] = curve_parameters(alg)
    return template


def generation_arguments(alg: Algorithm) -> dict[str, Any]:
    """The arguments of python-pkcs11's key pair generation that the algorithm decides."""
    return {
        "key_type": _KEY_TYPES[alg.kty],
        "key_length": alg.key_bits if alg.kty == "RSA" else None,
        "mechanism": mechanism(alg.pkcs11_keygen),
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
    }


def algorithm_of(public: Any) -> Algorithm:
    """By the label where it is ours, else the first row that fits the key.

    Raises:
        BackendProtocolError: no row fits.
        PKCS11Error: as the module says.
    """
    labelled = algorithm_from_label(str(public[Attribute.LABEL]))
    if labelled is not None:
        return labelled
    kind = public[Attribute.KEY_TYPE]
    for alg in ALGORITHMS:
        if _KEY_TYPES.get(alg.kty) is not kind:
            continue
        if alg.kty == "RSA":
            if len(bytes(public[Attribute.MODULUS]).lstrip(b"\x00")) * 8 == alg.key_bits:
                return alg
        elif public[Attribute.EC_PARAMS] == curve_parameters(alg):
            return alg
    raise BackendProtocolError("The token holds a key of a type that is not used here.")


def spki_of(public: Any, alg: Algorithm) -> bytes:
    """DER SubjectPublicKeyInfo from the attributes of a public (for RSA also private) object.

    Raises:
        BackendProtocolError: the attributes make no valid key.
        PKCS11Error: as the module says.
    """
    try:
        key: Any
        if alg.kty == "RSA":
            modulus = int.from_bytes(public[Attribute.MODULUS], "big")
            exponent = int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big")
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        elif alg.kty == "EC":
            point = _point(bytes(public[Attribute.EC_POINT]), 1 + alg.signature_bytes)
            key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[alg.curve or ""], point)
        else:
            point = _point(bytes(public[Attribute.EC_POINT]), alg.signature_bytes // 2)
            kind = ed25519.Ed25519PublicKey if alg.curve == "Ed25519" else ed448.Ed448PublicKey
            key = kind.from_public_bytes(point)
    except ValueError as error:
        raise BackendProtocolError(
            f"The token's public key is not a valid {alg.id} key."
        ) from error
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _point(value: bytes, size: int) -> bytes:
    """CKA_EC_POINT is a DER OCTET STRING (PKCS#11 3.0 section 2.3.3), or raw in some modules."""
    if len(value) == size:
        return value
    header = bytes([0x04, size]) if size < 0x80 else bytes([0x04, 0x81, size])
    if len(value) == len(header) + size and value.startswith(header):
        return value[len(header) :]
    raise BackendProtocolError("The token's public key has a point of unexpected length.")


_EXPECTED: Mapping[str, bool] = {
    "SENSITIVE": True,
    "EXTRACTABLE": False,
    "ALWAYS_SENSITIVE": True,
    "NEVER_EXTRACTABLE": True,
}


def evidence_of(ref: str, private: Any, token: Token, module: Mapping[str, str]) -> Evidence:
    """What the token says of a private key. LOCAL and KEY_GEN_MECHANISM are advisory: some
    modules report them wrongly."""
    attributes: dict[str, bool | str | None] = {
        f"CKA_{name}": _flag(private, Attribute[name]) for name in (*_EXPECTED, "LOCAL", "PRIVATE")
    }
    attributes["CKA_KEY_GEN_MECHANISM"] = _generation_mechanism(private)
    refused, finding = _extraction_refused(private)
    findings = [finding] if finding else []
    for name, expected in _EXPECTED.items():
        said = attributes[f"CKA_{name}"]
        if said is None:
            findings.append(f"the token does not tell CKA_{name}")
        elif said is not expected:
            findings.append(f"CKA_{name} is {said}; it must be {expected}")
    custody = {
        "token_label": token.label.strip(),
        "token_serial": token.serial.decode("ascii", "replace").strip(),
        "token_model": token.model.strip(),
        "token_manufacturer": token.manufacturer_id.strip(),
        "module": module["module"],
        "library": f"{module['library_manufacturer']} {module['library_description']}".strip(),
    }
    return Evidence(ref, custody, attributes, refused, tuple(findings))


def _flag(private: Any, attribute: Attribute) -> bool | None:
    try:
        return bool(private[attribute])
    except ValueError:
        return None
    except VendorError as error:
        if remedy(error) is Remedy.RECONNECT:
            raise
        return None


def _generation_mechanism(private: Any) -> str | None:
    try:
        mechanism = private[Attribute.KEY_GEN_MECHANISM]
    except (VendorError, ValueError):
        return None
    return f"CKM_{mechanism.name}" if isinstance(mechanism, Mechanism) else str(mechanism)


def _extraction_refused(private: Any) -> tuple[bool, str | None]:
    """Ask for the private value; the right answer is a refusal. Whatever comes is dropped.

    Raises:
        PKCS11Error: the token did not refuse, it failed.
    """
    for attribute in (Attribute.PRIVATE_EXPONENT, Attribute.VALUE):
        try:
            told = len(private[attribute]) > 0
        except VendorError as error:
            if remedy(error) is not Remedy.NONE:
                raise
            continue
        if told:
            return False, f"reading CKA_{attribute.name} was not refused"
    return True, None
