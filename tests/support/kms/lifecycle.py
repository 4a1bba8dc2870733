"""Operations that create keys and change their state."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tests.support.kms.access import Access, Call, need_enabled, refuse_pending
from tests.support.kms.errors import AwsError, validation
from tests.support.kms.keys import SYMMETRIC, usages
from tests.support.kms.metadata import default_policy, metadata
from tests.support.kms.names import checked_tags
from tests.support.kms.store import DAY, Key, Settings, Store

Answer = dict[str, Any] | None


class Lifecycle:
    def __init__(self, store: Store, settings: Settings, access: Access) -> None:
        self._store, self._settings, self._access = store, settings, access

    def create_key(self, call: Call) -> Answer:
        asked = call.parameters
        self._access.authorize(call, None)
        if asked.get("Tags"):
            self._access.authorize(call, None, "TagResource")
        spec, usage = _spec_and_usage(asked)
        if asked.get("Origin", "AWS_KMS") != "AWS_KMS":
            raise AwsError("UnsupportedOperationException", "This fake makes AWS_KMS keys only.")
        policy = _policy(asked, self._settings.account)
        tags = checked_tags({}, asked.get("Tags", []))
        multi_region = asked.get("MultiRegion", False)
        key = Key(
            id=self._store.make_id(spec, multi_region), region=call.region,
            account=self._settings.account, spec=spec, usage=usage, created=self._store.now(),
            description=asked.get("Description", ""), policy=policy, tags=tags,
            multi_region=multi_region, primary_region=call.region,
        )  # fmt: skip
        self._store.keys[key.region, key.id] = key
        self._store.save()
        return {"KeyMetadata": metadata(self._store, key)}

    def describe_key(self, call: Call) -> Answer:
        return {"KeyMetadata": metadata(self._store, self._access.key(call, alias=True))}

    def get_key_policy(self, call: Call) -> Answer:
        return {"Policy": self._access.key(call).policy, "PolicyName": "default"}

    def enable_key(self, call: Call) -> Answer:
        return self._set_state(call, "Enabled")

    def disable_key(self, call: Call) -> Answer:
        return self._set_state(call, "Disabled")

    def _set_state(self, call: Call, state: str) -> Answer:
        key = self._access.key(call)
        refuse_pending(self._store, key, creating=True)
        key.state = state
        self._store.save()
        return None

    def schedule_key_deletion(self, call: Call) -> Answer:
        key = self._access.key(call)
        refuse_pending(self._store, key, creating=True)
        key.window = call.parameters.get("PendingWindowInDays", 30)
        answer = {"KeyId": key.arn, "PendingWindowInDays": key.window}
        if key.region == key.primary_region and len(self._store.relatives(key)) > 1:
            key.state = "PendingReplicaDeletion"
        else:
            key.state, key.deletion = "PendingDeletion", self._store.now() + key.window * DAY
            answer["DeletionDate"] = key.deletion
        self._store.save()
        return {**answer, "KeyState": key.state}

    def cancel_key_deletion(self, call: Call) -> Answer:
        key = self._access.key(call)
        if not key.state.startswith("Pending"):
            raise AwsError("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
        key.state, key.deletion = "Disabled", None
        self._store.save()
        return {"KeyId": key.arn}

    def replicate_key(self, call: Call) -> Answer:
        asked = call.parameters
        source = self._access.key(call)
        region: str = asked["ReplicaRegion"]
        there = replace(call, caller=replace(call.caller, region=region))
        self._access.authorize(there, None, "CreateKey")
        if asked.get("Tags"):
            self._access.authorize(there, None, "TagResource")
        self._need_primary(source)
        if (region, source.id) in self._store.keys:
            raise AwsError("AlreadyExistsException", f"{source.id} already exists in {region}.")
        now = self._store.now()
        replica = replace(
            source, region=region, created=now, description=asked.get("Description", ""),
            policy=_policy(asked, source.account), tags=checked_tags({}, asked.get("Tags", [])),
            creating_until=now + self._settings.creating_for,
        )  # fmt: skip
        self._store.keys[region, replica.id] = replica
        self._store.save()
        return {
            "ReplicaKeyMetadata": metadata(self._store, replica),
            "ReplicaPolicy": replica.policy,
            "ReplicaTags": [{"TagKey": k, "TagValue": v} for k, v in replica.tags.items()],
        }

    def update_primary_region(self, call: Call) -> Answer:
        """The change is at once; AWS's transient state Updating is left out."""
        key, region = self._access.key(call), call.parameters["PrimaryRegion"]
        self._need_primary(key)
        family = self._store.relatives(key)
        if region not in [other.region for other in family]:
            raise AwsError("NotFoundException", f"{key.id} has no replica in {region}.")
        for other in family:
            need_enabled(self._store, other)
        for other in family:
            other.primary_region = region
        self._store.save()
        return None

    def _need_primary(self, key: Key) -> None:
        if not key.multi_region:
            raise AwsError(
                "UnsupportedOperationException", f"{key.arn} is not a multi-region primary key."
            )
        if key.region != key.primary_region:
            raise AwsError("UnsupportedOperationException", f"{key.arn} is a replica key.")
        need_enabled(self._store, key)


def _spec_and_usage(asked: dict[str, Any]) -> tuple[str, str]:
    if "KeySpec" in asked and "CustomerMasterKeySpec" in asked:
        raise validation("You cannot specify KeySpec and CustomerMasterKeySpec in one request.")
    spec = asked.get("KeySpec") or asked.get("CustomerMasterKeySpec") or SYMMETRIC
    if not usages(spec):
        raise AwsError("UnsupportedOperationException", f"This fake makes no {spec} keys.")
    usage = asked.get("KeyUsage")
    if usage is None and spec != SYMMETRIC:
        raise validation("You must specify a KeyUsage value for an asymmetric KMS key.")
    usage = usage or "ENCRYPT_DECRYPT"
    if usage not in usages(spec):
        raise validation(f"KeyUsage {usage} is not compatible with KeySpec {spec}")
    return spec, usage


def _policy(asked: dict[str, Any], account: str) -> str:
    policy: str = asked.get("Policy", default_policy(account))
    try:
        json.loads(policy)
    except ValueError:
        raise AwsError("MalformedPolicyDocumentException", "Policy is not valid JSON.") from None
    return policy
