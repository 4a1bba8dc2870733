"""Calls about one key, each made in a Region that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmsjwks.backends.awskms.arns import KeyArn, parse_key_arn
from kmsjwks.backends.awskms.metadata import KeyMetadata, key_metadata
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.domain.errors import (
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
    KeyNotFound,
    KeyPendingDeletion,
    WrongAccount,
    WrongRegion,
)

_MOST_TAG_PAGES = 50  # a key has 50 tags at most ("Resource quotas")


class KeyCalls:
    """A multi-Region key is asked where AWS KMS answers, in the order of preference; any other
    key only in its own Region. Thread-safe."""

    def __init__(self, settings: KmsSettings, regions: Regions) -> None:
        self.settings, self.regions = settings, regions

    def locate(self, ref: str) -> KeyArn:
        """Asks nobody.

        Raises:
            KeyNotFound: not a key ARN.
            WrongRegion: of a Region that is not configured.
            WrongAccount: of another account than the configured one.
        """
        arn, settings = parse_key_arn(ref), self.settings
        if arn.region not in settings.regions:
            raise WrongRegion(
                f"The key {arn} is in {arn.region}, and the backend {settings.name} uses "
                f"{', '.join(settings.regions)}. Make it the backend's region, or "
                "one of its replica_regions if the key has a replica there."
            )
        if settings.account is not None and arn.account != settings.account:
            raise WrongAccount(
                f"The key {arn} belongs to the account {arn.account}, and the backend "
                f"{settings.name} uses {settings.account}. Use credentials of the key's account, "
                "or a backend of its own."
            )
        return arn

    def ask(
        self,
        operation: str,
        arn: KeyArn,
        params: Mapping[str, Any] | None = None,
        *,
        doing: str,
        limited: bool = False,
    ) -> tuple[KeyArn, dict[str, Any]]:
        """The answer, and the key in the Region that gave it.

        Raises:
            BackendError
        """
        more = params or {}
        if not arn.multi_region or len(self.settings.regions) == 1:
            answer = self.regions.call(
                operation,
                {"KeyId": str(arn), **more},
                doing=doing,
                region=arn.region,
                limited=limited,
            )
            return arn, answer
        try:
            region, answer = self.regions.call_preferred(
                operation,
                lambda region: {"KeyId": str(arn.in_region(region)), **more},
                doing=doing,
                limited=limited,
            )
        except BackendUnavailable as error:
            refusal = error.__cause__
            if isinstance(error, BackendThrottled) or not _has_no_replica(refusal):
                raise
            raise BackendUnavailable(
                f"{error} The key {arn} has no replica in another Region: replicate it "
                f"(ReplicateKey) when {arn.region} is back."
            ) from refusal
        return arn.in_region(region), answer

    def describe(self, arn: KeyArn) -> KeyMetadata:
        _, answer = self.ask("DescribeKey", arn, doing="describing a key")
        return key_metadata(answer)

    def describe_there(self, arn: KeyArn) -> KeyMetadata:
        """In the Region of the ARN, and in no other."""
        params = {"KeyId": str(arn)}
        return key_metadata(
            self.regions.call("DescribeKey", params, doing="describing a key", region=arn.region)
        )

    def tags(self, arn: KeyArn) -> dict[str, str]:
        tags: dict[str, str] = {}
        params: dict[str, Any] = {}
        for _ in range(_MOST_TAG_PAGES):
            _, answer = self.ask("ListResourceTags", arn, params, doing="reading a key's tags")
            tags |= {tag["TagKey"]: tag["TagValue"] for tag in answer.get("Tags", ())}
            if not answer.get("Truncated"):
                return tags
            marker = answer.get("NextMarker")
            if not marker or marker == params.get("Marker"):
                break
            params = {"Marker": marker}
        raise BackendProtocolError(f"AWS KMS gave a list of tags that does not end, of {arn}.")

    def spki(self, arn: KeyArn) -> bytes:
        _, answer = self.ask("GetPublicKey", arn, doing="reading a public key")
        spki = answer.get("PublicKey")
        if not isinstance(spki, bytes):
            raise BackendProtocolError("AWS KMS answered GetPublicKey without a public key.")
        return spki


def _has_no_replica(refusal: BaseException | None) -> bool:
    return isinstance(refusal, KeyNotFound) and not isinstance(refusal, KeyPendingDeletion)
