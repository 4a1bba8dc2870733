"""Audit sink: JSON lines in append-only files, one hash chain a process."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmsjwks.domain.audit import AuditRecord, ChainHead, encode_record
from kmsjwks.domain.ports import Clock
from kmsjwks.storage.audit_chain import ChainWriter, FileLimits
from kmsjwks.storage.audit_commit import GroupCommit

_log = logging.getLogger(__name__)
_CLOSE = b""  # in the place of a record


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """``disk``: a record is durable when the disk has it, not the operating system (``write(2)``
    returned). ``timeout``: seconds that a record may take."""

    limits: FileLimits
    disk: bool = False
    timeout: float = 2.0


class FileAuditSink:
    """Thread-safe and fork-safe: each process writes a chain of its own.

    ``on_stall(thread ident)`` answers for a caller whose write hangs; without it, no call of
    ``record`` takes longer than the timeout, for the price of a thread.
    """

    def __init__(
        self,
        directory: Path,
        options: SinkOptions,
        clock: Clock,
        on_stall: Callable[[int], None] | None = None,
    ) -> None:
        self._directory, self._options, self._clock = directory, options, clock
        self._on_stall = on_stall
        self._reset()
        ours = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(ours()))

    def _reset(self) -> None:
        options = self._options
        self._writer = ChainWriter(self._directory, options.limits, self._clock, disk=options.disk)
        self._commit = GroupCommit(self._write, options.timeout, self._on_stall)
        self._failing = False
        self._closed: ChainHead | None = None

    def record(self, record: AuditRecord) -> None:
        """Return when the record is durable.

        Raises:
            AuditUnavailable: do not release what it records. The record is not in the trail,
                unless the write came back too late: then it may be, of something that was never
                released.
        """
        self._commit.submit(encode_record(record))

    def record_all(self, records: Sequence[AuditRecord]) -> None:
        """As ``record``, for several: one write, all or none."""
        if records:
            self._commit.submit_all([encode_record(record) for record in records])

    def head(self) -> ChainHead | None:
        """The last durable record of this process's chain; None where there is none."""
        return self._writer.head

    def close(self) -> ChainHead | None:
        """End the chain, so that it shows when its tail is cut off. What is recorded later begins
        another. The closing record; None where there was no chain.

        Raises:
            AuditUnavailable
        """
        if self._writer.head is None:
            return None
        self._commit.submit(_CLOSE)
        return self._closed

    def _write(self, bodies: Sequence[bytes]) -> None:
        records = [body for body in bodies if body is not _CLOSE]
        try:
            if records:
                self._writer.write(records)
            if len(records) < len(bodies):
                self._closed = self._writer.close()
        except OSError as error:
            self._report(error)
            raise
        if self._failing:
            self._failing = False
            _log.warning("The audit trail in %s can be written again.", self._directory)

    def _report(self, error: OSError) -> None:
        """Once, not for every request."""
        if not self._failing:
            self._failing = True
            _log.error(
                "The audit trail in %s cannot be written (%s): nothing is signed until it can.",
                self._directory,
                error.strerror or type(error).__name__,
            )


def _forked(sink: FileAuditSink | None) -> None:
    """In a child: the parent goes on with the chain, and a lock may be held by a thread that is
    not here."""
    if sink is not None:
        sink._reset()
