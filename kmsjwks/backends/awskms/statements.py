"""The statements that the IAM policies of this backend are put together from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kmsjwks.domain.algorithms import ALGORITHMS

Statement = dict[str, Any]

TAG_KEYS = tuple(f"kmsjwks:{name}" for name in ("alg", "installation", "keyset", "request-id"))
INSTALLATION_TAG = "kmsjwks:installation"
_REPLICATION_SERVICE = "mrk.kms.amazonaws.com"

# What no role of ours ever calls, and what would turn any of them into an owner of the keys.
_NEVER = (
    "kms:CreateGrant",
    "kms:DeleteAlias",
    "kms:DeleteImportedKeyMaterial",
    "kms:GetParametersForImport",
    "kms:ImportKeyMaterial",
    "kms:PutKeyPolicy",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdatePrimaryRegion",
)


@dataclass(frozen=True, slots=True)
class Scope:
    """What the policies are for. ``regions``: the first one holds the primary keys.

    ``deletion_window_days``: the shortest waiting window that a deletion may have, 7 to 30.
    """

    account: str
    regions: tuple[str, ...]
    installation: str
    multi_region: bool = False
    deletion_window_days: int = 30
    partition: str = "aws"

    def arns(self, resource: str) -> list[str]:
        return [f"arn:{self.partition}:kms:{r}:{self.account}:{resource}" for r in self.regions]

    def role(self, name: str) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{name}"


def _allow(
    sid: str, actions: str | list[str], resource: str | list[str], condition: dict[str, Any]
) -> Statement:
    made: Statement = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}
    return {**made, "Condition": condition} if condition else made


def ours(scope: Scope) -> dict[str, str]:
    return {f"aws:ResourceTag/{INSTALLATION_TAG}": scope.installation}


def made_ours(scope: Scope) -> dict[str, str]:
    return {f"aws:RequestTag/{INSTALLATION_TAG}": scope.installation}


def _specs() -> list[str]:
    return sorted({a.kms_key_spec for a in ALGORITHMS if a.kms_key_spec is not None})


def _on_our_keys(scope: Scope, sid: str, actions: list[str]) -> Statement:
    return _allow(sid, actions, scope.arns("key/*"), {"StringEquals": ours(scope)})


def sign(scope: Scope) -> Statement:
    # Keys with imported material never sign, whoever tagged them.
    same = {**ours(scope), "kms:KeyOrigin": "AWS_KMS"}
    return _allow("Sign", ["kms:Sign"], scope.arns("key/*"), {"StringEquals": same})


def describe(scope: Scope) -> Statement:
    return _on_our_keys(scope, "Health", ["kms:DescribeKey"])


def public_key(scope: Scope) -> Statement:
    return _on_our_keys(scope, "PublicKey", ["kms:GetPublicKey"])


def create(scope: Scope) -> Statement:
    return _allow(
        "Create",
        ["kms:CreateKey"],
        "*",
        {
            "StringEquals": {
                **made_ours(scope),
                "aws:RequestedRegion": list(scope.regions),
                "kms:KeyOrigin": "AWS_KMS",
                "kms:KeySpec": _specs(),
                "kms:KeyUsage": "SIGN_VERIFY",
            },
            "ForAllValues:StringEquals": {"aws:TagKeys": list(TAG_KEYS)},
            "Bool": {
                "kms:BypassPolicyLockoutSafetyCheck": "false",
                "kms:MultiRegion": "true" if scope.multi_region else "false",
            },
        },
    )


def tag(scope: Scope) -> Statement:
    return _allow(
        "TagOnCreation",
        ["kms:TagResource"],
        scope.arns("key/*"),
        {
            "StringEquals": made_ours(scope),
            "ForAllValues:StringEquals": {"aws:TagKeys": list(TAG_KEYS)},
        },
    )


def keep_other_tags(scope: Scope) -> Statement:
    """A key of another installation is not taken over by tagging it anew."""
    tag = f"aws:ResourceTag/{INSTALLATION_TAG}"
    return {
        "Sid": "LeaveOtherInstallations",
        "Effect": "Deny",
        "Action": ["kms:TagResource"],
        "Resource": "*",
        "Condition": {
            "StringNotEquals": {tag: scope.installation},
            "Null": {tag: "false"},
        },
    }


def alias(scope: Scope) -> Statement:
    aliases = scope.arns(f"alias/kmsjwks/{scope.installation}/*")
    return _allow("Alias", ["kms:CreateAlias"], aliases, {})


def alias_of_key(scope: Scope) -> Statement:
    return _on_our_keys(scope, "AliasOfKey", ["kms:CreateAlias"])


def find() -> Statement:
    return _allow("Find", ["kms:ListAliases", "kms:ListKeys"], "*", {})


def read_tags(scope: Scope) -> Statement:
    """Of every key, as only its tags say whether one is ours."""
    return _allow("ReadTags", ["kms:ListResourceTags"], scope.arns("key/*"), {})


def own_tags(scope: Scope) -> Statement:
    return _on_our_keys(scope, "ReadOurTags", ["kms:ListResourceTags"])


def replicate(scope: Scope) -> Statement:
    same = {**ours(scope), "kms:ReplicaRegion": list(scope.regions[1:])}
    return _allow("Replicate", ["kms:ReplicateKey"], scope.arns("key/*"), {"StringEquals": same})


def create_replica(scope: Scope) -> Statement:
    """Replication needs CreateKey in the replica's Region ("Control access to multi-Region keys").

    CreateKey itself makes no replica, so kms:MultiRegionKeyType keeps any other key from being
    made by this. AWS does not document which further properties that CreateKey has, hence IfExists.
    """
    return _allow(
        "CreateReplica",
        ["kms:CreateKey"],
        "*",
        {
            "StringEquals": {
                "aws:RequestedRegion": list(scope.regions[1:]),
                "kms:MultiRegionKeyType": "REPLICA",
            },
            "Bool": {"kms:MultiRegion": "true"},
            "StringEqualsIfExists": {
                **made_ours(scope),
                "kms:KeyOrigin": "AWS_KMS",
                "kms:KeySpec": _specs(),
                "kms:KeyUsage": "SIGN_VERIFY",
            },
            "BoolIfExists": {"kms:BypassPolicyLockoutSafetyCheck": "false"},
        },
    )


def service_linked_role(scope: Scope) -> Statement:
    role = (
        f"aws-service-role/{_REPLICATION_SERVICE}/"
        "AWSServiceRoleForKeyManagementServiceMultiRegionKeys"
    )
    return _allow(
        "ReplicationRole",
        ["iam:CreateServiceLinkedRole"],
        scope.role(role),
        {"StringEquals": {"iam:AWSServiceName": _REPLICATION_SERVICE}},
    )


def stop(scope: Scope) -> Statement:
    return _on_our_keys(
        scope, "StopAndStart", ["kms:CancelKeyDeletion", "kms:DisableKey", "kms:EnableKey"]
    )


def schedule_deletion(scope: Scope) -> Statement:
    window = {"kms:ScheduleKeyDeletionPendingWindowInDays": str(scope.deletion_window_days)}
    return _allow(
        "ScheduleDeletion",
        ["kms:ScheduleKeyDeletion"],
        scope.arns("key/*"),
        {"StringEquals": ours(scope), "NumericGreaterThanEquals": window},
    )


def never() -> Statement:
    return {"Sid": "Never", "Effect": "Deny", "Action": list(_NEVER), "Resource": "*"}
