"""Reading an audit directory: verification, search forwards and backwards, following it."""

from __future__ import annotations

import heapq
import json
import logging
import os
from calendar import timegm
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from time import strptime
from typing import Any, BinaryIO

from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.audittrail import TrailFile, TrailReport, parse_file_name
from kmsjwks.domain.auditverification import verify_trail
from kmsjwks.domain.checkpoints import Checkpoint
from kmsjwks.domain.errors import AuditUnavailable

_log = logging.getLogger(__name__)
_BLOCK = 64 * 1024
_SLACK = 10.0  # seconds by which a record may be older than the file that it is in

Record = dict[str, Any]
_Timed = tuple[float, Record]


class AuditReader:
    """Opens a file only when its turn comes. A line that is no record is logged and passed over:
    `verify` says what is wrong with it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def verify(self, checkpoints: Iterable[Checkpoint] = ()) -> TrailReport:
        """
        Args:
            checkpoints: those whose signatures were verified.

        Raises:
            AuditUnavailable: a file cannot be read.
        """
        try:
            found = self._as_it_stands()
            files = [TrailFile(path.name, partial(_lines, path, size)) for path, size in found]
            return verify_trail(files, checkpoints)
        except OSError as error:
            raise _unreadable(self._directory) from error

    def records(self, wanted: RecordFilter) -> Iterator[Record]:
        """Oldest first, over all chains.

        Raises:
            AuditUnavailable: a file cannot be read.
        """
        sources = [
            (_made(path) - _SLACK, partial(self._forwards, path, wanted)) for path in self._files()
        ]
        return self._merged(sorted(sources, key=lambda one: one[0]))

    def newest(self, wanted: RecordFilter) -> Iterator[Record]:
        """Newest first, reading no further back than is asked for.

        Raises:
            AuditUnavailable: a file cannot be read.
        """
        sources = [
            (-path.stat().st_mtime - _SLACK, partial(self._backwards, path, wanted))
            for path in self._files()
        ]
        return self._merged(sorted(sources, key=lambda one: one[0]))

    def follow(self, wanted: RecordFilter, wait: Callable[[], bool]) -> Iterator[Record]:
        """What is recorded from now on. ``wait`` is called when there is nothing more, returns
        when it is time to look again, and says whether to go on.

        Raises:
            AuditUnavailable: a file cannot be read.
        """
        needles = wanted.needles()
        offsets = {path: path.stat().st_size for path in self._files()}
        while True:
            fresh: list[_Timed] = []
            for path in self._files():
                lines, offsets[path] = _whole_lines(path, offsets.get(path, 0))
                fresh += _timed(path, lines, wanted, needles)
            yield from (record for _, record in sorted(fresh, key=lambda one: one[0]))
            if not wait():
                return

    def _merged(
        self, sources: list[tuple[float, Callable[[], Iterator[_Timed]]]]
    ) -> Iterator[Record]:
        """Merge by time; a source is opened when nothing before its earliest time is left."""
        heap: list[tuple[float, int, Record, Iterator[_Timed]]] = []
        turn = 0
        while sources or heap:
            while sources and (not heap or sources[0][0] <= heap[0][0]):
                turn += 1
                _push(heap, turn, sources.pop(0)[1]())
            if heap:
                _, at, record, source = heapq.heappop(heap)
                yield record
                _push(heap, at, source)

    def _forwards(self, path: Path, wanted: RecordFilter) -> Iterator[_Timed]:
        return _timed(path, _lines(path), wanted, wanted.needles())

    def _backwards(self, path: Path, wanted: RecordFilter) -> Iterator[_Timed]:
        last = path.stat().st_mtime
        lines = _lines_backwards(path, wanted.until)
        for time, record in _timed(path, lines, wanted, wanted.needles()):
            last = time or last
            yield -last, record

    def _files(self) -> list[Path]:
        return [path for path in self._paths("audit-*.jsonl") if parse_file_name(path.name)]

    def _as_it_stands(self) -> list[tuple[Path, int]]:
        """Files and the bytes of them to read, while others go on writing: a file is made before a
        record announces it, so that all are here which are announced in those bytes. Of those that
        were made meanwhile it is enough that they are there."""
        sizes = {path: path.stat().st_size for path in self._paths("*.jsonl")}
        return [(path, sizes.get(path, 0)) for path in self._paths("*.jsonl")]

    def _paths(self, pattern: str) -> list[Path]:
        """What is no file (a pipe, a directory, a link to nowhere) is not there: whoever put it
        there must not hold up a reader."""
        try:
            return sorted(path for path in self._directory.glob(pattern) if path.is_file())
        except OSError as error:
            raise _unreadable(self._directory) from error


def _push(
    heap: list[tuple[float, int, Record, Iterator[_Timed]]], turn: int, source: Iterator[_Timed]
) -> None:
    found = next(source, None)
    if found is not None:
        heapq.heappush(heap, (found[0], turn, found[1], source))


def _made(path: Path) -> float:
    name = parse_file_name(path.name)
    try:
        return float(timegm(strptime(name.made, "%Y%m%dT%H%M%SZ"))) if name else 0.0
    except ValueError:
        return 0.0


def _timed(
    path: Path, lines: Iterable[bytes], wanted: RecordFilter, needles: tuple[bytes, ...]
) -> Iterator[_Timed]:
    """The records wanted, each with its time; 0 until one has any."""
    last = 0.0
    for line in lines:
        if not all(needle in line for needle in needles):
            continue
        record = _record(path, line)
        if record is None:
            continue
        time = record.get("time")
        last = float(time) if isinstance(time, int | float) else last
        if wanted.matches(record):
            yield last, record


def _record(path: Path, line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return record
    _log.warning("A line in %s is no record; run 'kmsjwks audit verify'.", path.name)
    return None


def _lines(path: Path, size: int | None = None) -> Iterator[bytes]:
    """Of the first ``size`` bytes; of all for None."""
    try:
        with path.open("rb", buffering=1024 * 1024) as file:
            if size is None:
                yield from file
                return
            for line in file:
                if size <= 0:
                    return
                yield line[:size]
                size -= len(line)
    except OSError as error:
        raise _unreadable(path) from error


def _lines_backwards(path: Path, until: float | None) -> Iterator[bytes]:
    """The last line first, in blocks from the end, or from where ``until`` (seconds) is past."""
    try:
        with path.open("rb") as file:
            position, rest = file.seek(0, os.SEEK_END), b""
            if until is not None:
                position = _end_before(file, position, until + _SLACK)
            while position > 0:
                size = min(_BLOCK, position)
                position = file.seek(position - size)
                lines = (file.read(size) + rest).split(b"\n")
                rest = lines[0]
                yield from (line for line in reversed(lines[1:]) if line)
            if rest:
                yield rest
    except OSError as error:
        raise _unreadable(path) from error


def _end_before(file: BinaryIO, size: int, moment: float) -> int:
    """Where a line ends after which all records are later than ``moment``, by bisection."""
    low, high = 0, size
    while high - low > _BLOCK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        found = _time_of(file.readline())
        if found is None:
            return high  # what it is, a reader of lines may say
        if found > moment:
            high = middle
        else:
            low = middle
    file.seek(high)
    file.readline()
    return file.tell()


def _time_of(line: bytes) -> float | None:
    try:
        time = json.loads(line)["time"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return float(time) if isinstance(time, int | float) else None


def _whole_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """The lines after ``offset`` that are complete, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    except OSError as error:
        raise _unreadable(path) from error
    end = data.rfind(b"\n") + 1
    return data[:end].split(b"\n")[:-1], offset + end


def _unreadable(path: Path) -> AuditUnavailable:
    return AuditUnavailable(
        f"The audit trail in {path} cannot be read. Its files belong to the service's user."
    )
