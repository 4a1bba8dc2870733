"""Who calls the fake, which key a KeyId names, and what is denied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.support.kms.errors import AwsError, not_authorized
from tests.support.kms.store import Key, Settings, Store

_CREDENTIAL = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<id>[^/,]+)/\d{8}/(?P<region>[^/]+)/(?P<service>\w+)/"
    r"aws4_request, ?SignedHeaders=[^,]+, ?Signature=[0-9a-f]{64}"
)
_KEY_ID = re.compile(r"(mrk-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_ARN = re.compile(r"arn:aws:kms:(?P<region>[^:]*):(?P<account>[^:]*):(?P<rest>(key|alias)/.+)")

# Operations that work on a key of another account; the rest look in the caller's only.
_CROSS_ACCOUNT = frozenset({"DescribeKey", "GetPublicKey", "Sign"})


@dataclass(frozen=True)
class Caller:
    """From the credential scope of a Signature Version 4 header; the HMAC itself is not checked."""

    access_key: str
    region: str
    service: str


@dataclass(frozen=True)
class Call:
    operation: str
    caller: Caller
    parameters: dict[str, Any]

    @property
    def region(self) -> str:
        return self.caller.region


def caller(authorization: str | None) -> Caller:
    if authorization is None:
        raise AwsError("MissingAuthenticationTokenException", "Missing Authentication Token")
    match = _CREDENTIAL.fullmatch(authorization)
    if match is None:
        raise AwsError(
            "IncompleteSignatureException",
            "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature'.",
        )
    return Caller(match["id"], match["region"], match["service"])


class Access:
    """Use it under the store's lock."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings

    @property
    def user(self) -> str:
        return f"arn:aws:iam::{self._settings.account}:user/tests"

    def authenticate(self, who: Caller) -> None:
        sts = who.service == "sts"
        if who.access_key in self._settings.expired_access_keys:
            raise AwsError(
                "ExpiredToken" if sts else "ExpiredTokenException",
                "The security token included in the request is expired",
                403 if sts else 400,
            )
        known = self._settings.access_keys
        if known is not None and who.access_key not in known:
            raise AwsError(
                "InvalidClientTokenId" if sts else "UnrecognizedClientException",
                "The security token included in the request is invalid.",
                403 if sts else 400,
            )

    def authorize(self, call: Call, resource: str | None, action: str | None = None) -> None:
        """Refuse what the deny list names, in the Region of the call."""
        name = f"kms:{action or call.operation}"
        for rule in self._settings.denied:
            if (
                rule["action"] in ("kms:*", name)
                and rule.get("region", "*") in ("*", call.region)
                and rule.get("resource", "*") in ("*", resource)
            ):
                raise not_authorized(self.user, name, resource)

    def key(self, call: Call, member: str = "KeyId", *, alias: bool = False) -> Key:
        """The key that ``member`` names, with the caller's permission checked.

        :param alias: whether the operation takes an alias too.
        """
        given: str = call.parameters[member]
        found = self._find(call, given, alias)
        self.authorize(call, found.arn)
        return found

    def _find(self, call: Call, given: str, alias: bool) -> Key:
        name = self._local(call, given) if given.startswith("arn:") else given
        if name.startswith("alias/"):
            if not alias:
                raise AwsError("NotFoundException", f"Invalid keyId '{given}'")
            entry = self._store.aliases.get((call.region, name))
            if entry is None:
                raise AwsError("NotFoundException", f"Alias {self.arn(call, name)} is not found.")
            name = entry.target
        elif not _KEY_ID.fullmatch(name):
            raise AwsError("NotFoundException", f"Invalid keyId '{given}'")
        found = self._store.keys.get((call.region, name))
        if found is None or self.is_late(call.operation, found):
            arn = self.arn(call, f"key/{name}")
            raise AwsError("NotFoundException", f"Key '{arn}' does not exist")
        return found

    def _local(self, call: Call, arn: str) -> str:
        match = _ARN.fullmatch(arn)
        if match is None:
            raise AwsError("InvalidArnException", f"Invalid arn {arn}")
        if match["region"] != call.region:
            raise AwsError("NotFoundException", f"Invalid arn {match['region']}")
        if match["account"] != self._settings.account:
            if call.operation in _CROSS_ACCOUNT:
                raise not_authorized(self.user, f"kms:{call.operation}", arn)
            raise AwsError("NotFoundException", f"Invalid arn {match['account']}")
        rest = match["rest"]
        return rest.removeprefix("key/")

    def arn(self, call: Call, name: str) -> str:
        return f"arn:aws:kms:{call.region}:{self._settings.account}:{name}"

    def is_late(self, operation: str, key: Key) -> bool:
        """Eventual consistency: whether ``operation`` does not know of ``key`` yet."""
        young = self._store.now() < key.created + self._settings.visible_after
        return young and operation in self._settings.late_operations


def need_enabled(store: Store, key: Key) -> None:
    """The rule for cryptographic operations and GetPublicKey.

    For a key pending deletion the key-state table of the developer guide allows
    DisabledException too; make that one with ``FakeKms.error``.
    """
    state = store.state(key)
    if state == "Disabled":
        raise AwsError("DisabledException", f"{key.arn} is disabled.")
    if state != "Enabled":
        raise AwsError("KMSInvalidStateException", f"{key.arn} is {_words(state)}.")


def refuse_pending(store: Store, key: Key, *, creating: bool = False) -> None:
    """For management operations that a scheduled deletion (or ``creating``) forbids."""
    state = store.state(key)
    if state.startswith("Pending") or (creating and state == "Creating"):
        raise AwsError("KMSInvalidStateException", f"{key.arn} is {_words(state)}.")


def _words(state: str) -> str:
    return {
        "PendingDeletion": "pending deletion",
        "PendingReplicaDeletion": "pending replica deletion",
    }.get(state, state.lower())
