"""GetPublicKey and Sign."""

from __future__ import annotations

import base64
from typing import Any

from tests.support.kms import keys
from tests.support.kms.access import Access, Call, need_enabled
from tests.support.kms.errors import AwsError
from tests.support.kms.faults import Calls
from tests.support.kms.metadata import algorithms
from tests.support.kms.store import Key, Store

Answer = dict[str, Any] | None


class Signing:
    def __init__(self, store: Store, access: Access, calls: Calls) -> None:
        self._store, self._access, self._calls = store, access, calls

    def get_public_key(self, call: Call) -> Answer:
        key = self._access.key(call, alias=True)
        if key.spec == keys.SYMMETRIC:
            message = f"{key.arn} is a symmetric key and has no public key."
            raise AwsError("UnsupportedOperationException", message)
        need_enabled(self._store, key)
        return {
            "KeyId": key.arn,
            "PublicKey": base64.b64encode(keys.spki(self._store.material(key))).decode(),
            "CustomerMasterKeySpec": key.spec,
            "KeySpec": key.spec,
            "KeyUsage": key.usage,
            **algorithms(key),
        }

    def sign(self, call: Call) -> Answer:
        asked = call.parameters
        key = self._usable(call)
        message_type, algorithm = asked.get("MessageType", "RAW"), asked["SigningAlgorithm"]
        made = keys.sign(self._store.material(key), algorithm, message_type, asked["Message"])
        dry_run = asked.get("DryRun", False)
        self._calls.signed(
            {"asked": asked["KeyId"], "key": key.arn, "region": key.region,
             "algorithm": algorithm, "message_type": message_type,
             "length": len(asked["Message"]), "dry_run": dry_run}
        )  # fmt: skip
        if dry_run:
            message = "The request would have succeeded, but the DryRun option is set."
            raise AwsError("DryRunOperationException", message, 412)
        return {
            "KeyId": key.arn,
            "Signature": base64.b64encode(made).decode(),
            "SigningAlgorithm": algorithm,
        }

    def _usable(self, call: Call) -> Key:
        key, algorithm = self._access.key(call, alias=True), call.parameters["SigningAlgorithm"]
        if key.usage != "SIGN_VERIFY":
            message = f"{key.arn} key usage is {key.usage} which is not valid for {call.operation}."
            raise AwsError("InvalidKeyUsageException", message)
        if algorithm not in keys.signing_algorithms(key.spec):
            message = f"Algorithm {algorithm} is incompatible with key spec {key.spec}."
            raise AwsError("InvalidKeyUsageException", message)
        need_enabled(self._store, key)
        return key
