"""Whether a key is in the JWKS as verifiers get it: through the public URL, caches included."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import urllib3

from kmsjwks.domain.documents import JWKS_NAME, is_key_of_its_kid, parse_jwks
from kmsjwks.domain.errors import KmsJwksError
from kmsjwks.domain.keys import Keyset

_MAX_BYTES = 256 * 1024
_CHUNK = 16 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sighting:
    """``reason`` says in words for an operator why the key was not seen; empty where it was."""

    visible: bool
    reason: str = ""


class _NotSeen(Exception):
    """With the reason."""


class PublicJwks:
    """The gate before an activation. Thread-safe; needs no session and keeps none.

    Asks as a verifier does: what a cache holds is the point, so none is told to revalidate.
    Redirects are not followed, because verifiers do not follow them. Proxies from the environment
    are not used.
    """

    def __init__(self, timeout: float = 2.0) -> None:
        """``timeout`` in seconds, for the whole answer, name resolution included."""
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: set[str] = set()  # URLs

    def __call__(self, keyset: Keyset, kid: str) -> bool:
        """Whether the issuer's JWKS holds the key; logs why not. Never raises."""
        return self.look(keyset, kid).visible

    def look(self, keyset: Keyset, kid: str) -> Sighting:
        """As a call, with the reason. Never raises."""
        url = f"{keyset.rules.issuer}/{JWKS_NAME}"
        try:
            _check(self._within_timeout(url), keyset, kid)
        except _NotSeen as missing:
            _log.warning("Key %s of keyset %s at %s: %s", kid, keyset.name, url, missing)
            return Sighting(False, f"{url}: {missing}")
        return Sighting(True)

    def _within_timeout(self, url: str) -> bytes:
        """In a thread of its own: neither name resolution nor a server that sends a byte a second
        heeds a socket's timeout. One thread a URL at most."""
        with self._lock:
            if url in self._running:
                raise _NotSeen("the last attempt has not come back yet.")
            self._running.add(url)
        outcome: list[bytes | _NotSeen] = []
        thread = threading.Thread(
            target=self._run, args=(url, outcome), name="kmsjwks-visibility", daemon=True
        )
        thread.start()
        thread.join(self._timeout)
        if not outcome:
            raise _NotSeen(f"no complete answer within {self._timeout:g} s.")
        if isinstance(outcome[0], _NotSeen):
            raise outcome[0]
        return outcome[0]

    def _run(self, url: str, outcome: list[bytes | _NotSeen]) -> None:
        try:
            outcome.append(_fetch(url, self._timeout))
        except _NotSeen as missing:
            outcome.append(missing)
        except Exception as error:  # whatever the network stack raises is a reason, not a crash
            outcome.append(_NotSeen(f"it cannot be fetched: {type(error).__name__}."))
        finally:
            with self._lock:
                self._running.discard(url)


def _fetch(url: str, timeout: float) -> bytes:
    """Of a server that sends slowly, at most ``timeout`` seconds longer than its headers take."""
    with urllib3.PoolManager(num_pools=1, timeout=timeout, retries=False) as pool:
        answer = pool.request(
            "GET",
            url,
            redirect=False,
            preload_content=False,
            headers={"Accept": "application/jwk-set+json, application/json"},
        )
        try:
            _check_headers(answer)
            return _body(answer, time.monotonic() + timeout)
        finally:
            answer.close()


def _check_headers(answer: urllib3.BaseHTTPResponse) -> None:
    if 300 <= answer.status < 400:
        raise _NotSeen(
            f"it answers with a redirect ({answer.status}), which verifiers do not follow. "
            "Serve the document at this very address."
        )
    if answer.status != 200:
        raise _NotSeen(f"it answers {answer.status}.")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _NotSeen("it is compressed although that was not asked for.")


def _body(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    body = b""
    while chunk := answer.read1(_CHUNK):
        body += chunk
        if len(body) > _MAX_BYTES:
            raise _NotSeen(f"it has more than {_MAX_BYTES // 1024} KiB.")
        if time.monotonic() > deadline:
            raise _NotSeen("it is sent too slowly.")
    return body


def _check(body: bytes, keyset: Keyset, kid: str) -> None:
    try:
        keys = parse_jwks(body)
    except KmsJwksError as error:
        raise _NotSeen(f"it is no JWKS to go by. {error}") from error
    found = next((key for key in keys if key.get("kid") == kid), None)
    if found is None:
        raise _NotSeen(
            f"the key is not among its {len(keys)} keys. A cache before the service may serve an "
            "older document; purge it or wait for it to expire."
        )
    # The kid is a thumbprint: where it matches, these are our public components.
    if not is_key_of_its_kid(found):
        raise _NotSeen("another key is there under its kid. Find out who changes the document.")
    if found.get("alg", keyset.algorithm.jose) != keyset.algorithm.jose:
        raise _NotSeen("its alg is not the keyset's. Find out who changes the document.")
    if found.get("use", "sig") != "sig":
        raise _NotSeen("it is not published for signatures. Find out who changes the document.")
