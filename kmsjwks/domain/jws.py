"""JWS compact serialisation around an external signer; every signature verified before release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from joserfc.errors import JoseError
from joserfc.util import json_b64encode, urlsafe_b64decode, urlsafe_b64encode

from kmsjwks.domain import strictjson
from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import (
    BackendProtocolError,
    ClaimRejected,
    InvalidRequest,
    MalformedJson,
)
from kmsjwks.domain.signatures import Verifier

ExternalSign = Callable[[bytes], bytes]
"""``message -> JOSE signature``; raises only BackendError."""

MAX_TOKEN_BYTES = 128 * 1024
_MAX_HEADER_BYTES = 4096  # encoded
_HEADERS = frozenset({"typ", "cty"})
_MAX_MEDIA_TYPE = 128  # characters


class JwsSigner:
    """Signs payloads with one key: ``compact`` at once, or its three steps one by one, for whoever
    has many. Thread-safe."""

    def __init__(
        self, algorithm: Algorithm, jwk: Mapping[str, str], sign: ExternalSign, verify: Verifier
    ) -> None:
        self._ours = {"alg": algorithm.jose, "kid": jwk["kid"]}
        self._sign, self._verify = sign, verify
        self._last_head: tuple[Mapping[str, Any], bytes] = ({}, self._encode({}))

    def compact(self, header: Mapping[str, Any], payload: bytes) -> str:
        """``BASE64URL(header).BASE64URL(payload).BASE64URL(signature)`` (RFC 7515 section 7.1).

        Raises:
            ClaimRejected: a header parameter that is not ``typ`` or ``cty``, or too long.
            BackendError: the device failed, or its signature did not verify.
        """
        message = self.signing_input(header, payload)
        return self.seal(message, self.sign(message))

    def signing_input(self, header: Mapping[str, Any], payload: bytes) -> bytes:
        """``BASE64URL(header).BASE64URL(payload)``. ``alg`` and ``kid`` are set here and nowhere
        else.

        Raises:
            ClaimRejected: as ``compact``.
        """
        known, head = self._last_head  # the tokens of a keyset rarely differ in it
        if header != known:
            head = self._encode(header)
            self._last_head = (dict(header), head)
        return head + b"." + urlsafe_b64encode(payload)

    def sign(self, message: bytes) -> bytes:
        """The device's signature, not to be released before ``seal`` has verified it.

        Raises:
            BackendError: the device failed.
        """
        return self._sign(message)

    def seal(self, message: bytes, signature: bytes) -> str:
        """The token of a signing input and its signature, verified.

        Raises:
            BackendProtocolError: the public key does not verify it.
        """
        if not self._verify(message, signature):
            raise BackendProtocolError(
                "The backend returned a signature that its own public key does not verify. "
                "Nothing was released; check the device."
            )
        return (message + b"." + urlsafe_b64encode(signature)).decode("ascii")

    def _encode(self, header: Mapping[str, Any]) -> bytes:
        for name, value in header.items():
            if name not in _HEADERS or not isinstance(value, str) or len(value) > _MAX_MEDIA_TYPE:
                raise ClaimRejected(
                    "Only typ and cty, strings of at most "
                    f"{_MAX_MEDIA_TYPE} characters, go into the header.",
                    member=name[:64],
                )
        head: bytes = json_b64encode({**header, **self._ours})
        if len(head) > _MAX_HEADER_BYTES:
            raise ClaimRejected(
                f"The header would be longer than {_MAX_HEADER_BYTES} bytes.",
                member=max(header, key=lambda name: len(header[name])),
            )
        return head


def read_compact(token: str) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Split a compact JWS into header, payload, signing input and signature; verify nothing.

    Raises:
        InvalidRequest: not a compact JWS with a strict JSON header.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidRequest(f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
    try:
        head, body, tail = token.encode("ascii").split(b".")
        header = strictjson.loads(urlsafe_b64decode(head))
        payload, signature = urlsafe_b64decode(body), urlsafe_b64decode(tail)
    except (ValueError, TypeError, JoseError, MalformedJson) as error:
        raise InvalidRequest("The token is not a compact JWS (RFC 7515 section 7.1).") from error
    if not isinstance(header, dict):
        raise InvalidRequest("The token's header is not a JSON object.")
    return header, payload, head + b"." + body, signature
