"""Checkpoints of the audit trail: its head signed by a key in a backend, and kept elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kmsjwks.domain.audit import GENESIS, ChainHead
from kmsjwks.domain.checkpointproof import CHECKPOINT_MEDIA_TYPE, CHECKPOINT_TYP
from kmsjwks.domain.checkpoints import Checkpoint
from kmsjwks.domain.documents import Document, make_document
from kmsjwks.domain.errors import (
    BackendProtocolError,
    BackendUnavailable,
    KeysetUnusable,
    KmsJwksError,
    PublicationFailed,
)
from kmsjwks.domain.jws import read_compact
from kmsjwks.domain.keys import Key
from kmsjwks.domain.ports import AuditSink, Clock, DocumentTarget
from kmsjwks.domain.signatures import make_verifier
from kmsjwks.services.snapshot import ActiveKey, SnapshotKeeper

_log = logging.getLogger(__name__)
_MAX_WAITING = 10_000  # checkpoints of one process that a target has not taken
_END_PATIENCE = 2.0  # seconds that the end of a process waits for a checkpoint under way
_MOST_OTHERS = 16  # chains of others in one checkpoint: devices sign Ed25519 over 4 KiB at most
_GIVE_UP_AFTER = 3  # failures in a row: the target is down, and each may take its whole timeout


class UnsignedEnds(Protocol):
    """Ends of chains that their own processes have not signed."""

    def heads(self, own: str) -> Sequence[ChainHead]:
        """Of other chains than ``own``; those that ``signed`` was told of no more."""

    def signed(self, heads: Sequence[ChainHead]) -> None: ...


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The signature of a checkpoint, in the audit trail like any other. ``checkpoint`` is the
    SHA-256 of its payload. The last of a process is recorded before it is signed, because it
    covers the end of the chain: then ``checkpoint`` is empty and the event another."""

    time: float
    keyset: str
    kid: str
    previous: str
    checkpoint: str = ""

    def as_event(self) -> dict[str, Any]:
        named = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        return {
            "event": "checkpoint.signed" if self.checkpoint else "checkpoint.final",
            "time": round(self.time, 3),
            "keyset": self.keyset,
            "kid": self.kid,
            "previous": self.previous,
            **named,
        }


@dataclass(frozen=True, slots=True)
class CheckpointPlan:
    """``keyset`` signs every ``interval`` seconds. ``kept`` is where the process keeps its own;
    ``targets`` where others do."""

    keyset: str
    interval: float
    kept: DocumentTarget
    targets: Sequence[DocumentTarget] = ()


class CheckpointSigner:
    """Signs the head of this process's chain, and once the end of each that nobody signed.
    Thread-safe; raises what the snapshot and the backend raise."""

    def __init__(
        self,
        keyset: str,
        snapshots: SnapshotKeeper,
        audit: AuditSink,
        clock: Clock,
        others: UnsignedEnds | None = None,
    ) -> None:
        self._keyset, self._snapshots = keyset, snapshots
        self._audit, self._clock, self._others = audit, clock, others
        self._lock = threading.Lock()
        self._previous = GENESIS
        self._own: ChainHead | None = None  # the record of our last checkpoint, if nothing followed

    def sign(self) -> tuple[str, Document] | None:
        """The checkpoint's name and itself; None where there is nothing new. Its record is durable.

        Raises:
            KmsJwksError: it is not signed now.
        """
        with self._lock:
            head = self._audit.head()
            if head is None:
                return None
            others = tuple(self._others.heads(head.chain)[:_MOST_OTHERS]) if self._others else ()
            if head == self._own and not others:
                return None
            active = self._active()
            made, token = self._signed((head, *others), active)
            before = self._audit.head()
            self._audit.record(self._record(active, made.sha256))
            self._previous = made.sha256
            if self._others is not None:
                self._others.signed(others)
            after = self._audit.head()
            self._own = after if before == head and _only_one_between(before, after) else None
            return checkpoint_name(made), _document(token)

    def sign_end(self) -> tuple[str, Document] | None:
        """End the chain, then sign its closing record, so that nothing of it can be cut off unseen.
        The signature is recorded before.

        Raises:
            AuditUnavailable: the chain is not ended.
            KmsJwksError: it is ended, but not signed.
        """
        if self._audit.head() is None:
            return None
        free = self._lock.acquire(timeout=_END_PATIENCE)
        try:
            try:
                if not free:
                    raise BackendUnavailable("The last checkpoint has not come back yet.")
                active = self._active()
                self._audit.record(self._record(active, ""))
            finally:
                end = self._audit.close()
            if end is None:
                return None
            made, token = self._signed((end,), active)
            self._previous = made.sha256
            return checkpoint_name(made), _document(token)
        finally:
            if free:
                self._lock.release()

    def _active(self) -> ActiveKey:
        ready = self._snapshots.for_signing(self._keyset)
        active = ready.active_at(self._clock.now()) if ready is not None else None
        if active is None:
            raise KeysetUnusable(
                f"The keyset {self._keyset}, which audit.checkpoint_keyset names, does not exist "
                "or has no active key. Create it with 'kmsjwks keysets create'.",
                retry_after=30,
            )
        return active

    def _signed(self, heads: tuple[ChainHead, ...], active: ActiveKey) -> tuple[Checkpoint, str]:
        made = Checkpoint(int(self._clock.now()), heads, self._previous)
        token = active.signer.compact({"typ": CHECKPOINT_TYP}, made.payload())
        _verify(token, active.key)
        return made, token

    def _record(self, active: ActiveKey, sha256: str) -> CheckpointRecord:
        now = self._clock.now()
        return CheckpointRecord(now, self._keyset, active.key.kid, self._previous, sha256)


def _verify(token: str, key: Key) -> None:
    """Whatever is verified of others: an archive keeps a checkpoint for years, and it is to prove
    something then.

    Raises:
        BackendProtocolError
    """
    _, _, message, signature = read_compact(token)
    if not make_verifier(key.algorithm, key.spki)(message, signature):
        raise BackendProtocolError(
            "The backend returned a signature that its own public key does not verify. "
            "The checkpoint was not released; check the device."
        )


def _only_one_between(before: ChainHead, after: ChainHead | None) -> bool:
    """Whether one record was added, with the two that change files if they did."""
    if after is None or after.chain != before.chain:
        return False
    return after.seq - before.seq == (1 if after.file == before.file else 3)


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """One object a checkpoint, never written twice, in the order of their time."""
    head = checkpoint.heads[0]
    made = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(checkpoint.time))
    return f"checkpoint-{made}-{head.chain}-{head.seq:012d}.jws"


def _document(token: str) -> Document:
    return make_document(token.encode() + b"\n", CHECKPOINT_MEDIA_TYPE, "no-store")


@dataclass(slots=True)
class _Waiting:
    """What one target has not taken yet, oldest first."""

    target: DocumentTarget
    documents: deque[tuple[str, Document]] = field(
        default_factory=lambda: deque(maxlen=_MAX_WAITING)
    )


class Checkpointer:
    """Signs at an interval in a thread of its own, and once when the process ends. Whatever fails
    is tried again and logged once: signing of tokens never waits for it."""

    def __init__(self, signer: CheckpointSigner, plan: CheckpointPlan) -> None:
        self._signer, self._plan = signer, plan
        self._places = [_Waiting(target) for target in (plan.kept, *plan.targets)]
        self._lock = threading.Lock()  # of the places
        self._wake = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failing: set[str] = set()

    def start(self) -> None:
        """Idempotent."""
        with self._start_lock:
            if self._thread is None and not self._wake.is_set():
                self._thread = threading.Thread(
                    target=self._keep, name="kmsjwks-checkpoints", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Sign no more, end the chain, and sign its end. Never raises."""
        self._wake.set()
        self._attempt("signing", self._signer.sign_end)
        self._publish()

    def once(self) -> None:
        """One checkpoint, if there is something new, and what is left to publish."""
        self._attempt("signing", self._signer.sign)
        self._publish()

    def _keep(self) -> None:
        while not self._wake.wait(self._plan.interval):
            self.once()

    def _attempt(self, what: str, sign: Callable[[], tuple[str, Document] | None]) -> None:
        try:
            made = sign()
        except KmsJwksError as error:
            self._failed(what, str(error))
        except Exception as error:  # a bug must neither end the thread nor keep a process
            _log.exception("A checkpoint failed in a way that it should not.")
            self._failed(what, type(error).__name__)
        else:
            self._works(what)
            if made is not None:
                with self._lock:
                    for place in self._places:
                        place.documents.append(made)

    def _publish(self) -> None:
        with self._lock:
            for place in self._places:
                self._publish_to(place)

    def _publish_to(self, place: _Waiting) -> None:
        name = str(place.target)
        failures = publish_in_order(place.target, place.documents)
        if failures:
            self._failed(name, failures)
        elif not place.documents:
            self._works(name)

    def _failed(self, what: str, why: str) -> None:
        if what not in self._failing:
            self._failing.add(what)
            _log.error("Checkpoints of the audit trail are late (%s): %s", what, why)

    def _works(self, what: str) -> None:
        if what in self._failing:
            self._failing.discard(what)
            _log.warning("Checkpoints of the audit trail work again (%s).", what)


def publish_in_order(target: DocumentTarget, waiting: deque[tuple[str, Document]]) -> str:
    """Publish and take out, oldest first, until one fails; why it did, empty where none did."""
    while waiting:
        name, document = waiting[0]
        try:
            target.publish(name, document)
        except PublicationFailed as error:
            return str(error)
        waiting.popleft()
    return ""


def publish_all(
    targets: Iterable[DocumentTarget], kept: Iterable[tuple[str, bytes]]
) -> tuple[list[str], list[str]]:
    """Publish checkpoints that were kept, ``(name, content)``, wherever they are missing; what was
    written, and what failed."""
    written: list[str] = []
    failures: list[str] = []
    checkpoints = list(kept)
    for target in targets:
        in_a_row = 0
        for name, body in checkpoints:
            document = make_document(body, CHECKPOINT_MEDIA_TYPE, "no-store")
            try:
                if target.publish(name, document):
                    written.append(f"{target}: {name}")
                in_a_row = 0
            except PublicationFailed as error:
                failures.append(str(error))
                in_a_row += 1
                if in_a_row == _GIVE_UP_AFTER:
                    break
    return written, failures
