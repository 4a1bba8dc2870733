"""The clients: each with the cache that it has by default."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Protocol

import jwt
from joserfc import jwt as joserfc_jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from proof.plan import AUDIENCE

_JWKS = "/.well-known/jwks.json"
_FETCH_TIMEOUT = 5.0  # seconds, as jose's default


class RefusedToken(Exception):
    """With the client's own words."""


class Verifier(Protocol):
    """For one thread."""

    name: str

    def verify(self, token: str) -> None:
        """
        Raises:
            RefusedToken
        """

    def close(self) -> None: ...


class PyJwt:
    """PyJWKClient: caches 300 s, fetches again for an unknown kid after 30 s at the earliest."""

    def __init__(self, name: str, url: str, issuer: str) -> None:
        self.name, self._issuer = name, issuer
        self._client = jwt.PyJWKClient(url + _JWKS)

    def verify(self, token: str) -> None:
        try:
            key = self._client.get_signing_key_from_jwt(token)
            jwt.decode(token, key, algorithms=["ES256"], issuer=self._issuer, audience=AUDIENCE)
        except jwt.PyJWTError as error:
            raise RefusedToken(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Holds nothing open."""


class Joserfc:
    """joserfc has no cache. This one keeps a set for ``max_age`` seconds (0: a verifier that was
    just started, every time) and fetches at once for an unknown kid."""

    def __init__(self, name: str, url: str, issuer: str, max_age: float) -> None:
        self.name, self._url, self._max_age = name, url + _JWKS, max_age
        self._claims = joserfc_jwt.JWTClaimsRegistry(iss={"essential": True, "value": issuer})
        self._keys: KeySet | None = None
        self._fetched = 0.0

    def verify(self, token: str) -> None:
        try:
            decoded = self._decode(token)
            self._claims.validate(decoded.claims)
        except (JoseError, OSError, ValueError) as error:
            raise RefusedToken(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Holds nothing open."""

    def _decode(self, token: str) -> joserfc_jwt.Token:
        keys = self._keys
        if keys is None or time.monotonic() - self._fetched >= self._max_age:
            keys = self._fetch()
        try:
            return joserfc_jwt.decode(token, keys, algorithms=["ES256"])
        except InvalidKeyIdError:
            return joserfc_jwt.decode(token, self._fetch(), algorithms=["ES256"])

    def _fetch(self) -> KeySet:
        with urllib.request.urlopen(self._url, timeout=_FETCH_TIMEOUT) as answer:  # noqa: S310  # loopback
            keys = KeySet.import_key_set(json.load(answer))
        self._keys, self._fetched = keys, time.monotonic()
        return keys


class NodeJose:
    """jose's createRemoteJWKSet in one long-lived node process: caches 600 s, fetches again for an
    unknown kid after 30 s at the earliest."""

    def __init__(self, name: str, url: str, issuer: str) -> None:
        self.name = name
        self._process = subprocess.Popen(  # noqa: S603  # our own program
            ["node", Path(__file__).with_name("verifier.mjs"), url + _JWKS, issuer],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def verify(self, token: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(token + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise RefusedToken("node ended; see its standard error")
        verdict = json.loads(line)
        if not verdict["ok"]:
            raise RefusedToken(f"{verdict.get('code')}: {verdict['message']}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)
