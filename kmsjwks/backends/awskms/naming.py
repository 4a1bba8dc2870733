"""What our keys are called in KMS: tags, alias, description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

INSTALLATION = "kmsjwks:installation"
KEYSET = "kmsjwks:keyset"
ALGORITHM = "kmsjwks:alg"
REQUEST_ID = "kmsjwks:request-id"

_NOT_IN_ALIASES = re.compile(r"[^a-zA-Z0-9/_-]")  # CreateAlias, AliasName
_NO_KEYSET = "-"


@dataclass(frozen=True, slots=True)
class Label:
    """What the tags of one of our keys say; ``alg`` is an algorithm's id."""

    installation: str
    keyset: str
    alg: str
    request_id: str

    def tags(self) -> list[dict[str, str]]:
        """As CreateKey and ReplicateKey take them."""
        said = {
            INSTALLATION: self.installation,
            KEYSET: self.keyset,
            ALGORITHM: self.alg,
            REQUEST_ID: self.request_id,
        }
        return [{"TagKey": name, "TagValue": value} for name, value in said.items()]

    def description(self) -> str:
        keyset = f", keyset {self.keyset}" if self.keyset else ""
        return f"kmsjwks signing key ({self.alg}{keyset}, installation {self.installation})"

    def alias(self, kid: str) -> str:
        """For people; we never sign through it."""
        return alias_name(self.installation, self.keyset or _NO_KEYSET, kid)


def alias_name(*parts: str) -> str:
    """``alias/kmsjwks/<part>/<part>...``, with '_' for what alias names do not allow."""
    return "alias/kmsjwks/" + "/".join(_NOT_IN_ALIASES.sub("_", part) for part in parts)


def label_of(tags: Mapping[str, str]) -> Label | None:
    """None where a tag that says what the key is for is missing."""
    if not {INSTALLATION, ALGORITHM, REQUEST_ID} <= tags.keys():
        return None
    return Label(tags[INSTALLATION], tags.get(KEYSET, ""), tags[ALGORITHM], tags[REQUEST_ID])
