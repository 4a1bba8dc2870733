"""Key ARNs: the only references that name one key for ever."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from kmsjwks.domain.errors import KeyNotFound

_KEY_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):kms:(?P<region>[a-z0-9-]+):(?P<account>[0-9]{12})"
    r":key/(?P<key_id>[A-Za-z0-9-]{1,128})"
)


@dataclass(frozen=True, slots=True)
class KeyArn:
    """The parts of ``arn:partition:kms:region:account:key/key-id``."""

    partition: str
    region: str
    account: str
    key_id: str

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:key/{self.key_id}"

    @property
    def multi_region(self) -> bool:
        """Multi-Region keys have ids with this prefix, the same in every Region."""
        return self.key_id.startswith("mrk-")

    def in_region(self, region: str) -> KeyArn:
        """The same multi-Region key in another Region."""
        return replace(self, region=region)


def parse_key_arn(ref: str) -> KeyArn:
    """
    Raises:
        KeyNotFound: not a key ARN, so no reference of a key in AWS KMS.
    """
    match = _KEY_ARN.fullmatch(ref)
    if match is None:
        raise KeyNotFound(f"{ref[:200]!r} is not the ARN of a KMS key; aliases and ids do not do.")
    return KeyArn(**match.groupdict())
