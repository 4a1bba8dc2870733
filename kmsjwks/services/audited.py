"""Acts in the audit trail: the intent before anything changes, the outcome after."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kmsjwks.domain.audit import ActRecord, AuditRecord, ChainHead, Phase
from kmsjwks.domain.errors import (
    AuditUnavailable,
    BackendUnavailable,
    KmsJwksError,
    StoreUnavailable,
)
from kmsjwks.domain.ports import AuditSink, Clock, LifecycleEvent

_log = logging.getLogger(__name__)
_NOT_SAID = (StoreUnavailable, BackendUnavailable)  # the answer may have been lost, not the request


class DeferringSink:
    """A sink that keeps records of what is done already until they can be written: before any
    other record. They are lost with the process; the intent in the trail and the database tell."""

    def __init__(self, sink: AuditSink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._kept: deque[AuditRecord] = deque()

    def record(self, record: AuditRecord) -> None:
        """
        Raises:
            AuditUnavailable: as the sink; also while what was kept cannot be written.
        """
        if self._kept:
            self._write_kept()
        self._sink.record(record)

    def record_all(self, records: Sequence[AuditRecord]) -> None:
        """As ``record``, for several: all or none."""
        if self._kept:
            self._write_kept()
        self._sink.record_all(records)

    def record_at_last(self, record: AuditRecord) -> None:
        """Write it now, or as soon as that is possible. Raises nothing."""
        try:
            self.record(record)
        except AuditUnavailable:
            _log.error(
                "An act was done whose outcome cannot be recorded now: %s. It is recorded as "
                "soon as the audit trail can be written.",
                record.as_event(),
            )
            self._kept.append(record)

    def _write_kept(self) -> None:
        with self._lock:
            while self._kept:
                self._sink.record(self._kept[0])
                self._kept.popleft()

    def head(self) -> ChainHead | None:
        return self._sink.head()

    def close(self) -> ChainHead | None:
        """
        Raises:
            AuditUnavailable: what was kept is lost.
        """
        self._write_kept()
        return self._sink.close()


class ActTrail:
    """Records acts in two phases. Thread-safe."""

    def __init__(self, sink: DeferringSink, clock: Clock) -> None:
        self._sink, self._clock = sink, clock

    @contextmanager
    def act(self, what: Act) -> Iterator[Made]:
        """Around the change itself, whose errors pass through. What it makes is put into what
        is yielded.

        Raises:
            AuditUnavailable: the intent cannot be recorded; the change was not begun.
        """
        intent = ActRecord(
            time=self._clock.now(),
            act=secrets.token_hex(8),
            phase=Phase.INTENT,
            event=what.event,
            principal=what.principal,
            keyset=what.keyset,
            kid=what.kid,
            backend=what.backend,
            ref=what.ref,
            detail=what.detail,
            request_id=what.request_id,
        )
        self._sink.record(intent)
        made = Made()
        try:
            yield made
        except Exception as error:
            unknown = isinstance(error, _NOT_SAID) or not isinstance(error, KmsJwksError)
            phase = Phase.UNKNOWN if unknown else Phase.FAILED
            code = error.code if isinstance(error, KmsJwksError) else "internal"
            self._end(intent, phase, code)
            raise
        self._end(replace(intent, ref=made.ref or intent.ref), Phase.OUTCOME)

    def _end(self, intent: ActRecord, phase: Phase, error: str = "") -> None:
        ended = replace(intent, phase=phase, time=self._clock.now(), error=error)
        self._sink.record_at_last(ended)


@dataclass(slots=True)
class Made:
    """What is known only when an act is done."""

    ref: str = ""


@dataclass(frozen=True, slots=True)
class Act:
    """What ``ActRecord`` says of an act in every phase."""

    event: str
    principal: str = ""
    keyset: str = ""
    kid: str = ""
    backend: str = ""
    ref: str = ""
    detail: str = ""
    request_id: str = ""


def lifecycle_act(event: LifecycleEvent, also: Sequence[str] = ()) -> Act:
    """``also``: what the event does not say of itself, in words."""
    detail = "; ".join(part for part in (event.detail, *also) if part)
    return Act(
        event=f"lifecycle.{event.event}",
        principal=event.actor,
        keyset=event.keyset,
        kid=event.kid or "",
        detail=detail,
        request_id=event.request_id,
    )
