"""Keys, tokens and thumbprints printed in RFC 7515, RFC 7638 and RFC 8037."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def decode(text: str) -> bytes:
    """base64url without padding -> bytes."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _uint(text: str) -> int:
    return int.from_bytes(decode(text), "big")


def rsa_spki(n: str, e: str) -> bytes:
    """DER SubjectPublicKeyInfo of an RSA key given as in a JWK."""
    return _spki(rsa.RSAPublicNumbers(_uint(e), _uint(n)).public_key())


def ec_spki(curve: ec.EllipticCurve, x: str, y: str) -> bytes:
    """DER SubjectPublicKeyInfo of an EC key given as in a JWK."""
    return _spki(ec.EllipticCurvePublicNumbers(_uint(x), _uint(y), curve).public_key())


def ed25519_spki(x: str) -> bytes:
    """DER SubjectPublicKeyInfo of an Ed25519 key given as in a JWK."""
    return _spki(ed25519.Ed25519PublicKey.from_public_bytes(decode(x)))


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class SignedExample:
    """A compact JWS of an RFC, with the public JWK members that its key is printed with."""

    source: str
    algorithm_id: str
    spki: bytes
    members: dict[str, str]
    token: str
    payload: bytes

    def __str__(self) -> str:
        return self.source


# RFC 7638 section 3.1
RFC7638_N = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86z"
    "wu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6C"
    "f0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08q"
    "NLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDK"
    "gw"
)
RFC7638_THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

# RFC 8037 appendix A.1 to A.4
RFC8037_D = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
RFC8037_X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
RFC8037_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
RFC8037_SIGNING_INPUT = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
RFC8037_SIGNATURE = (
    "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)

# RFC 7515 appendix A.2, A.3 and A.4
_CLAIMS = b'{"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}'
_CLAIMS_ENCODED = (
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
_A2_N = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4"
    "d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5re"
    "xMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxX"
    "FvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)
_A2_SIGNATURE = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5"
    "jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb"
    "1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QO"
    "YEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
_A3_X = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"
_A3_Y = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
_A3_SIGNATURE = (
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
)
_A4_X = "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk"
_A4_Y = "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"
_A4_SIGNATURE = (
    "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8G"
    "aSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
)

SIGNED_EXAMPLES = (
    SignedExample(
        "RFC 7515 A.2",
        "RS256",
        rsa_spki(_A2_N, "AQAB"),
        {"kty": "RSA", "n": _A2_N, "e": "AQAB"},
        f"eyJhbGciOiJSUzI1NiJ9.{_CLAIMS_ENCODED}.{_A2_SIGNATURE}",
        _CLAIMS,
    ),
    SignedExample(
        "RFC 7515 A.3",
        "ES256",
        ec_spki(ec.SECP256R1(), _A3_X, _A3_Y),
        {"kty": "EC", "crv": "P-256", "x": _A3_X, "y": _A3_Y},
        f"eyJhbGciOiJFUzI1NiJ9.{_CLAIMS_ENCODED}.{_A3_SIGNATURE}",
        _CLAIMS,
    ),
    SignedExample(
        "RFC 7515 A.4",
        "ES512",
        ec_spki(ec.SECP521R1(), _A4_X, _A4_Y),
        {"kty": "EC", "crv": "P-521", "x": _A4_X, "y": _A4_Y},
        f"eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.{_A4_SIGNATURE}",
        b"Payload",
    ),
    SignedExample(
        "RFC 8037 A.4",
        "Ed25519",
        ed25519_spki(RFC8037_X),
        {"kty": "OKP", "crv": "Ed25519", "x": RFC8037_X},
        f"{RFC8037_SIGNING_INPUT.decode()}.{RFC8037_SIGNATURE}",
        b"Example of Ed25519 signing",
    ),
)
