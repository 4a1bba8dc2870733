"""JWTs of trusted issuers, as bearer tokens: verified, then mapped to a configured client.

A key is never taken from a token nor from where a token points: a header that tries is refused.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import Key

from kmsjwks.config import OidcSettings
from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import MalformedJson
from kmsjwks.domain.ports import Clock
from kmsjwks.domain.principals import Ambiguous, TokenIdentity, owner
from kmsjwks.http.authentication.fetching import JwksFetcher
from kmsjwks.http.authentication.issuer_keys import IssuerKeys

_MAX_TOKEN = 16 * 1024  # characters
_SHOWN = 200  # characters of a claim in the log
# RFC 7515 sections 4.1.2, 4.1.3, 4.1.5, 4.1.6, 4.1.11 and RFC 7797.
_REFUSED_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64"})
_KEY_TYPE = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # by how alg begins
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    settings: OidcSettings
    keys: IssuerKeys

    @classmethod
    def of(cls, settings: OidcSettings) -> Self:
        return cls(settings, IssuerKeys(settings.issuer, JwksFetcher(settings)))


class _Refused(Exception):
    """With the reason, for the log."""


class _NobodysToken(_Refused):
    """Valid, which is for the operator to look at: the configuration may be wrong."""


class OidcTokens:
    """Thread-safe; fetches keys when the first token comes."""

    def __init__(
        self,
        issuers: Sequence[TrustedIssuer],
        identities: Sequence[tuple[TokenIdentity, Principal]],
        clock: Clock,
    ) -> None:
        self._issuers = {one.settings.issuer: one for one in issuers}
        self._identities = tuple(identities)
        self._clock = clock

    def principal_of(self, token: str) -> Principal | None:
        """
        Raises:
            Unavailable: the issuer's keys are not known yet.
        """
        if token.count(".") != 2:
            return None
        try:
            claims = self._verified(token)
            return self._owner(claims)
        except _Refused as reason:
            level = logging.WARNING if isinstance(reason, _NobodysToken) else logging.INFO
            _log.log(level, "A JWT was refused: %s", reason)
            return None

    def _owner(self, claims: Mapping[str, Any]) -> Principal:
        who = f"iss {claims['iss']}, sub {str(claims.get('sub'))[:_SHOWN]!r}"
        try:
            found = owner(client for one, client in self._identities if one.is_of(claims))
        except Ambiguous as names:
            raise _NobodysToken(
                f"it is valid, but of several clients: {names} ({who}). "
                "Make their oidc entries exclude each other."
            ) from None
        if found is None:
            raise _NobodysToken(
                f"it is valid, but of no client ({who}). Add it to a client's oidc."
            )
        return found

    def _verified(self, token: str) -> Mapping[str, Any]:
        if len(token) > _MAX_TOKEN or not token.isascii():
            raise _Refused("it is too long, or not ASCII.")
        header, claims = (_object(part) for part in token.split(".")[:2])
        issuer = self._issuers.get(str(claims.get("iss")))
        if issuer is None or not isinstance(claims["iss"], str):
            raise _Refused("its issuer is not trusted.")
        alg = _algorithm(header, issuer.settings)
        key = _key(header, alg, issuer.keys)
        try:
            jws.deserialize_compact(token, key, registry=_registry(alg))
        except (JoseError, ValueError) as error:
            raise _Refused(f"its signature is not valid ({type(error).__name__}).") from error
        _check_claims(claims, issuer.settings, self._clock.now())
        return claims


def _registry(alg: str) -> jws.JWSRegistry:
    """One that ignores header parameters that it does not know (RFC 7515 section 4); those that
    may not be there are refused before."""
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    registry.max_header_length = _MAX_TOKEN
    return registry


def _object(part: str) -> Mapping[str, Any]:
    try:
        # Strictly, so that there is one reading of it only.
        text = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        found = strictjson.loads(text)
    except (binascii.Error, ValueError, MalformedJson) as error:
        raise _Refused("it is not a JWT.") from error
    if not isinstance(found, dict):
        raise _Refused("it is not a JWT.")
    return found


def _algorithm(header: Mapping[str, Any], settings: OidcSettings) -> str:
    if _REFUSED_HEADERS & header.keys():
        raise _Refused("its header brings a key, or an extension, along.")
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in settings.algorithms:
        raise _Refused("its alg is not one of the issuer's algorithms.")
    return alg


def _key(header: Mapping[str, Any], alg: str, keys: IssuerKeys) -> Key:
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= 256):
        raise _Refused("its kid is no kid.")
    fitting = [key for key in keys.find(kid) if _fits(key, alg)]
    if len(fitting) != 1:
        raise _Refused("its kid names no key of the issuer, or none for its alg.")
    return fitting[0]


def _fits(key: Key, alg: str) -> bool:
    return (
        key.key_type == _KEY_TYPE[alg[:2]]
        and key.get("alg", alg) == alg
        and key.get("crv", _CURVES.get(alg)) == _CURVES.get(alg, key.get("crv"))
    )


def _check_claims(claims: Mapping[str, Any], settings: OidcSettings, now: float) -> None:
    """RFC 7519 section 4.1; a token without ``exp`` is refused."""
    leeway = settings.leeway
    exp = _time(claims, "exp")
    if exp is None or exp + leeway <= now:
        raise _Refused("it has expired, or has no exp.")
    for name in ("nbf", "iat"):
        begins = _time(claims, name)
        if begins is not None and begins - leeway > now:
            raise _Refused(f"its {name} is in the future.")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(one in settings.audiences for one in audiences if isinstance(one, str)):
        raise _Refused("it is for another audience.")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Seconds since the epoch; None where the claim is missing."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"its {name} is no number.")
    return value
