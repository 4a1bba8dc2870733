"""The IAM policies that this backend needs: three roles, least privilege, as data.

Sources: "Actions, resources, and condition keys for AWS Key Management Service" (Service
Authorization Reference) and "Control access to AWS KMS keys" (AWS KMS Developer Guide).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kmsjwks.backends.awskms import statements as of
from kmsjwks.backends.awskms.statements import TAG_KEYS, Scope, Statement

__all__ = [
    "ROLES",
    "TAG_KEYS",
    "Scope",
    "allowed_actions",
    "as_json",
    "break_glass",
    "key_policy",
    "manager",
    "policy_for_missing",
    "roles_needing",
    "service_control_policy",
    "signer",
]

Policy = dict[str, Any]


def signer(scope: Scope) -> Policy:
    """A process that signs and looks after the health of its keys, and does nothing else."""
    return _policy(of.sign(scope), of.describe(scope), of.own_tags(scope), of.never())


def manager(scope: Scope) -> Policy:
    """What creates keys, proves and finds them; it cannot disable or delete any."""
    statements = [
        of.create(scope),
        of.tag(scope),
        of.keep_other_tags(scope),
        of.alias(scope),
        of.alias_of_key(scope),
        of.find(),
        of.read_tags(scope),
        of.describe(scope),
        of.public_key(scope),
        of.sign(scope),
    ]
    if scope.multi_region:
        statements += [of.replicate(scope), of.create_replica(scope), of.service_linked_role(scope)]
    return _policy(*statements, of.never())


def break_glass(scope: Scope) -> Policy:
    """What stops keys, schedules their deletion, and takes that back."""
    return _policy(
        of.stop(scope),
        of.schedule_deletion(scope),
        of.describe(scope),
        of.own_tags(scope),
        of.never(),
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


def service_control_policy(
    scope: Scope, *, manager_roles: Sequence[str], break_glass_roles: Sequence[str]
) -> Policy:
    """For AWS Organizations: whatever else is granted in the account, only the manager's roles
    touch the tags of this installation, and only those of break-glass stop its keys. It grants
    nothing, and says nothing of other installations, which have one of their own."""
    managers = {"ArnNotEquals": _principals(scope, manager_roles)}
    return _policy(
        {
            "Sid": "OnlyBreakGlassStopsKeys",
            "Effect": "Deny",
            "Action": ["kms:DisableKey", "kms:ScheduleKeyDeletion"],
            "Resource": "*",
            "Condition": {
                "StringEquals": of.ours(scope),
                "ArnNotEquals": _principals(scope, break_glass_roles),
            },
        },
        # Two statements, since conditions of one are all required: who makes a key ours, and who
        # changes what a key of ours is.
        {
            "Sid": "OnlyTheManagerTags",
            "Effect": "Deny",
            "Action": ["kms:TagResource"],
            "Resource": "*",
            "Condition": {"StringEquals": of.made_ours(scope), **managers},
        },
        {
            "Sid": "OnlyTheManagerChangesTags",
            "Effect": "Deny",
            "Action": ["kms:TagResource", "kms:UntagResource"],
            "Resource": "*",
            "Condition": {
                "StringEquals": of.ours(scope),
                "ForAnyValue:StringLike": {"aws:TagKeys": "kmsjwks:*"},
                **managers,
            },
        },
    )


def _principals(scope: Scope, roles: Sequence[str]) -> dict[str, list[str]]:
    return {"aws:PrincipalArn": [scope.role(name) for name in roles]}


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
