"""Which KMS keys of the account are ours, by their tags."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from kmsjwks.backends.awskms.arns import KeyArn
from kmsjwks.backends.awskms.keycalls import KeyCalls
from kmsjwks.backends.awskms.listing import Listing
from kmsjwks.backends.awskms.metadata import KeyMetadata
from kmsjwks.backends.awskms.naming import Label, label_of
from kmsjwks.backends.awskms.patience import Patience
from kmsjwks.domain.algorithms import Algorithm, find_algorithm
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendProtocolError,
    BackendUnavailable,
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.jwk import load_public_key
from kmsjwks.domain.ports import BackendKey

_log = logging.getLogger(__name__)
_SIDE_BY_SIDE = 8  # calls of ListResourceTags
_BATCH = 200  # keys between two looks at the clock
_SCAN_SECONDS = 75.0  # for looking at keys of others
_NEWBORN = 120.0  # seconds, much longer than AWS KMS takes to tell all its servers
_ASK_AGAIN = 300.0  # seconds; what is denied now may be ours once a policy is mended


class Inventory:
    """Remembers what it learned of each ARN, so that the keys of others cost one call a process.
    Tags that a person changes show after a restart, but for ``label`` and ``read``. Thread-safe.
    """

    def __init__(self, calls: KeyCalls, patience: Patience) -> None:
        self._calls, self._patience = calls, patience
        self._installation = calls.settings.installation
        self._listing = Listing(calls)
        self._lock = Lock()
        self._labels: dict[KeyArn, Label | None] = {}
        self._made_at: dict[KeyArn, float] = {}
        self._denied: dict[KeyArn, float] = {}
        self._public: dict[KeyArn, BackendKey] = {}

    def ours(self) -> Iterator[tuple[KeyArn, Label]]:
        """Of the home Region, in any state: every key of the account is looked at, once a process.

        Raises:
            BackendError
        """
        yield from self._labelled({*self._listing.keys(), *self._learned()})

    def account(self) -> str | None:
        """Whose the keys are that AWS KMS listed last; None before, or where it listed none."""
        return self._listing.account

    def _learned(self) -> set[KeyArn]:
        """ListKeys does not show at once what was made a moment ago."""
        with self._lock:
            return {arn for arn, label in self._labels.items() if label is not None}

    def _labelled(self, arns: Iterable[KeyArn]) -> Iterator[tuple[KeyArn, Label]]:
        """Those of ours among them, by ARN; unknown ones are asked for side by side.

        Raises:
            BackendUnavailable: it takes too long; what was learned is remembered.
            BackendError
        """
        deadline, wanted = self._patience.clock() + _SCAN_SECONDS, sorted(arns, key=str)
        with ThreadPoolExecutor(_SIDE_BY_SIDE, "kmsjwks-inventory") as pool:
            for start in range(0, len(wanted), _BATCH):
                some = wanted[start : start + _BATCH]
                unknown = [arn for arn in some if not self._is_known(arn)]
                if unknown and self._patience.clock() > deadline:
                    raise BackendUnavailable(
                        f"Looking for our keys among the {len(wanted)} of the account takes too "
                        "long. Try again: this process remembers what it saw. Allow "
                        "kms:ListAliases, so that keys with an alias need not be looked at."
                    )
                for _ in pool.map(self._cached_label, unknown):
                    pass
                for arn in some:
                    label = self._cached_label(arn)
                    if label is not None:
                        yield arn, label

    def _is_known(self, arn: KeyArn) -> bool:
        with self._lock:
            return arn in self._labels or self._denied.get(arn, 0.0) > self._patience.clock()

    def _cached_label(self, arn: KeyArn) -> Label | None:
        with self._lock:
            if arn in self._labels:
                return self._labels[arn]
            if self._denied.get(arn, 0.0) > self._patience.clock():
                return None
        try:
            label = self.label(arn)
        except KeyNotFound:
            return None
        except BackendDenied as error:
            if type(error) is not BackendDenied:  # about our credentials, not about this key
                raise
            with self._lock:
                self._denied[arn] = self._patience.clock() + _ASK_AGAIN
            return None
        with self._lock:
            self._labels[arn] = label
        return label

    def label(self, arn: KeyArn) -> Label | None:
        """As the tags are now; None for a key that is not this installation's.

        Raises:
            BackendError
        """
        tags = self._patience.unthrottled(lambda: self._calls.tags(arn))
        label = label_of(tags)
        return label if label is not None and label.installation == self._installation else None

    def learn(self, arn: KeyArn, label: Label) -> None:
        """A key that was just made."""
        with self._lock:
            self._labels[arn] = label
            self._made_at[arn] = self._patience.clock()

    def _refuse_newborn(self, arn: KeyArn) -> None:
        """
        Raises:
            BackendUnavailable: the key was just made, so it is there although AWS KMS does not
                show it; another must not be made in its place.
        """
        with self._lock:
            made_at = self._made_at.get(arn)
        if made_at is not None and self._patience.clock() - made_at < _NEWBORN:
            raise BackendUnavailable(
                f"AWS KMS made the key {arn} a moment ago and does not show it yet. Try again."
            )

    def find(self, request_id: str) -> tuple[KeyMetadata, Label] | None:
        """The oldest key that was made for this request and is not pending deletion.

        Looked for among the keys that this process made, then those with an alias of ours, then
        those with no alias at all: a creation that broke off before its last step left such a
        one. Which request broke off is not known here, so each new one looks that far, once a
        process for each key; what somebody else gave an alias is passed over.

        A younger key of the same request is left as it is: that the database never recorded it
        cannot be known here. It is warned of where it is seen, and `doctor` names it among the
        orphans.

        Raises:
            BackendError
        """
        made = self._made_for(request_id, self._learned())
        if made is not None:
            return made
        ours, others = self._listing.aliased()
        listed = list(self._listing.keys())
        made = self._made_for(request_id, [arn for arn in listed if arn.key_id in ours])
        if made is not None:
            return made
        return self._made_for(request_id, [arn for arn in listed if arn.key_id not in others])

    def _made_for(
        self, request_id: str, arns: Iterable[KeyArn]
    ) -> tuple[KeyMetadata, Label] | None:
        found: dict[str, tuple[KeyMetadata, Label]] = {}
        for arn, label in self._labelled(arns):
            if label.request_id != request_id:
                continue
            try:
                metadata = self._calls.describe(arn)
            except KeyNotFound:
                self._refuse_newborn(arn)
                continue
            if not metadata.pending_deletion:
                found[str(metadata.primary)] = (metadata, label)
        if not found:
            return None
        first, *others = sorted(found, key=lambda ref: (found[ref][0].created, ref))
        for other in others:
            _log.warning(
                "Two keys were made for the request %s: %s is used. %s serves nothing; schedule "
                "its deletion.",
                request_id,
                first,
                other,
            )
        return found[first]

    def read(self, ref: str) -> BackendKey:
        """
        Raises:
            KeyNotFound, KeyPendingDeletion: also for a key that is not ours.
            KeyDisabled: it serves nothing until somebody enables it.
        """
        arn = self._calls.locate(ref)
        metadata = self._calls.describe(arn)
        refuse_unusable(metadata)
        label = self.label(arn)
        if label is None:
            raise KeyNotFound(
                f"The key {arn} has no tags of the installation {self._installation!r}. If it is "
                "one of its keys, put the tags 'kmsjwks:...' back."
            )
        return self._public_key(arn, metadata, label)

    def readable(self) -> Iterator[BackendKey]:
        """Ours but for those pending deletion, each by the ARN of its primary key.

        Raises:
            BackendError
        """
        for arn, label in self.ours():
            try:
                metadata = self._calls.describe(arn)
                if not metadata.pending_deletion:
                    yield self._public_key(metadata.primary, metadata, label)
            except KeyNotFound:
                continue
            except (KeyDisabled, BackendProtocolError, UnsupportedAlgorithm) as error:
                _log.warning("The key %s is not listed: %s", arn, error)

    def _public_key(self, arn: KeyArn, metadata: KeyMetadata, label: Label) -> BackendKey:
        alg = algorithm_of(metadata, label)
        with self._lock:
            known = self._public.get(arn)
        if known is not None and known.alg is alg:
            return known
        spki = self._patience.unthrottled(lambda: self._calls.spki(arn))
        load_public_key(spki, alg)
        key = BackendKey(str(arn), alg, spki)
        with self._lock:
            self._public[arn] = key
        return key


def refuse_unusable(metadata: KeyMetadata) -> None:
    """
    Raises:
        KeyPendingDeletion, KeyDisabled
    """
    refuse_pending(metadata)
    if metadata.state == "Disabled":
        raise KeyDisabled(
            f"The key {metadata.arn} is disabled. Find out who disabled it and why, then enable it "
            "(kms:EnableKey)."
        )


def refuse_pending(metadata: KeyMetadata) -> None:
    """
    Raises:
        KeyPendingDeletion
    """
    if metadata.pending_deletion:
        until = f" on {metadata.deletion_date:%Y-%m-%d}" if metadata.deletion_date else ""
        raise KeyPendingDeletion(
            f"The key {metadata.arn} will be deleted{until}. Until then its destruction can be "
            "cancelled."
        )


def algorithm_of(metadata: KeyMetadata, label: Label) -> Algorithm:
    """
    Raises:
        BackendProtocolError: the key cannot be what its tag says.
        UnsupportedAlgorithm: the tag says nothing we know.
    """
    alg = find_algorithm(label.alg)
    if metadata.spec != alg.kms_key_spec or metadata.usage != "SIGN_VERIFY":
        raise BackendProtocolError(
            f"The key {metadata.arn} is tagged for {alg.id}, and is a {metadata.spec} key for "
            f"{metadata.usage}. Put its tag 'kmsjwks:alg' right."
        )
    return alg
