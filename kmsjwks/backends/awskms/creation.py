"""Making keys so that one request gives one key, however often it is made and wherever it broke."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from kmsjwks.backends.awskms.arns import KeyArn
from kmsjwks.backends.awskms.failures import AlreadyExists, KeyNotReady, may_be_done
from kmsjwks.backends.awskms.inventory import Inventory, refuse_pending
from kmsjwks.backends.awskms.keycalls import KeyCalls
from kmsjwks.backends.awskms.metadata import KeyMetadata, key_metadata
from kmsjwks.backends.awskms.naming import Label
from kmsjwks.backends.awskms.patience import Patience
from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import (
    BackendError,
    BackendUnavailable,
    KeyNotFound,
    UnsupportedAlgorithm,
    WrongAccount,
)
from kmsjwks.domain.jwk import key_id
from kmsjwks.domain.ports import BackendKey

_log = logging.getLogger(__name__)
# A new key is there at once as a rule; a replica takes some seconds (state Creating).
_KEY_SECONDS = 20.0
_REPLICA_SECONDS = 60.0
_DOUBT_SECONDS = 30.0  # AWS KMS shows a new key after seconds as a rule


class Creation:
    """Thread-safe. Processes must not make the same request at once: KMS has no idempotency token
    for CreateKey, so the caller's lock is what keeps them apart."""

    def __init__(self, calls: KeyCalls, inventory: Inventory, patience: Patience) -> None:
        self._calls, self._inventory, self._patience = calls, inventory, patience
        self._one_at_a_time = Lock()
        self._doubtful: dict[str, float] = {}  # until when (clock), by request id
        self._account_is_right = False

    def ensure(self, alg: Algorithm, label: Label) -> BackendKey:
        """The key of ``label``'s request, with its replicas and aliases.

        Raises:
            UnsupportedAlgorithm: the request made a key for another algorithm before.
            BackendUnavailable: home or a replica Region does not answer; the same request again
                completes the key.
        """
        with self._one_at_a_time:
            found = self._inventory.find(label.request_id)
            if found is None:
                home = self._create(alg, label)
            else:
                metadata, made = found
                if made.alg != alg.id:
                    raise UnsupportedAlgorithm(
                        f"This request_id made a {made.alg} key before; it cannot make {alg.id}."
                    )
                home, label = metadata.primary, made
            return self._complete(home, label)

    def _create(self, alg: Algorithm, label: Label) -> KeyArn:
        params = {
            "KeySpec": alg.kms_key_spec,
            "KeyUsage": "SIGN_VERIFY",
            "Origin": "AWS_KMS",
            "MultiRegion": self._calls.settings.multi_region,
            "Description": label.description(),
            "Tags": label.tags(),
        }
        self._refuse_wrong_account()
        self._refuse_doubtful(label)
        try:
            answer = self._control("CreateKey", params, f"creating a {alg.kms_key_spec} key")
        except BackendError as error:
            return self._perhaps_made(label, error)
        arn = key_metadata(answer).arn
        self._inventory.learn(arn, label)
        _log.info("AWS KMS made the key %s for %s.", arn, label.keyset or "no keyset")
        return arn

    def _perhaps_made(self, label: Label, error: BackendError) -> KeyArn:
        """The key, where only the answer was lost; never asked for twice in a row."""
        if not may_be_done(error):
            raise error
        self._doubtful[label.request_id] = self._patience.clock() + _DOUBT_SECONDS
        found = self._inventory.find(label.request_id)
        if found is None:
            raise error
        return found[0].primary

    def _refuse_doubtful(self, label: Label) -> None:
        """
        Raises:
            BackendUnavailable: a moment ago AWS KMS did not say whether it made this key. It shows
                a new key late, so that one more would be made in its place.
        """
        left = self._doubtful.get(label.request_id, 0.0) - self._patience.clock()
        if left > 0:
            raise BackendUnavailable(
                "AWS KMS did not say whether it made the key, and does not show it yet. Try again "
                f"in {left:.0f} seconds.",
                retry_after=left,
            )
        self._doubtful.pop(label.request_id, None)

    def _refuse_wrong_account(self) -> None:
        """Once a process, before a key is made where it does not belong.

        Raises:
            WrongAccount: the credentials are of another account than the configured one.
            BackendError: neither the list of keys nor AWS STS says which they are of.
        """
        wanted = self._calls.settings.account
        if wanted is None or self._account_is_right:
            return
        account = self._inventory.account() or str(self._calls.regions.caller().get("Account"))
        if account != wanted:
            raise WrongAccount(
                f"The credentials belong to the account {account}, and the backend "
                f"{self._calls.settings.name} is configured for {wanted}. No key was made. Use "
                "credentials of that account, or change account."
            )
        self._account_is_right = True

    def _control(
        self, operation: str, params: Mapping[str, Any], doing: str, region: str | None = None
    ) -> dict[str, Any]:
        return self._patience.unthrottled(
            lambda: self._calls.regions.call(operation, params, doing=doing, region=region)
        )

    def _complete(self, home: KeyArn, label: Label) -> BackendKey:
        """Everything that a crash may have left undone."""
        self._calls.locate(str(home))
        self._wait_enabled(home, _KEY_SECONDS)
        key = self._patience.until(
            lambda: self._readable(home),
            _KEY_SECONDS,
            f"AWS KMS made the key {home} and does not give its public key yet. Try again.",
        )
        for replica in self._replicas(home, label):
            self._name(replica, label, key)
        self._name(home, label, key)
        return key

    def _readable(self, arn: KeyArn) -> BackendKey | None:
        try:
            return self._inventory.read(str(arn))
        except (KeyNotFound, KeyNotReady):
            return None

    def _wait_enabled(self, arn: KeyArn, seconds: float) -> None:
        def enabled() -> KeyMetadata | None:
            try:
                metadata = self._calls.describe_there(arn)
            except KeyNotFound:  # not known to all servers yet
                return None
            refuse_pending(metadata)
            # A key that somebody disabled is adopted as it is: signing says so.
            return metadata if metadata.state in ("Enabled", "Disabled", "Updating") else None

        self._patience.until(
            enabled, seconds, f"AWS KMS is still making the key {arn}. Try again in a minute."
        )

    def _replicas(self, home: KeyArn, label: Label) -> list[KeyArn]:
        """One in each configured Region, usable."""
        if not home.multi_region:
            return []
        there = {replica.region for replica in self._calls.describe_there(home).replicas}
        wanted = [
            home.in_region(region)
            for region in self._calls.settings.regions
            if region != home.region
        ]
        for replica in wanted:
            if replica.region not in there:
                params = {
                    "KeyId": str(home),
                    "ReplicaRegion": replica.region,
                    "Description": label.description(),
                    "Tags": label.tags(),
                }
                doing = f"replicating a key to {replica.region}"
                with suppress(AlreadyExists):
                    self._control("ReplicateKey", params, doing, home.region)
        for replica in wanted:
            self._wait_enabled(replica, _REPLICA_SECONDS)
        return wanted

    def _name(self, arn: KeyArn, label: Label, key: BackendKey) -> None:
        alias = label.alias(key_id(key.spki, key.alg))
        params = {"AliasName": alias, "TargetKeyId": str(arn)}
        with suppress(AlreadyExists):
            self._control("CreateAlias", params, "naming a key", arn.region)
