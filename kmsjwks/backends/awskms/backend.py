"""The KeyBackend over AWS KMS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime

from kmsjwks.backends.awskms.creation import Creation
from kmsjwks.backends.awskms.deletion import Deletion
from kmsjwks.backends.awskms.evidence import evidence_of
from kmsjwks.backends.awskms.examination import Examination
from kmsjwks.backends.awskms.failures import KeyStateForbids
from kmsjwks.backends.awskms.health import Health
from kmsjwks.backends.awskms.inventory import Inventory, refuse_pending, refuse_unusable
from kmsjwks.backends.awskms.keycalls import KeyCalls
from kmsjwks.backends.awskms.naming import Label, alias_name
from kmsjwks.backends.awskms.patience import Patience
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.backends.awskms.signing import jose_signature, signing_input
from kmsjwks.domain.algorithms import ALGORITHMS, Algorithm
from kmsjwks.domain.errors import BackendError, UnsupportedAlgorithm
from kmsjwks.domain.ports import BackendKey, BackendStatus, Evidence, Finding

_AT_ONCE = 16  # at 10 ms a round trip, more than this process's CPU has time for
_OFFERED = frozenset(alg for alg in ALGORITHMS if alg.kms_key_spec is not None)


class KmsBackend:
    """Custody by AWS KMS in one account. Thread-safe, lazy: asks nobody before first use.

    References are key ARNs; aliases are for people only. A multi-Region key is known by the ARN
    of its primary key and served by whichever configured Region answers first, in their order.
    """

    def __init__(
        self,
        settings: KmsSettings,
        regions: Regions | None = None,
        patience: Patience | None = None,
    ) -> None:
        """``regions`` is closed with this backend."""
        regions, patience = regions or Regions(settings), patience or Patience()
        self._settings, self._regions = settings, regions
        self._calls = KeyCalls(settings, regions)
        self._inventory = Inventory(self._calls, patience)
        self._creation = Creation(self._calls, self._inventory, patience)
        self._deletion = Deletion(self._calls, self._inventory)
        self._health = Health(self._calls, alias_name(settings.installation, "health"))

    @property
    def concurrency(self) -> int:
        """A signature is a round trip, most of which is waiting."""
        return _AT_ONCE

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        """What AWS documents; a Region that lags behind says so when a key is created."""
        return _OFFERED

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:
        """As the port says; processes must not make the same request at once.

        A multi-Region key is finished when each configured Region has its replica.

        Raises:
            BackendUnavailable: the home Region does not answer, whatever the others do, or a
                replica Region does not. The same request again completes the key.
        """
        if alg not in _OFFERED:
            raise UnsupportedAlgorithm(
                f"AWS KMS does not offer {alg.id}. It offers: "
                f"{', '.join(sorted(one.id for one in _OFFERED))}."
            )
        label = Label(self._settings.installation, keyset, alg.id, request_id)
        key = self._creation.ensure(alg, label)
        self._health.used(self._calls.locate(key.ref))
        return key

    def get_key(self, ref: str) -> BackendKey:
        """
        Raises:
            KeyNotFound, KeyPendingDeletion: also for a key that has not our tags.
            KeyDisabled: it serves nothing until somebody enables it.
        """
        key = self._inventory.read(ref)
        self._health.used(self._calls.locate(ref))
        return key

    def list_keys(self) -> Iterator[BackendKey]:
        """By the tags of the keys in the home Region; none that is pending deletion."""
        yield from self._inventory.readable()

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        """One call of Sign, and no other but where it does not say what keeps the key from it."""
        arn = self._calls.locate(key.ref)
        params = signing_input(key, message)
        try:
            asked, answer = self._calls.ask("Sign", arn, params, doing="signing", limited=True)
        except KeyStateForbids:
            refuse_unusable(self._calls.describe(arn))
            raise
        self._health.used(arn)
        return jose_signature(answer, asked, key.alg)

    def evidence(self, ref: str) -> Evidence:
        arn = self._calls.locate(ref)
        metadata = self._calls.describe(arn)
        refuse_pending(metadata)
        endpoint = self._regions.endpoint(metadata.arn.region)
        return evidence_of(ref, metadata, self._inventory.label(arn), endpoint)

    def destroy_key(self, ref: str) -> datetime:
        """Disabled at once, deleted by AWS KMS after the configured window.

        Raises:
            BackendDenied: the key is not this installation's.
            KeyNotFound: not a key ARN. A key that is deleted already is no error.
        """
        return self._deletion.destroy(ref)

    def cancel_destruction(self, ref: str) -> None:
        """Enables the key again, too.

        Raises:
            KeyNotFound: the key is deleted.
            BackendDenied: it is not this installation's.
        """
        self._deletion.cancel(ref)

    def remember(self, ref: str) -> None:
        """As `ports.Remembering`: ``check`` asks about these keys in a process that signs not."""
        with suppress(BackendError):  # signing says what is wrong with it
            self._health.remember(self._calls.locate(ref))

    def check(self) -> None:
        """DescribeKey of a key that was used or remembered, else of an alias; see `Health`."""
        self._health.check()

    def examine(self, used: Sequence[BackendKey] = ()) -> Iterator[Finding]:
        """For `doctor`: credentials, permissions, quotas. Makes a key and schedules its deletion,
        and makes dry runs with the keys that are ``used``; raises nothing."""
        return Examination(self._settings, self._regions, used=used).run()

    def status(self) -> BackendStatus:
        return self._regions.status()

    def close(self) -> None:
        self._regions.close()
