"""Fetches the public keys of a trusted issuer, from addresses that the configuration gives."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import urllib3

from kmsjwks.config import OidcSettings
from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import MalformedJson

_DISCOVERY = "/.well-known/openid-configuration"  # OpenID Connect Discovery 1.0 section 4
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAX_BYTES = 256 * 1024
_CHUNK = 16 * 1024


class FetchFailed(Exception):
    """With the reason, for the log."""


class JwksFetcher:
    """No redirects, no proxies of the environment, no URL but the configured ones and the
    ``jwks_uri`` of the issuer's own metadata."""

    def __init__(self, settings: OidcSettings, timeout: float = 3.0) -> None:
        """``timeout`` in seconds, for each of at most two answers."""
        self._settings, self._timeout = settings, timeout

    def __call__(self) -> list[Any]:
        """The members of ``keys``.

        Raises:
            FetchFailed
        """
        try:
            return self._keys()
        except FetchFailed:
            raise
        except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
            raise FetchFailed(f"they cannot be fetched: {type(error).__name__}.") from error

    def _keys(self) -> list[Any]:
        keys = self._object(self._settings.jwks_uri or self._discovered()).get("keys")
        if not isinstance(keys, list) or not keys:
            raise FetchFailed("the document is no JWK Set.")
        return keys

    def _discovered(self) -> str:
        issuer = self._settings.issuer
        metadata = self._object(issuer.rstrip("/") + _DISCOVERY)
        if metadata.get("issuer") != issuer:
            raise FetchFailed("the metadata is another issuer's.")
        uri = metadata.get("jwks_uri")
        if not isinstance(uri, str):
            raise FetchFailed("the metadata names no jwks_uri.")
        return uri

    def _object(self, url: str) -> dict[str, Any]:
        try:
            found = strictjson.loads(self._get(url))
        except MalformedJson as error:
            raise FetchFailed("the document is not JSON.") from error
        if not isinstance(found, dict):
            raise FetchFailed("the document is no JSON object.")
        return found

    def _get(self, url: str) -> bytes:
        self._check(url)
        settings, deadline = self._settings, time.monotonic() + self._timeout
        headers = {"Accept": "application/jwk-set+json, application/json"}
        if settings.token_file is not None:
            token = settings.token_file.read_text("ascii").strip()
            headers["Authorization"] = f"Bearer {token}"
        ca = str(settings.ca_file) if settings.ca_file is not None else None
        with urllib3.PoolManager(
            num_pools=1, timeout=self._timeout, retries=False, cert_reqs="REQUIRED", ca_certs=ca
        ) as pool:
            answer = pool.request(
                "GET", url, redirect=False, preload_content=False, headers=headers
            )
            try:
                return _body(answer, deadline)
            finally:
                answer.close()

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https":
            return
        if not (self._settings.allow_loopback_http and parts.hostname in _LOOPBACK):
            raise FetchFailed("their address is not https.")


def _body(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    if answer.status != 200:
        raise FetchFailed(f"the answer is {answer.status}.")
    body = b""
    while chunk := answer.read1(_CHUNK):
        body += chunk
        if len(body) > _MAX_BYTES:
            raise FetchFailed(f"the document has more than {_MAX_BYTES // 1024} KiB.")
        if time.monotonic() > deadline:
            raise FetchFailed("the document is sent too slowly.")
    return body
