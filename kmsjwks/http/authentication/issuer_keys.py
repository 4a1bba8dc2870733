"""The public keys of a trusted issuer, kept, and fetched again without a storm."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, RSAKey

from kmsjwks.domain.errors import Unavailable
from kmsjwks.http.authentication.fetching import FetchFailed

FETCH_GAP = 30.0  # seconds between two fetches, whatever is asked for
FRESH_FOR = 300.0  # seconds until keys that serve well are fetched again
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
_KEY_TYPES = ("RSA", "EC", "OKP")
_MIN_RSA_BITS = 2048

Keys = Mapping[str | None, tuple[Key, ...]]
_log = logging.getLogger(__name__)


class IssuerKeys:
    """Thread-safe; starts with none. What was fetched once stays while nothing newer can be."""

    def __init__(
        self,
        issuer: str,
        fetch: Callable[[], list[Any]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``fetch`` returns JWKs and raises ``FetchFailed``."""
        self._issuer, self._fetch, self._monotonic = issuer, fetch, monotonic
        self._keys: Keys | None = None
        self._fetched_at = self._tried_at = -float("inf")
        self._fetching = threading.Lock()

    def find(self, kid: str | None) -> tuple[Key, ...]:
        """The keys of this kid, all of them for None; fetches where that may help, one thread at a
        time and at most every ``FETCH_GAP`` seconds.

        Raises:
            Unavailable: no keys are known yet.
        """
        keys = self._keys
        if keys is not None and kid in keys:
            if self._monotonic() - self._fetched_at > FRESH_FOR:
                self._refresh_aside()
            return keys[kid]
        if self._begin():
            self._refresh()
        keys = self._keys
        if keys is None:
            raise Unavailable(
                "The service cannot tell yet who the token's issuer says you are. Try again.",
                retry_after=FETCH_GAP,
            )
        return keys.get(kid, ())

    def _begin(self) -> bool:
        """Whether this thread is to fetch; others use what is there."""
        if self._monotonic() - self._tried_at < FETCH_GAP:
            return False
        if not self._fetching.acquire(blocking=False):
            return False
        if self._monotonic() - self._tried_at < FETCH_GAP:  # another one was faster
            self._fetching.release()
            return False
        self._tried_at = self._monotonic()
        return True

    def _refresh_aside(self) -> None:
        """Nobody waits for what is only to be on the safe side."""
        if self._begin():
            threading.Thread(target=self._refresh, name="kmsjwks-issuer-keys", daemon=True).start()

    def _refresh(self) -> None:
        try:
            keys = _usable(self._fetch())
            if not keys:
                raise FetchFailed("none of them can be used.")
            self._keys, self._fetched_at = keys, self._monotonic()
        except FetchFailed as error:
            _log.warning("The keys of the issuer %s: %s", self._issuer, error)
        finally:
            self._fetching.release()


def _usable(jwks: list[Any]) -> Keys:
    """By kid; under None all of them. What cannot be used is left out, as RFC 7517 section 5 has
    it."""
    found: dict[str | None, list[Key]] = {}
    for jwk in jwks:
        key = _import(jwk)
        if key is None:
            continue
        found.setdefault(None, []).append(key)
        if isinstance(jwk.get("kid"), str):
            found.setdefault(jwk["kid"], []).append(key)
    return MappingProxyType({kid: tuple(keys) for kid, keys in found.items()})


def _import(jwk: Any) -> Key | None:
    if not isinstance(jwk, dict) or jwk.get("kty") not in _KEY_TYPES or _PRIVATE & jwk.keys():
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if jwk.get("use", "sig") != "sig":
        return None
    try:
        key: Key = JWKRegistry.import_key(jwk)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey) and key.public_key.key_size < _MIN_RSA_BITS:
        return None
    return key
