"""Verification of one hash chain, line by line, in constant memory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from kmsjwks.domain.audit import GENESIS, ChainHead, Control
from kmsjwks.domain.audittrail import (
    ChainReport,
    Kind,
    Problem,
    Status,
    TrailFile,
    parse_file_name,
)

_PLACE = re.compile(
    rb',"chain":"([0-9a-f]{16})","seq":(0|[1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})"}'
)
_CLOSED = b'{"event":"audit.closed"'
_BEGINS = b'{"event":"'
_CONTROL = re.compile(rb"[\x00-\x1f]")  # escaped in JSON

Claims = Mapping[int, frozenset[str]]
"""``seq`` -> SHA-256 of the record that somebody saw there; two contradict each other."""


def place_of(line: bytes) -> tuple[str, int] | None:
    """Chain and ``seq`` of a record; None where the line is none."""
    found = _PLACE.match(line, max(line.rfind(b',"chain":"'), 0))
    return (found[1].decode(), int(found[2])) if found and found.end() == len(line) else None


def is_closing(line: bytes) -> bool:
    """Whether the record ends its chain."""
    return line.startswith(_CLOSED + b",")


class _Bad(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Missing(Exception):
    """Record ``seq`` is not where it belongs: deleted, or further on."""

    def __init__(self, seq: int, problem: Problem) -> None:
        super().__init__(str(problem))
        self.seq, self.problem = seq, problem


def verify_chain(chain: str, files: Sequence[TrailFile], claims: Claims) -> ChainReport:
    """``files`` are all of the chain, in the order of their parts."""
    check = _ChainCheck(chain, files, claims)
    positions = check.positions()
    try:
        for number, raw in positions:
            check.take(number, raw)
        check.finish()
    except _Bad as bad:
        return check.report(bad.problem)
    except _Missing as gap:
        return check.report(_reordered_or_deleted(gap, check, positions))
    return check.report(None)


def _reordered_or_deleted(
    gap: _Missing, check: _ChainCheck, rest: Iterator[tuple[int, bytes]]
) -> Problem:
    for number, raw in rest:
        place = _PLACE.search(raw)
        if place is not None and int(place[2]) == gap.seq:
            where = f"{check.file.name}:{number}"
            said = f"record {gap.seq} belongs here; it is in {where}"
            problem = gap.problem
            return Problem(Kind.REORDERED, problem.file, problem.line, problem.seq, said)
    return gap.problem


class _ChainCheck:
    def __init__(self, chain: str, files: Sequence[TrailFile], claims: Claims) -> None:
        self._chain, self._files, self._claims = chain, files, claims
        self.file = files[0]
        self._seq, self._sha256 = 0, GENESIS  # expected next
        self._file = ""  # of the record before
        self._line = 0
        self._next_file: str | None = None
        self._closed, self._announced = False, ""
        self._torn: tuple[str, int] | None = None
        self._times: tuple[float, float] | None = None

    def positions(self) -> Iterator[tuple[int, bytes]]:
        """Line number and line, file by file (``self.file`` is the one it is in)."""
        for file in self._files:
            self.file = file
            yield from enumerate(file.lines(), 1)

    def take(self, number: int, raw: bytes) -> None:
        """
        Raises:
            _Bad, _Missing
        """
        if self._torn is not None:
            file, line = self._torn
            raise _Bad(Problem(Kind.TRUNCATED, file, line, None, "half a record, others follow"))
        if self._closed:
            self._bad(Kind.FOREIGN, number, None, "a record after the closing one")
        if number > 1 and self._next_file is not None:
            self._bad(Kind.FOREIGN, number, None, "a record after the last one of this file")
        if not raw.endswith(b"\n"):
            if raw[: len(_BEGINS)] != _BEGINS[: len(raw)] or _CONTROL.search(raw):
                self._bad(Kind.INVALID, number, None, "this is not the beginning of a record")
            self._torn = (self.file.name, number)
            return
        text = raw[:-1]
        record, chain, seq, previous = self._parse(number, text)
        if chain != self._chain:
            kind = Kind.SWAPPED_FILE if number == 1 else Kind.FOREIGN
            self._bad(kind, number, seq, f"a record of the chain {chain}")
        if number == 1:
            self._starts_file(record, seq)
        elif record["event"] in (Control.OPENED, Control.CONTINUES):
            self._bad(Kind.FOREIGN, number, seq, "this record may only begin a file")
        self._in_place(number, seq, previous, text)
        self._advance(number, seq, text, record)

    def _parse(self, number: int, line: bytes) -> tuple[dict[str, Any], str, int, str]:
        place = _PLACE.match(line, max(line.rfind(b',"chain":"'), 0))
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            seq = int(place[2]) if place else None
            self._bad(Kind.INVALID, number, seq, "this is not a line of JSON")
        whole = place is not None and place.end() == len(line) and isinstance(record, dict)
        if place is None or not whole or not isinstance(record.get("event"), str):
            self._bad(Kind.INVALID, number, None, "this is not a record of the audit trail")
        return record, place[1].decode(), int(place[2]), place[3].decode()

    def _starts_file(self, record: dict[str, Any], seq: int) -> None:
        name, event = self.file.name, record["event"]
        if event not in (Control.OPENED, Control.CONTINUES) and seq > self._seq:
            self._missing_before(1, seq)
        if record.get("file") != name:
            said = f"this is the file {record.get('file')!r}, or its first record was replaced"
            self._bad(Kind.SWAPPED_FILE, 1, seq, said)
        if not self._file:
            if event != Control.OPENED:
                said = f"the part before, {record.get('continues')!r}, is missing"
                self._bad(Kind.MISSING_FILE, 1, seq, said)
            return
        if event == Control.OPENED:
            self._bad(Kind.SWAPPED_FILE, 1, seq, "a chain begins here a second time")
        if self._next_file is None:
            if seq > self._seq:
                self._bad_before(Kind.TRUNCATED, f"{seq - self._seq} records are missing after it")
            self._bad_before(Kind.EDITED, f"it does not announce the next file, {name}")
        if self._next_file != name:
            self._bad(Kind.MISSING_FILE, 1, seq, f"the part before, {self._next_file}, is missing")
        if record.get("continues") != self._file:
            self._bad(Kind.SWAPPED_FILE, 1, seq, f"it does not continue {self._file}")

    def _in_place(self, number: int, seq: int, previous: str, line: bytes) -> None:
        if seq == self._seq:
            if previous == self._sha256:
                return
            if seq == 0:
                self._bad(Kind.EDITED, number, seq, "the first record follows none")
            self._bad_before(Kind.EDITED, "the next record knows another SHA-256 of it")
        if previous == self._sha256:
            said = f"its seq was changed; it was {self._seq}"
            self._bad(Kind.EDITED, number, seq, said)
        if seq < self._seq:
            same = hashlib.sha256(line).hexdigest() == self._sha256
            said = "the record before once more" if same else f"record {self._seq} belongs here"
            self._bad(Kind.DUPLICATE, number, seq, said)
        self._missing_before(number, seq)

    def _missing_before(self, number: int, seq: int) -> NoReturn:
        lost = f"{self._seq} to {seq - 1}" if seq - self._seq > 1 else f"{self._seq}"
        said = f"missing before it: {lost}"
        raise _Missing(self._seq, Problem(Kind.DELETED, self.file.name, number, seq, said))

    def _advance(self, number: int, seq: int, line: bytes, record: dict[str, Any]) -> None:
        sha256 = hashlib.sha256(line).hexdigest()
        if self._claims.get(seq, frozenset()) - {sha256}:
            said = "a checkpoint, or a later chain, knows another record here"
            self._bad(Kind.REWRITTEN, number, seq, said)
        event = record["event"]
        self._next_file = None
        if event == Control.ROTATED:
            self._next_file = str(record.get("next"))
        elif event == "checkpoint.signed":
            self._announced = str(record.get("checkpoint"))
        elif event == Control.CLOSED:
            place = line.rfind(b',"chain":"')
            if line[:place] != _CLOSED:  # nothing vouches for what it would say beyond that
                self._bad(Kind.EDITED, number, seq, "a closing record says nothing but its place")
            self._closed = True
        time = record.get("time")
        if isinstance(time, int | float):
            self._times = (self._times[0] if self._times else time, time)
        self._seq, self._sha256 = seq + 1, sha256
        self._file, self._line = self.file.name, number

    def finish(self) -> None:
        """
        Raises:
            _Bad: the end is missing.
        """
        known = {file.name for file in self._files}
        if self._next_file is not None and self._next_file not in known:
            self._bad_before(Kind.MISSING_FILE, f"the next part, {self._next_file}, is missing")
        beyond = [seq for seq in self._claims if seq >= self._seq]
        if beyond:
            said = f"the chain ends here, but went on to record {max(beyond)} at least"
            self._bad_before(Kind.TRUNCATED, said)

    def _bad(self, kind: Kind, number: int, seq: int | None, said: str) -> NoReturn:
        raise _Bad(Problem(kind, self.file.name, number, seq, said))

    def _bad_before(self, kind: Kind, said: str) -> NoReturn:
        """About the last record that was taken."""
        file = self._file or self._files[0].name
        raise _Bad(Problem(kind, file, self._line, self._seq - 1 if self._seq else None, said))

    def report(self, problem: Problem | None) -> ChainReport:
        head = None
        if self._seq:
            head = ChainHead(self._chain, self._seq - 1, self._sha256, self._file)
        first, last = self._times or (None, None)
        return ChainReport(
            chain=self._chain,
            files=tuple(file.name for file in self._files),
            records=self._seq,
            first_time=first,
            last_time=last,
            head=head,
            status=self._status(problem),
            problem=problem,
            torn="{}:{}".format(*self._torn) if self._torn else "",
            announced=self._announced,
        )

    def _status(self, problem: Problem | None) -> Status:
        if problem is not None:
            return Status.BROKEN
        if self._torn:
            return Status.TORN
        if self._closed:
            return Status.CLOSED
        return Status.OPEN if self._seq else Status.EMPTY


def announced_by(name: str, first_line: bytes) -> ChainHead | None:
    """The chain that a new one took the place of, as its opening record says; None where it says
    nothing that can be read."""
    found = parse_file_name(name)
    if found is None or found.part != 1:
        return None
    try:
        record = json.loads(first_line)
        after = record["after"]
        return ChainHead(
            str(after["chain"]), int(after["seq"]), str(after["sha256"]), str(after["file"])
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
