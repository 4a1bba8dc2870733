"""Dispatch: one KMS call from its target and body to its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.support.kms.access import Access, Call, Caller
from tests.support.kms.errors import AwsError
from tests.support.kms.faults import Calls
from tests.support.kms.lifecycle import Lifecycle
from tests.support.kms.model import ServiceModel
from tests.support.kms.names import Names
from tests.support.kms.signing import Signing
from tests.support.kms.store import Settings, Store

Operation = Callable[[Call], dict[str, Any] | None]


class Api:
    def __init__(self, store: Store, settings: Settings, calls: Calls) -> None:
        self._store, self._model = store, ServiceModel()
        self.access = Access(store, settings)
        lifecycle, names = (
            Lifecycle(store, settings, self.access),
            Names(store, settings, self.access),
        )
        signing = Signing(store, self.access, calls)
        self._operations: Mapping[str, Operation] = {
            "CancelKeyDeletion": lifecycle.cancel_key_deletion,
            "CreateAlias": names.create_alias,
            "CreateKey": lifecycle.create_key,
            "DeleteAlias": names.delete_alias,
            "DescribeKey": lifecycle.describe_key,
            "DisableKey": lifecycle.disable_key,
            "EnableKey": lifecycle.enable_key,
            "GetKeyPolicy": lifecycle.get_key_policy,
            "GetPublicKey": signing.get_public_key,
            "ListAliases": names.list_aliases,
            "ListKeys": names.list_keys,
            "ListResourceTags": names.list_resource_tags,
            "ReplicateKey": lifecycle.replicate_key,
            "ScheduleKeyDeletion": lifecycle.schedule_key_deletion,
            "Sign": signing.sign,
            "TagResource": names.tag_resource,
            "UntagResource": names.untag_resource,
            "UpdateAlias": names.update_alias,
            "UpdatePrimaryRegion": lifecycle.update_primary_region,
        }

    def answer(self, operation: str, caller: Caller, body: object) -> dict[str, Any] | None:
        """:raises AwsError: what AWS would answer instead."""
        with self._store.lock:
            self.access.authenticate(caller)
            if caller.service != "kms":
                message = f"Credential should be scoped to correct service: 'kms'. {caller.service}"
                raise AwsError("InvalidSignatureException", message)
            if operation not in self._operations:
                raise AwsError("UnknownOperationException", f"This fake has no {operation}.")
            call = Call(operation, caller, self._model.parameters(operation, body))
            if self._store.has_due():
                self._store.settle()
            return self._operations[operation](call)
