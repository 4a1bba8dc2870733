"""KeyMetadata as DescribeKey, CreateKey and ReplicateKey answer it."""

from __future__ import annotations

import json
from typing import Any

from tests.support.kms.keys import SYMMETRIC, signing_algorithms
from tests.support.kms.store import Key, Store


def metadata(store: Store, key: Key) -> dict[str, Any]:
    state = store.state(key)
    answer: dict[str, Any] = {
        "AWSAccountId": key.account,
        "Arn": key.arn,
        "CreationDate": round(key.created, 3),
        "CustomerMasterKeySpec": key.spec,
        "Description": key.description,
        "Enabled": state == "Enabled",
        "KeyId": key.id,
        "KeyManager": "CUSTOMER",
        "KeySpec": key.spec,
        "KeyState": state,
        "KeyUsage": key.usage,
        "MultiRegion": key.multi_region,
        "Origin": "AWS_KMS",
        **algorithms(key),
    }
    if state == "PendingDeletion":
        answer["DeletionDate"] = key.deletion
    if state == "PendingReplicaDeletion":
        answer["PendingDeletionWindowInDays"] = key.window
    if key.multi_region:
        answer["MultiRegionConfiguration"] = _family(store, key)
    return answer


def algorithms(key: Key) -> dict[str, list[str]]:
    if key.usage == "SIGN_VERIFY":
        return {"SigningAlgorithms": list(signing_algorithms(key.spec))}
    if key.usage == "KEY_AGREEMENT":
        return {"KeyAgreementAlgorithms": ["ECDH"]}
    if key.spec == SYMMETRIC:
        return {"EncryptionAlgorithms": [SYMMETRIC]}
    return {"EncryptionAlgorithms": ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]}


def _family(store: Store, key: Key) -> dict[str, Any]:
    entries = {other.region: {"Arn": other.arn, "Region": other.region}
               for other in store.relatives(key)}  # fmt: skip
    primary = entries.pop(key.primary_region)
    is_primary = key.region == key.primary_region
    return {
        "MultiRegionKeyType": "PRIMARY" if is_primary else "REPLICA",
        "PrimaryKey": primary,
        "ReplicaKeys": list(entries.values()),
    }


def default_policy(account: str) -> str:
    statement = {
        "Sid": "Enable IAM User Permissions",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]})
