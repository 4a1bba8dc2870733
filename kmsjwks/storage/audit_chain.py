"""The files of one hash chain: written, rotated, closed; left for a new chain when damaged."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks import __version__
from kmsjwks.domain.audit import GENESIS, ChainHead, Control, encode, link
from kmsjwks.domain.audittrail import FileName
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.domain.ports import Clock

_log = logging.getLogger(__name__)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class FileLimits:
    """A file that reaches ``max_bytes``, or is ``max_age`` seconds old, is followed by another
    with the next record."""

    max_bytes: int
    max_age: float


@dataclass(frozen=True, slots=True)
class _Created:
    """A file that is open; ``identity`` is its ``st_dev`` and ``st_ino``, which no other file gets
    before it is closed."""

    file: int
    identity: tuple[int, int]


class _Displaced(OSError):
    """What we wrote is not what a reader finds."""


class ChainWriter:
    """One caller at a time. Every method but ``head`` raises OSError, and then nothing was
    recorded; the next call tries again."""

    def __init__(self, directory: Path, limits: FileLimits, clock: Clock, *, disk: bool) -> None:
        """``disk``: records are durable when the disk has them (fdatasync)."""
        self._directory, self._limits, self._clock, self._disk = directory, limits, clock, disk
        self._file: int | None = None
        self._path, self._name = "", FileName("", "", 0)
        self._identity = (0, 0)
        self._size, self._opened_at = 0, 0.0
        self._sequence, self._previous = 0, GENESIS
        self._greeting: bytes | None = None  # the file's first record, until it is written
        self._last: tuple[FileName, int, str] | None = None  # of what ``head`` is made

    @property
    def head(self) -> ChainHead | None:
        """The last record that is durable; of the chain before until this one has any."""
        if (last := self._last) is None:
            return None
        name, sequence, sha256 = last
        return ChainHead(name.chain, sequence, sha256, str(name))

    def write(self, bodies: Sequence[bytes]) -> None:
        """Append records, as ``audit.encode`` made them; all or none."""
        if self._file is not None and not self._in_place():
            self._abandon()
        if self._file is None:
            self._begin()
        elif self._is_full():
            self._rotate()
        self._put(bodies)

    def close(self) -> ChainHead | None:
        """End the chain, if there is one; a later ``write`` begins another. Its closing record."""
        if self._file is not None and not self._in_place():
            self._abandon()
        if self._file is None:
            return None
        if self._greeting is None:
            closing = encode({"event": Control.CLOSING, "time": self._now()})
            self._put([closing, encode({"event": Control.CLOSED})])
        os.close(self._file)
        closed, self._file, self._last = self.head, None, None
        return closed

    def _put(self, bodies: Sequence[bytes]) -> None:
        assert self._file is not None
        greeting = () if self._greeting is None else (self._greeting,)
        sequence, previous, lines = self._sequence, self._previous, []
        for body in (*greeting, *bodies):
            line, previous = link(body, self._name.chain, sequence, previous)
            lines.append(line)
            sequence += 1
        data = b"\n".join((*lines, b""))
        try:
            self._append(self._file, data)
        except _Displaced:
            self._abandon()
            raise
        except OSError:
            self._take_back(self._file)
            raise
        self._sequence, self._previous, self._greeting = sequence, previous, None
        self._size += len(data)
        self._last = (self._name, sequence - 1, previous)

    def _append(self, file: int, data: bytes) -> None:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._disk:
            os.fdatasync(file)
        written = os.fstat(file)
        if written.st_nlink == 0 or written.st_size != self._size + len(data):
            raise _Displaced(errno.ESTALE, "the audit file was changed meanwhile")

    def _in_place(self) -> bool:
        """Whether the path is still our file and holds what we wrote, no more and no less."""
        try:
            found = os.stat(self._path)  # noqa: PTH116  # on the signing path
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == self._identity and found.st_size == self._size

    def _is_full(self) -> bool:
        if self._greeting is not None:
            return False
        age = self._clock.now() - self._opened_at
        return self._size >= self._limits.max_bytes or age >= self._limits.max_age

    def _begin(self) -> None:
        after = self.head
        name = FileName(self._stamp(), secrets.token_hex(8), 1)
        created = self._create(name)
        self._sequence, self._previous = 0, GENESIS
        self._adopt(name, created)
        event: dict[str, Any] = {
            "event": Control.OPENED,
            "time": self._now(),
            "file": str(name),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
        }
        self._greeting = encode({**event, **_after(after)})

    def _rotate(self) -> None:
        """The next file is there before it is announced: an announced one that is missing was
        taken away."""
        old = self._file
        assert old is not None
        name = FileName(self._stamp(), self._name.chain, self._name.part + 1)
        created = self._create(name)
        event = {"event": Control.ROTATED, "time": self._now(), "next": str(name)}
        try:
            self._put([encode(event)])
        except OSError:
            os.close(created.file)
            with suppress(OSError):
                (self._directory / str(name)).unlink()
            raise
        before = str(self._name)
        os.close(old)
        self._adopt(name, created)
        self._greeting = encode(
            {
                "event": Control.CONTINUES,
                "time": self._now(),
                "file": str(name),
                "continues": before,
            }
        )

    def _create(self, name: FileName) -> _Created:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self._directory / str(name), _FLAGS, 0o600)
        try:
            status = os.fstat(file)
            if self._disk:
                self._sync_directory()
        except OSError:
            os.close(file)
            raise
        return _Created(file, (status.st_dev, status.st_ino))

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _adopt(self, name: FileName, created: _Created) -> None:
        self._name, self._path = name, str(self._directory / str(name))
        self._file, self._identity = created.file, created.identity
        self._size, self._opened_at = 0, self._clock.now()

    def _take_back(self, file: int) -> None:
        """Remove half of a batch, none of which anybody was told is recorded."""
        try:
            size = os.fstat(file).st_size
            if size > self._size:
                os.ftruncate(file, self._size)
        except OSError:  # the half line stays, as the last of its file
            self._abandon()

    def _abandon(self) -> None:
        file, self._file = self._file, None
        _log.error(
            "The audit file %s was removed, replaced or changed, or cannot be mended; "
            "going on in a new chain. Run 'kmsjwks audit verify'.",
            self._path,
        )
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _now(self) -> float:
        return round(self._clock.now(), 3)

    def _stamp(self) -> str:
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock.now()))


def _after(head: ChainHead | None) -> Mapping[str, Any]:
    if head is None:
        return {}
    named = {"chain": head.chain, "seq": head.seq, "sha256": head.sha256, "file": head.file}
    return {"after": named}


def check_directory(directory: Path) -> None:
    """Nobody but the service's user may write there.

    Raises:
        ConfigurationError
    """
    try:
        mode = directory.stat().st_mode
    except OSError:
        return  # made when first written to, which fails closed
    if stat.S_ISDIR(mode) and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            [
                f"audit.directory: others may write to {directory}, so they could replace the "
                f"audit trail; run: chmod go-w {directory}"
            ]
        )
    if stat.S_ISDIR(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.info("The audit directory %s can be read by others; its files cannot.", directory)
