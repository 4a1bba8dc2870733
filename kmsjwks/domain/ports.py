"""The interfaces between the services and the world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.approvals import Approval
from kmsjwks.domain.audit import AuditRecord, ChainHead
from kmsjwks.domain.documents import Document
from kmsjwks.domain.keys import Key, Keyset


@dataclass(frozen=True, slots=True)
class BackendKey:
    """A key in a backend's custody.

    ``ref`` is immutable (CKA_ID in lower-case hex, KMS key ARN), never a label or an alias;
    ``spki`` is DER SubjectPublicKeyInfo.
    """

    ref: str
    alg: Algorithm
    spki: bytes


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the device says about a key's custody.

    ``attributes`` keep the device's own names; None is a value the device does not tell.
    ``extraction_refused`` is True when reading the private value was tried and refused, or when the
    device has no operation that returns it; ``custody`` then says so, under ``export``.
    """

    ref: str
    custody: Mapping[str, str]
    attributes: Mapping[str, bool | str | None]
    extraction_refused: bool
    findings: tuple[str, ...] = field(default=())

    @property
    def sound(self) -> bool:
        """Nothing contradicts that the key cannot leave the device."""
        return self.extraction_refused and not self.findings


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """How a backend does, without asking the device. ``since`` is seconds since the epoch."""

    available: bool
    reason: str = ""
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `doctor` tried; ``said`` is in an administrator's words, several lines where
    there is something to paste."""

    check: str
    ok: bool
    said: str


class KeyBackend(Protocol):
    """Custody of private keys. Thread-safe. Raises only BackendError subclasses."""

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        """What the device really offers."""

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:
        """Generate a non-extractable key; the same ``request_id`` gives the same key.

        ``keyset`` is what the key is for, where the device can show that to people.

        Raises:
            UnsupportedAlgorithm: not in ``algorithms``, or the id is taken by another algorithm.
        """

    def get_key(self, ref: str) -> BackendKey:
        """
        Raises:
            KeyNotFound: the device is well and has no such key.
        """

    def list_keys(self) -> Iterator[BackendKey]:
        """Only keys that this program created."""

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        """The JOSE signature (RFC 7518 section 3) of ``message``, which is hashed here where the
        scheme hashes.

        Raises:
            MessageTooLarge: the device does not take so long a message; it was not asked.
        """

    def evidence(self, ref: str) -> Evidence: ...

    def destroy_key(self, ref: str) -> datetime:
        """The key serves nothing from now on. Idempotent. Returns when that becomes irreversible
        (aware, UTC): now, or the end of the device's own waiting window."""

    def cancel_destruction(self, ref: str) -> None:
        """Bring a key back whose destruction is not irreversible yet. Idempotent.

        Raises:
            KeyNotFound: it is.
        """

    def check(self) -> None:
        """Ask the device whether it can serve; signs nothing."""

    def status(self) -> BackendStatus: ...

    def close(self) -> None: ...


@runtime_checkable
class Concurrent(Protocol):
    """A backend that signs faster when it is asked for several signatures at once.

    ``concurrency``: for how many, at least 1. Calls are then made in threads that no request
    waits in, so ``ServerHooks.on_stall`` cannot answer for them: each must end by itself.
    """

    @property
    def concurrency(self) -> int: ...


@runtime_checkable
class SelfExamining(Protocol):
    """A backend that can say more about itself to `doctor` than what every backend is asked."""

    def examine(self, used: Sequence[BackendKey] = ()) -> Iterator[Finding]:
        """Check by check; raises nothing. ``used``: its keys that sign or stand by, which nothing
        is done to."""


@runtime_checkable
class Remembering(Protocol):
    """A backend whose ``check`` is better about a key that is there than about nothing at all."""

    def remember(self, ref: str) -> None:
        """This key is in use or stands by. Asks nobody, raises nothing."""


@dataclass(frozen=True, slots=True)
class BackendContext:
    """Where a backend's options are read: directories for relative paths and for lock files."""

    base: Path
    state: Path
    environ: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerHooks:
    """What a serving process does for a backend whose device hangs.

    ``on_stall(thread ident)`` answers the request which that thread serves;
    ``replace_process()`` ends the process at once, without cleaning up, to be started afresh.
    ``on_audit_stall`` answers as ``on_stall`` does, for a thread that the audit trail holds up;
    None where nobody can answer for it.
    ``workers``: how many processes like this one share what a machine may ask of a backend.
    """

    on_stall: Callable[[int], None]
    replace_process: Callable[[], None]
    on_audit_stall: Callable[[int], None] | None = None
    workers: int = 1


class BackendFactory(Protocol):
    """What the entry-point group ``kmsjwks.backends`` names: a class, made once per process."""

    def parse(self, name: str, options: Mapping[str, object], context: BackendContext) -> Any:
        """The settings for ``open``.

        Raises:
            ConfigurationError: every mistake at once.
        """

    def open(self, settings: Any, hooks: ServerHooks | None) -> KeyBackend:
        """Without ``hooks`` every call returns within its deadline; with them, a stuck call is
        reported instead. Touches no device yet."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key before and after; kid, keyset, algorithm, backend, ref and spki stay."""

    before: Key
    after: Key


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """What is recorded of a change, in the same transaction. ``time`` in seconds; ``detail`` is
    for people and holds no secret; ``request_id`` is kept in the audit trail only."""

    time: int
    actor: str
    keyset: str
    kid: str | None
    event: str
    detail: str = ""
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """What one process has signed, or reserved to sign, with one key: no token of its expires
    after ``max_exp`` (seconds). ``final``: it signs with this key no more, and ``max_exp`` is
    exact (0: it signed nothing)."""

    kid: str
    holder: str
    max_exp: int
    final: bool


class KeyStore(Protocol):
    """Keysets and keys. Thread-safe. Raises StoreUnavailable when the database does not answer.

    A consistent copy is read as ``revision``, then ``keysets``, then ``keys``: what changes in
    between shows as another revision next time.
    """

    def begin_creation(
        self, request_id: str, keyset: str, backend: str, algorithm: Algorithm, created_at: int
    ) -> None:
        """Record durably that a backend is about to be asked for a key, before it is asked.

        Nothing happens when the same creation was begun before, whatever its ``created_at``
        (seconds since the epoch).

        Raises:
            Conflict: the request id is that of another creation.
        """

    def abandon_creation(self, request_id: str) -> None:
        """Finish a creation whose key was disposed of. Nothing happens when it is not open."""

    def open_intents(self) -> Sequence[tuple[str, str, str, Algorithm, int]]:
        """The arguments of each ``begin_creation`` that is not finished, oldest first."""

    def add_keyset(
        self,
        keyset: Keyset,
        first_key: Key,
        *,
        request_id: str | None = None,
        spare: tuple[Key, str] | None = None,
        event: LifecycleEvent | None = None,
    ) -> None:
        """Add the keyset, its first key, and a ``spare`` with the request id of its creation;
        finish both creations; record the event. All or nothing.

        Raises:
            Conflict: the name, a kid, or a key in the backend is taken; a key is another keyset's;
                or no creation of this keyset, backend and algorithm is open under a request id.
        """

    def apply(
        self,
        changes: Sequence[Change],
        event: LifecycleEvent,
        *,
        added: Sequence[tuple[Key, str]] = (),
    ) -> None:
        """All changes, the keys ``added`` (with the request id of their creation, which this
        finishes) and the event, or nothing. A change counts ``version`` up by one.

        Raises:
            Conflict: a ``before`` is not what the store holds, by its version; or an added kid is
                taken; or the keyset would have two active keys.
            TransitionRefused: the database forbids the transition, or the key is on hold.
        """

    def update_keyset(
        self, before: Keyset, after: Keyset, changes: Sequence[Change], event: LifecycleEvent
    ) -> None:
        """Replace token rules, schedule, backend and standby, with changes to keys that follow
        from it, all or nothing. The keys stay in the backends where they are.

        Raises:
            Conflict: the store does not hold ``before``; name, algorithm or ``created_at`` differ;
                or as in ``apply``.
        """

    def propose(self, approval: Approval, event: LifecycleEvent) -> None:
        """Record a proposal and the event. What was proposed before is ended where it expired, or
        where it is the same act on the same key.

        Raises:
            Conflict: the key's version is not that of the proposal.
        """

    def approve(
        self, approval: Approval, changes: Sequence[Change], events: Sequence[LifecycleEvent]
    ) -> None:
        """Record who approved a proposal, and carry it out: all changes and events, or nothing.

        Raises:
            Conflict: it is not open any more, the approver is the proposer, or as in ``apply``.
            TransitionRefused: as in ``apply``.
        """

    def withdraw(self, approval: Approval, event: LifecycleEvent) -> None:
        """End a proposal, and record the event.

        Raises:
            Conflict: it is not open any more.
        """

    def approvals(self, keyset: str | None = None) -> Sequence[Approval]:
        """Newest first, whatever became of them."""

    def events(self, keyset: str, limit: int = 100) -> Sequence[LifecycleEvent]:
        """Newest first."""

    def planner_lock(self) -> AbstractContextManager[bool]:
        """One holder in the whole installation, freed when its process dies. Yields whether we
        have it; never waits."""

    def extend_lease(self, kid: str, holder: str, max_exp: int) -> None:
        """Record durably that ``holder`` may sign up to ``max_exp``; never lowers it.

        Raises:
            Conflict: the lease is final.
        """

    def extend_leases(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """As ``extend_lease`` for each, in one transaction. Returns those that are final in the
        store: they were left alone."""

    def finish_lease(self, kid: str, holder: str, max_exp: int) -> None:
        """``holder`` signs with this key no more; ``max_exp`` is exact, and replaces what was
        reserved. Makes the lease where there is none."""

    def leases(self, kid: str) -> Sequence[Lease]:
        """By holder."""

    def keysets(self) -> Sequence[Keyset]:
        """By name."""

    def keys(self, keyset: str | None = None) -> Sequence[Key]:
        """By keyset and creation time."""

    def revision(self) -> int:
        """Cheap to poll. Differs, and is greater, after every change of keysets or keys."""

    def check(self) -> None:
        """
        Raises:
            StoreUnavailable: also when the schema is not that of this version.
        """


class AuditSink(Protocol):
    """Append-only. Thread-safe."""

    def record(self, record: AuditRecord) -> None:
        """Return when the record is durable, or soon.

        Raises:
            AuditUnavailable: it is not durable, or was not in time; do not release what it
                records.
        """

    def record_all(self, records: Sequence[AuditRecord]) -> None:
        """As ``record``, for several at once: all of them or none."""

    def head(self) -> ChainHead | None:
        """The last durable record of this process's chain, for a checkpoint; None before any."""

    def close(self) -> ChainHead | None:
        """End the chain in an orderly way; its closing record, None where there was no chain.

        Raises:
            AuditUnavailable
        """


class DocumentTarget(Protocol):
    """A place that documents are published to. Thread-safe; several processes may write."""

    def publish(self, name: str, document: Document) -> bool:
        """Write the document where it differs from what is there, all or nothing. ``name`` is its
        URL path without leading slash. Returns whether it was written.

        Raises:
            PublicationFailed: what is there is as it was; the message says what to do.
        """


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch."""
