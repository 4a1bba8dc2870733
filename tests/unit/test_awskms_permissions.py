"""The policies as an auditor reads them: what no role can do, and on which keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import botocore.session
import pytest

from kmsjwks.backends.awskms.naming import Label, alias_name
from kmsjwks.backends.awskms.permissions import (
    ROLES,
    TAG_KEYS,
    Scope,
    allowed_actions,
    break_glass,
    key_policy,
    manager,
    policy_for_missing,
    roles_needing,
    service_control_policy,
    signer,
)

SCOPE = Scope("111122223333", ("eu-central-1",), "prod", deletion_window_days=14)
TWO = Scope("111122223333", ("eu-central-1", "eu-west-1"), "prod", multi_region=True)
OURS = "aws:ResourceTag/kmsjwks:installation"
# Operations on no key, those that only read a key's tags, and those on a key that is not there yet.
NOT_BY_TAG = {
    "kms:ListAliases",
    "kms:ListKeys",
    "kms:CreateKey",
    "kms:TagResource",
    "kms:ListResourceTags",
}


def allows(policy: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in policy["Statement"] if one["Effect"] == "Allow"]


def statement(policy: dict[str, Any], sid: str) -> dict[str, Any]:
    (found,) = [one for one in policy["Statement"] if one["Sid"] == sid]
    return dict(found)


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("scope", [SCOPE, TWO])
def test_every_action_exists_and_none_is_a_wildcard(name: str, scope: Scope) -> None:
    operations = botocore.session.get_session().get_service_model("kms").operation_names
    known = {f"kms:{one}" for one in operations} | {"iam:CreateServiceLinkedRole"}
    for one in ROLES[name](scope)["Statement"]:
        assert set(one["Action"]) <= known


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("scope", [SCOPE, TWO])
def test_what_acts_on_keys_acts_on_ours_only(name: str, scope: Scope) -> None:
    for one in allows(ROLES[name](scope)):
        on_keys = [arn for arn in one["Resource"] if arn.endswith(":key/*")]
        if on_keys and not set(one["Action"]) <= NOT_BY_TAG:
            assert one["Condition"]["StringEquals"][OURS] == "prod", one["Sid"]


@pytest.mark.parametrize("name", ROLES)
def test_no_role_can_become_the_owner_of_a_key(name: str) -> None:
    denied = set(statement(ROLES[name](SCOPE), "Never")["Action"])
    assert {"kms:PutKeyPolicy", "kms:CreateGrant", "kms:UpdateAlias"} <= denied
    assert {"kms:ImportKeyMaterial", "kms:UntagResource"} <= denied
    assert not denied & allowed_actions(ROLES[name](SCOPE))
    assert "Condition" not in statement(ROLES[name](SCOPE), "Never")


def test_the_roles_are_apart() -> None:
    """Who signs creates nothing; who creates stops nothing; who stops does not sign."""
    assert allowed_actions(signer(SCOPE)) == {"kms:Sign", "kms:DescribeKey", "kms:ListResourceTags"}
    stops = {"kms:DisableKey", "kms:EnableKey", "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"}
    assert not stops & allowed_actions(manager(TWO))
    assert stops <= allowed_actions(break_glass(SCOPE))
    assert not {"kms:Sign", "kms:CreateKey", "kms:TagResource"} & allowed_actions(
        break_glass(SCOPE)
    )


def test_creation_is_of_our_kind_of_key_only() -> None:
    condition = statement(manager(SCOPE), "Create")["Condition"]
    same = condition["StringEquals"]
    assert same["aws:RequestTag/kmsjwks:installation"] == "prod"
    assert same["kms:KeyUsage"] == "SIGN_VERIFY"
    assert same["kms:KeyOrigin"] == "AWS_KMS"
    assert "SYMMETRIC_DEFAULT" not in same["kms:KeySpec"]
    assert {"RSA_2048", "ECC_NIST_P256", "ML_DSA_65"} <= set(same["kms:KeySpec"])
    assert same["aws:RequestedRegion"] == ["eu-central-1"]
    assert condition["Bool"] == {
        "kms:MultiRegion": "false",
        "kms:BypassPolicyLockoutSafetyCheck": "false",
    }


def test_in_a_replica_region_the_untagged_make_replicas_only() -> None:
    """CreateKey by itself makes single-Region keys and primaries."""
    creations = [one for one in allows(manager(TWO)) if one["Action"] == ["kms:CreateKey"]]
    untagged = [
        one["Condition"]
        for one in creations
        if "aws:RequestTag/kmsjwks:installation" not in one["Condition"]["StringEquals"]
    ]
    (condition,) = untagged
    assert condition["StringEquals"]["kms:MultiRegionKeyType"] == "REPLICA"
    assert condition["StringEquals"]["aws:RequestedRegion"] == ["eu-west-1"]
    assert condition["Bool"] == {"kms:MultiRegion": "true"}
    asked = condition["StringEqualsIfExists"]
    assert asked["kms:KeySpec"] == creations[0]["Condition"]["StringEquals"]["kms:KeySpec"]
    assert asked["aws:RequestTag/kmsjwks:installation"] == "prod"
    assert condition["BoolIfExists"] == {"kms:BypassPolicyLockoutSafetyCheck": "false"}


@pytest.mark.parametrize("made", [signer, break_glass])
def test_every_region_is_covered(made: Callable[[Scope], dict[str, Any]]) -> None:
    for one in allows(made(TWO)):
        assert {arn.split(":")[3] for arn in one["Resource"]} == {"eu-central-1", "eu-west-1"}


def test_the_tags_allowed_are_those_that_we_put() -> None:
    put = {tag["TagKey"] for tag in Label("prod", "demo", "ES256", "r").tags()}
    assert put == set(TAG_KEYS)
    for sid in ("Create", "TagOnCreation"):
        condition = statement(manager(SCOPE), sid)["Condition"]
        assert set(condition["ForAllValues:StringEquals"]["aws:TagKeys"]) == put


def test_another_installations_key_is_not_tagged_over() -> None:
    guard = statement(manager(SCOPE), "LeaveOtherInstallations")
    assert (guard["Effect"], guard["Action"]) == ("Deny", ["kms:TagResource"])
    assert guard["Condition"] == {"StringNotEquals": {OURS: "prod"}, "Null": {OURS: "false"}}


def test_aliases_allowed_are_those_that_we_make() -> None:
    (pattern,) = statement(manager(SCOPE), "Alias")["Resource"]
    made = f"arn:aws:kms:eu-central-1:111122223333:{alias_name('prod', 'demo', 'kid')}"
    assert made.startswith(pattern.removesuffix("*"))


def test_deletion_waits_at_least_the_window() -> None:
    condition = statement(break_glass(SCOPE), "ScheduleDeletion")["Condition"]
    window = {"kms:ScheduleKeyDeletionPendingWindowInDays": "14"}
    assert condition["NumericGreaterThanEquals"] == window


def test_replication_is_allowed_where_it_is_configured_only() -> None:
    assert "kms:ReplicateKey" not in allowed_actions(manager(SCOPE))
    same = statement(manager(TWO), "Replicate")["Condition"]["StringEquals"]
    assert same["kms:ReplicaRegion"] == ["eu-west-1"]
    assert "iam:CreateServiceLinkedRole" in allowed_actions(manager(TWO))


def test_key_material_that_was_imported_never_signs() -> None:
    for policy in (signer(SCOPE), manager(SCOPE)):
        same = statement(policy, "Sign")["Condition"]["StringEquals"]
        assert same["kms:KeyOrigin"] == "AWS_KMS"


def test_the_policy_to_paste_allows_what_is_missing_and_nothing_else() -> None:
    pasted = json.loads(policy_for_missing(["kms:Sign", "kms:EnableKey"], SCOPE))
    assert allowed_actions(pasted) == {"kms:Sign", "kms:EnableKey"}
    assert all(OURS in one["Condition"]["StringEquals"] for one in pasted["Statement"])


def test_an_alias_needs_both_its_statements() -> None:
    pasted = json.loads(policy_for_missing(["kms:CreateAlias"], SCOPE))
    assert [one["Sid"] for one in pasted["Statement"]] == ["Alias", "AliasOfKey"]


def test_an_action_of_no_role_is_not_granted() -> None:
    assert json.loads(policy_for_missing(["kms:PutKeyPolicy"], SCOPE))["Statement"] == []
    assert roles_needing("kms:PutKeyPolicy", SCOPE) == ()
    assert roles_needing("kms:Sign", SCOPE) == ("signer", "lifecycle manager")


def control() -> dict[str, Any]:
    return service_control_policy(SCOPE, manager_roles=["m", "rotation"], break_glass_roles=["b"])


def test_the_service_control_policy_only_denies() -> None:
    assert {one["Effect"] for one in control()["Statement"]} == {"Deny"}
    stops = statement(control(), "OnlyBreakGlassStopsKeys")["Condition"]
    assert [arn.rpartition("/")[2] for arn in stops["ArnNotEquals"]["aws:PrincipalArn"]] == ["b"]


def test_the_service_control_policy_leaves_other_installations_alone() -> None:
    """Each statement goes by our value of the tag: as it is asked for, or as the key has it."""
    tags = {OURS: "prod"}, {OURS.replace("Resource", "Request"): "prod"}
    for one in control()["Statement"]:
        assert one["Condition"]["StringEquals"] in tags, one["Sid"]


@pytest.mark.parametrize("sid", ["OnlyTheManagerTags", "OnlyTheManagerChangesTags"])
def test_several_managers_may_tag(sid: str) -> None:
    condition = statement(control(), sid)["Condition"]
    named = condition["ArnNotEquals"]["aws:PrincipalArn"]
    assert [arn.rpartition("/")[2] for arn in named] == ["m", "rotation"]


def test_other_partitions() -> None:
    china = Scope("111122223333", ("cn-north-1",), "prod", partition="aws-cn")
    text = json.dumps([made(china) for made in ROLES.values()] + [key_policy(china)])
    assert "arn:aws-cn:kms:cn-north-1" in text
    assert "arn:aws:" not in text
