"""The keys and aliases of the account's home Region, whoever made them."""

from __future__ import annotations

from collections.abc import Iterator

from kmsjwks.backends.awskms.arns import KeyArn, parse_key_arn
from kmsjwks.backends.awskms.failures import NotOffered
from kmsjwks.backends.awskms.keycalls import KeyCalls
from kmsjwks.backends.awskms.naming import alias_name
from kmsjwks.domain.errors import BackendDenied, KeyNotFound

_KEYS = 1000  # ListKeys, Limit
_ALIASES = 100  # ListAliases, Limit


class Listing:
    """``account`` is whose the keys are that were listed last; None where there were none."""

    def __init__(self, calls: KeyCalls) -> None:
        self._calls = calls
        self.account: str | None = None

    def keys(self) -> Iterator[KeyArn]:
        """
        Raises:
            BackendError
        """
        entries = self._calls.regions.pages(
            "ListKeys", {"Limit": _KEYS}, "Keys", doing="listing keys"
        )
        for entry in entries:
            try:
                arn = parse_key_arn(str(entry.get("KeyArn")))
            except KeyNotFound:  # an emulator's, or of a kind to come: not one that we made
                continue
            self.account = arn.account
            yield arn

    def aliased(self) -> tuple[set[str], set[str]]:
        """Ids of the keys with an alias of this installation, and of those with another's only.
        Both empty where ListAliases is denied, or an emulator does not have it.

        Raises:
            BackendError
        """
        ours: set[str] = set()
        others: set[str] = set()
        prefix = alias_name(self._calls.settings.installation) + "/"
        entries = self._calls.regions.pages(
            "ListAliases", {"Limit": _ALIASES}, "Aliases", doing="listing aliases"
        )
        try:
            for entry in entries:
                mine = str(entry.get("AliasName")).startswith(prefix)
                (ours if mine else others).add(str(entry.get("TargetKeyId")))
        except NotOffered:
            return set(), set()
        except BackendDenied as error:
            if type(error) is not BackendDenied:  # about our credentials
                raise
            return set(), set()
        return ours, others - ours
