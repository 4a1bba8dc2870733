"""moto's server with its KMS corrected where it differs from AWS (measured on moto 5.2.5).

Run it as ``python -m tests.support.kms.moto_corrections -H 127.0.0.1 -p PORT``. Left as moto has
it: no Ed25519, no ML-DSA, ids ``mrk-`` with hyphens, tags without limits, ListAliases in one page.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.kms.models import Key, KmsBackend, kms_backends
from moto.kms.responses import KmsResponse
from moto.server import main

from tests.support.kms import keys
from tests.support.kms.errors import AwsError

_MESSAGE_LIMIT = 4096  # bytes, API reference of Sign
_PAGE = {"list_keys": (100, 1000), "list_resource_tags": (50, 50)}  # default and largest Limit


def _error(code: str, message: str) -> JsonRESTError:
    return JsonRESTError(code, message)


def _key(response: KmsResponse) -> Key:
    """The key that KeyId names; moto takes ARNs in some operations only."""
    given: str = response._get_param("KeyId")
    response._validate_key_id(given)
    return response.kms_backend.describe_key(given)


def _need_enabled(key: Key) -> None:
    """Missing in moto, where a disabled or pending key signs."""
    if key.key_state == "Disabled":
        raise _error("DisabledException", f"{key.arn} is disabled.")
    if key.key_state != "Enabled":
        raise _error("KMSInvalidStateException", f"{key.arn} is pending deletion.")


def _refuse_pending(key: Key) -> None:
    if key.key_state.startswith("Pending"):
        raise _error("KMSInvalidStateException", f"{key.arn} is pending deletion.")


def sign(self: KmsResponse) -> str:
    """moto hashes a DIGEST again, has the largest PSS salt, no limit and no key states."""
    key, algorithm = _key(self), self._get_param("SigningAlgorithm")
    message = self._get_param("Message")
    if not 1 <= len(message) <= _MESSAGE_LIMIT:
        raise _error("ValidationException", "Member must have length between 1 and 4096")
    if key.key_usage != "SIGN_VERIFY":
        text = f"{key.arn} key usage is {key.key_usage} which is not valid for Sign."
        raise _error("InvalidKeyUsageException", text)
    if algorithm not in key.signing_algorithms:
        text = f"Algorithm {algorithm} is incompatible with key spec {key.key_spec}."
        raise _error("InvalidKeyUsageException", text)
    _need_enabled(key)
    private: keys.PrivateKey = key.private_key.private_key  # type: ignore[attr-defined]
    try:
        made = keys.sign(private, algorithm, self._get_param("MessageType") or "RAW", message)
    except AwsError as error:
        raise _error(error.code, error.message) from None
    encoded = base64.b64encode(made).decode()
    return json.dumps({"KeyId": key.arn, "Signature": encoded, "SigningAlgorithm": algorithm})


def get_public_key(self: KmsResponse) -> str:
    """moto has no KeySpec in the answer, a key id instead of the ARN, and no key states."""
    key = _key(self)
    _need_enabled(key)
    return json.dumps(
        {
            "KeyId": key.arn,
            "PublicKey": base64.b64encode(key.private_key.public_key()).decode(),
            "CustomerMasterKeySpec": key.key_spec,
            "KeySpec": key.key_spec,
            "KeyUsage": key.key_usage,
            "SigningAlgorithms": key.signing_algorithms,
        }
    )


def create_key(self: KmsResponse) -> str:
    """moto takes an asymmetric key without KeyUsage, and answers null for MultiRegion."""
    spec = self._get_param("KeySpec") or self._get_param("CustomerMasterKeySpec")
    usage = self._get_param("KeyUsage")
    if usage is None and spec not in (None, keys.SYMMETRIC):
        text = "You must specify a KeyUsage value for an asymmetric KMS key."
        raise _error("ValidationException", text)
    made = self.kms_backend.create_key(
        self._get_param("Policy"), usage or "ENCRYPT_DECRYPT", spec,
        self._get_param("Description"), self._get_param("Tags"),
        bool(self._get_param("MultiRegion")), self._get_param("Origin") or "AWS_KMS",
    )  # fmt: skip
    return json.dumps(made.to_dict())


def replicate_key(self: KmsResponse) -> str:
    """moto fails on ARNs, shares aliases and configuration with the copy, drops its tags."""
    source, region = _key(self), self._get_param("ReplicaRegion")
    if not source.multi_region:
        text = f"{source.arn} is not a multi-region key."
        raise _error("UnsupportedOperationException", text)
    _need_enabled(source)
    there = kms_backends[self.current_account][region]
    if source.id in there.keys:
        raise _error("AlreadyExistsException", f"{source.id} already exists in {region}.")
    replica = copy(source)
    replica.region, replica.aliases = region, {}
    replica.arn = source.arn.replace(f":{source.region}:", f":{region}:")
    entry = {"Arn": replica.arn, "Region": region}
    source.multi_region_configuration["ReplicaKeys"].append(entry)
    replica.multi_region_configuration = {
        **source.multi_region_configuration, "MultiRegionKeyType": "REPLICA"
    }  # fmt: skip
    there.keys[replica.id] = replica
    tags = self._get_param("Tags") or []
    there.tagger.tag_resource(replica.id, tags)
    answer = {
        "ReplicaKeyMetadata": replica.to_dict()["KeyMetadata"],
        "ReplicaPolicy": replica.policy,
        "ReplicaTags": tags,
    }
    return json.dumps(answer)


def schedule_key_deletion(self: KmsResponse) -> str:
    """moto fails on ARNs, takes any window and a second schedule, and answers half of it."""
    key, window = _key(self), self._get_param("PendingWindowInDays", 30)
    if not 7 <= window <= 30:
        text = f"PendingWindowInDays {window} must be between 7 and 30"
        raise _error("ValidationException", text)
    _refuse_pending(key)
    date = self.kms_backend.schedule_key_deletion(key.id, window)
    answer = {"KeyId": key.arn, "KeyState": key.key_state, "PendingWindowInDays": window}
    return json.dumps({**answer, "DeletionDate": date})


def cancel_key_deletion(self: KmsResponse) -> str:
    """moto fails on ARNs, and cancels what was never scheduled."""
    key = _key(self)
    if not key.key_state.startswith("Pending"):
        raise _error("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
    self.kms_backend.cancel_key_deletion(key.id)
    return json.dumps({"KeyId": key.arn})


def _switch(operation: str) -> Callable[[KmsResponse], str]:
    def switch(self: KmsResponse) -> str:
        """moto fails on ARNs and takes a key out of PendingDeletion."""
        key = _key(self)
        _refuse_pending(key)
        getattr(self.kms_backend, operation)(key.id)
        return json.dumps(None)

    return switch


def list_keys(self: KmsResponse) -> str:
    """moto ignores Limit and Marker."""
    found = sorted(self.kms_backend.list_keys(), key=lambda key: key.id)
    entries = [{"KeyId": key.id, "KeyArn": key.arn} for key in found]
    return _page(self, "list_keys", "Keys", entries)


def list_resource_tags(self: KmsResponse) -> str:
    """moto ignores Limit and Marker."""
    tags = self.kms_backend.list_resource_tags(_key(self).id)["Tags"]
    return _page(self, "list_resource_tags", "Tags", tags)


def _page(response: KmsResponse, operation: str, member: str, entries: Sequence[Any]) -> str:
    default, largest = _PAGE[operation]
    limit, marker = response._get_param("Limit", default), response._get_param("Marker")
    if not 1 <= limit <= largest:
        text = f"Limit {limit} must be between 1 and {largest}"
        raise _error("ValidationException", text)
    if marker is not None and not marker.isdigit():
        raise _error("InvalidMarkerException", "Could not deserialize the marker.")
    end = int(marker or 0) + limit
    page = {member: entries[end - limit : end], "Truncated": end < len(entries)}
    return json.dumps({**page, "NextMarker": str(end)} if page["Truncated"] else page)


def _checked_arn(validate: Callable[[KmsResponse, str], None]) -> Callable[..., None]:
    def check(self: KmsResponse, key_id: str) -> None:
        """moto looks at the end of an ARN only, whatever its Region and account."""
        if key_id.startswith("arn:"):
            _, _, _, region, account, _ = key_id.split(":", 5)
            if region != self.region:
                raise _error("NotFoundException", f"Invalid arn {region}")
            if account != self.current_account:
                text = f"The caller is not authorized to use {key_id} of another account"
                raise _error("AccessDeniedException", text)
        validate(self, key_id)

    return check


def _described(backend: KmsBackend, key_id: str) -> Key:
    """moto's own marks the primary as REPLICA too, once it has one."""
    return backend.keys[backend.any_id_to_key_id(key_id)]


def correct() -> None:
    """Replace moto's operations by the ones above, in this process."""
    for operation in (sign, get_public_key, create_key, replicate_key, schedule_key_deletion,
                      cancel_key_deletion, list_keys, list_resource_tags):  # fmt: skip
        setattr(KmsResponse, operation.__name__, operation)
    for name in ("enable_key", "disable_key"):
        setattr(KmsResponse, name, _switch(name))
    for name in ("_validate_cmk_id", "_validate_alias"):
        setattr(KmsResponse, name, _checked_arn(getattr(KmsResponse, name)))
    KmsBackend.describe_key = _described  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    correct()
    main()
