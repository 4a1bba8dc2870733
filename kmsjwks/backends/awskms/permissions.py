"""The IAM policies that this backend needs: three roles, least privilege, as data.

Sources: "Actions, resources, and condition keys for AWS Key Management Service" (Service
Authorization Reference) and "Control access to AWS KMS keys" (AWS KMS Developer Guide).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmsjwks.domain.algorithms import ALGORITHMS

Policy = dict[str, Any]
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


def signer(scope: Scope) -> Policy:
    """A process that signs and looks after the health of its keys, and does nothing else."""
    return _policy(_sign(scope), _describe(scope), _own_tags(scope), _never())


def manager(scope: Scope) -> Policy:
    """What creates keys, proves and finds them; it cannot disable or delete any."""
    statements = [
        _create(scope),
        _tag(scope),
        _keep_other_tags(scope),
        _alias(scope),
        _alias_of_key(scope),
        _find(),
        _read_tags(scope),
        _describe(scope),
        _public_key(scope),
        _sign(scope),
    ]
    if scope.multi_region:
        statements += [_replicate(scope), _create_replica(scope), _service_linked_role(scope)]
    return _policy(*statements, _never())


def break_glass(scope: Scope) -> Policy:
    """What stops keys, schedules their deletion, and takes that back."""
    return _policy(
        _stop(scope), _schedule_deletion(scope), _describe(scope), _own_tags(scope), _never()
    )


def key_policy(scope: Scope) -> Policy:
    """What KMS attaches to a key that is created without a policy: IAM policies decide."""
    return _policy(
        {
            "Sid": "EnableIamPolicies",
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:{scope.partition}:iam::{scope.account}:root"},
            "Action": "kms:*",
            "Resource": "*",
        }
    )


def service_control_policy(scope: Scope, *, manager_role: str, break_glass_role: str) -> Policy:
    """For AWS Organizations: whatever else is granted in the account, only these roles touch our
    tags, and only break-glass stops keys. It grants nothing."""
    return _policy(
        {
            "Sid": "OnlyBreakGlassStopsKeys",
            "Effect": "Deny",
            "Action": ["kms:DisableKey", "kms:ScheduleKeyDeletion"],
            "Resource": "*",
            "Condition": {
                "StringEquals": _ours(scope),
                "ArnNotEquals": {"aws:PrincipalArn": scope.role(break_glass_role)},
            },
        },
        {
            "Sid": "OnlyTheManagerTags",
            "Effect": "Deny",
            "Action": ["kms:TagResource", "kms:UntagResource"],
            "Resource": "*",
            "Condition": {
                "ForAnyValue:StringLike": {"aws:TagKeys": "kmsjwks:*"},
                "ArnNotEquals": {"aws:PrincipalArn": scope.role(manager_role)},
            },
        },
    )


ROLES = {"signer": signer, "lifecycle manager": manager, "break-glass": break_glass}


def allowed_actions(policy: Policy) -> frozenset[str]:
    """Every action that some statement allows."""
    return frozenset(
        action
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        for action in _actions(statement)
    )


def roles_needing(action: str, scope: Scope) -> tuple[str, ...]:
    """Names of the roles whose policy allows ``action``."""
    return tuple(name for name, made in ROLES.items() if action in allowed_actions(made(scope)))


def policy_for_missing(actions: Iterable[str], scope: Scope) -> str:
    """The smallest policy that allows ``actions``, under the conditions of the roles; JSON to
    paste. Actions that no role has are left out."""
    wanted = frozenset(actions)
    statements: dict[str, Statement] = {}
    for made in ROLES.values():
        for statement in made(scope)["Statement"]:
            kept = [action for action in _actions(statement) if action in wanted]
            if statement["Effect"] == "Allow" and kept:
                statements[statement["Sid"]] = {**statement, "Action": kept}
    return as_json(_policy(*statements.values()))


def as_json(policy: Mapping[str, Any]) -> str:
    return json.dumps(policy, indent=2)


def _policy(*statements: Statement) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _actions(statement: Statement) -> list[str]:
    named = statement["Action"]
    return [named] if isinstance(named, str) else list(named)


def _allow(
    sid: str, actions: str | list[str], resource: str | list[str], condition: dict[str, Any]
) -> Statement:
    made: Statement = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}
    return {**made, "Condition": condition} if condition else made


def _ours(scope: Scope) -> dict[str, str]:
    return {f"aws:ResourceTag/{INSTALLATION_TAG}": scope.installation}


def _on_our_keys(scope: Scope, sid: str, actions: list[str]) -> Statement:
    return _allow(sid, actions, scope.arns("key/*"), {"StringEquals": _ours(scope)})


def _sign(scope: Scope) -> Statement:
    # Keys with imported material never sign, whoever tagged them.
    same = {**_ours(scope), "kms:KeyOrigin": "AWS_KMS"}
    return _allow("Sign", ["kms:Sign"], scope.arns("key/*"), {"StringEquals": same})


def _describe(scope: Scope) -> Statement:
    return _on_our_keys(scope, "Health", ["kms:DescribeKey"])


def _public_key(scope: Scope) -> Statement:
    return _on_our_keys(scope, "PublicKey", ["kms:GetPublicKey"])


def _create(scope: Scope) -> Statement:
    specs = sorted({a.kms_key_spec for a in ALGORITHMS if a.kms_key_spec is not None})
    return _allow(
        "Create",
        ["kms:CreateKey"],
        "*",
        {
            "StringEquals": {
                f"aws:RequestTag/{INSTALLATION_TAG}": scope.installation,
                "aws:RequestedRegion": list(scope.regions),
                "kms:KeyOrigin": "AWS_KMS",
                "kms:KeySpec": specs,
                "kms:KeyUsage": "SIGN_VERIFY",
            },
            "ForAllValues:StringEquals": {"aws:TagKeys": list(TAG_KEYS)},
            "Bool": {"kms:MultiRegion": "true" if scope.multi_region else "false"},
        },
    )


def _tag(scope: Scope) -> Statement:
    return _allow(
        "TagOnCreation",
        ["kms:TagResource"],
        scope.arns("key/*"),
        {
            "StringEquals": {f"aws:RequestTag/{INSTALLATION_TAG}": scope.installation},
            "ForAllValues:StringEquals": {"aws:TagKeys": list(TAG_KEYS)},
        },
    )


def _keep_other_tags(scope: Scope) -> Statement:
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


def _alias(scope: Scope) -> Statement:
    aliases = scope.arns(f"alias/kmsjwks/{scope.installation}/*")
    return _allow("Alias", ["kms:CreateAlias"], aliases, {})


def _alias_of_key(scope: Scope) -> Statement:
    return _on_our_keys(scope, "AliasOfKey", ["kms:CreateAlias"])


def _find() -> Statement:
    return _allow("Find", ["kms:ListKeys"], "*", {})


def _read_tags(scope: Scope) -> Statement:
    """Of every key, as only its tags say whether one is ours."""
    return _allow("ReadTags", ["kms:ListResourceTags"], scope.arns("key/*"), {})


def _own_tags(scope: Scope) -> Statement:
    return _on_our_keys(scope, "ReadOurTags", ["kms:ListResourceTags"])


def _replicate(scope: Scope) -> Statement:
    same = {**_ours(scope), "kms:ReplicaRegion": list(scope.regions[1:])}
    return _allow("Replicate", ["kms:ReplicateKey"], scope.arns("key/*"), {"StringEquals": same})


def _create_replica(scope: Scope) -> Statement:
    """Replication needs CreateKey in the replica's Region. AWS does not document which of the
    request's properties it has there, hence IfExists."""
    return _allow(
        "CreateReplica",
        ["kms:CreateKey"],
        "*",
        {
            "StringEquals": {"aws:RequestedRegion": list(scope.regions[1:])},
            "StringEqualsIfExists": {
                f"aws:RequestTag/{INSTALLATION_TAG}": scope.installation,
                "kms:KeyOrigin": "AWS_KMS",
                "kms:KeyUsage": "SIGN_VERIFY",
            },
        },
    )


def _service_linked_role(scope: Scope) -> Statement:
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


def _stop(scope: Scope) -> Statement:
    return _on_our_keys(
        scope, "StopAndStart", ["kms:CancelKeyDeletion", "kms:DisableKey", "kms:EnableKey"]
    )


def _schedule_deletion(scope: Scope) -> Statement:
    window = {"kms:ScheduleKeyDeletionPendingWindowInDays": str(scope.deletion_window_days)}
    return _allow(
        "ScheduleDeletion",
        ["kms:ScheduleKeyDeletion"],
        scope.arns("key/*"),
        {"StringEquals": _ours(scope), "NumericGreaterThanEquals": window},
    )


def _never() -> Statement:
    return {"Sid": "Never", "Effect": "Deny", "Action": list(_NEVER), "Resource": "*"}
