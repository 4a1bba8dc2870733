"""Audit sink: JSON lines in append-only files, one hash chain a process."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from kmsjwks.domain.audit import GENESIS, SigningRecord, link
from kmsjwks.domain.errors import AuditUnavailable

_log = logging.getLogger(__name__)


class FileAuditSink:
    """Thread-safe and fork-safe: each process writes a file of its own. A record is durable when
    the operating system has it (``write(2)`` returned); it survives this process, not the
    machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._path = directory
        self._file: int | None = None
        self._pid = 0
        self._sequence, self._previous, self._size = 0, GENESIS, 0

    def record(self, record: SigningRecord) -> None:
        event = record.as_event()
        with self._lock:
            try:
                self._append(event)
            except OSError as error:
                self._abandon()
                raise AuditUnavailable(
                    "The audit record could not be written, so the token was not released. "
                    "The operator must look at the audit directory.",
                    retry_after=5,
                ) from error

    def _append(self, event: dict[str, object]) -> None:
        if self._file is None or self._pid != os.getpid() or not self._in_place(self._file):
            self._start()
        assert self._file is not None
        line, digest = link(event, self._sequence, self._previous)
        data = line + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError("short write")
        self._sequence, self._previous = self._sequence + 1, digest
        self._size += len(data)

    def _in_place(self, descriptor: int) -> bool:
        """Whether what we write is what a reader finds: not deleted, not moved away."""
        written = os.fstat(descriptor)
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is not None and (found.st_dev, found.st_ino) == (written.st_dev, written.st_ino):
            return True
        os.close(descriptor)
        self._file = None
        _log.error("The audit file %s was removed; going on in another one.", self._path)
        return False

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"audit-{started}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._path = self._directory / name
        self._file = os.open(self._path, flags, 0o600)
        self._pid = os.getpid()
        self._sequence, self._previous, self._size = 0, GENESIS, 0

    def _abandon(self) -> None:
        """Take a half-written line back where that still works, and start another file next."""
        descriptor, self._file = self._file, None
        if descriptor is None or self._pid != os.getpid():
            return
        with suppress(OSError):  # else the half line stays, as the last of its file
            os.ftruncate(descriptor, self._size)
        os.close(descriptor)
