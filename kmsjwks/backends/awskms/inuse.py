"""Permissions tried on keys in use, in every Region that has them, without a signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kmsjwks.backends.awskms.arns import KeyArn, parse_key_arn
from kmsjwks.backends.awskms.failures import DryRunPassed
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.backends.awskms.signing import signing_input
from kmsjwks.backends.awskms.trial import Attempt
from kmsjwks.domain.errors import BackendError, KeyNotFound
from kmsjwks.domain.ports import BackendKey

_MESSAGE = b"kmsjwks doctor"


def try_used(
    settings: KmsSettings, regions: Regions, used: Sequence[BackendKey]
) -> Iterator[Attempt]:
    """DescribeKey and a dry run of Sign, with one key of each algorithm: a policy may go by that
    (kms:SigningAlgorithm). A signer may do nothing else, so no throw-away key tells of its
    permissions. Raises nothing."""
    for key, arn in _one_of_each(used):
        regions_of = settings.regions if arn.multi_region else (arn.region,)
        for region in regions_of:
            if region in settings.regions:
                yield from _try(regions, key, arn.in_region(region))


def _one_of_each(used: Sequence[BackendKey]) -> Iterator[tuple[BackendKey, KeyArn]]:
    """Those that are in most Regions."""
    chosen: dict[str, tuple[BackendKey, KeyArn]] = {}
    for key in used:
        try:
            arn = parse_key_arn(key.ref)
        except KeyNotFound:  # looking for it says so
            continue
        if key.alg.id not in chosen or arn.multi_region > chosen[key.alg.id][1].multi_region:
            chosen[key.alg.id] = (key, arn)
    yield from chosen.values()


def _try(regions: Regions, key: BackendKey, arn: KeyArn) -> Iterator[Attempt]:
    yield _attempt(regions, "DescribeKey", arn, {})
    # "Testing your permissions", AWS KMS Developer Guide.
    yield _attempt(regions, "Sign", arn, {**signing_input(key, _MESSAGE), "DryRun": True})


def _attempt(regions: Regions, operation: str, arn: KeyArn, more: Mapping[str, Any]) -> Attempt:
    action = f"kms:{operation}"
    what = f"{action} of the used key {arn.key_id}"
    try:
        regions.call(
            operation, {"KeyId": str(arn), **more}, doing=f"trying {action}", region=arn.region
        )
    except DryRunPassed:
        return Attempt(what, arn.region, True, "allowed (dry run)")
    except BackendError as error:
        return Attempt.failed(action, arn.region, error, what=what)
    return Attempt(what, arn.region, True, "allowed")
