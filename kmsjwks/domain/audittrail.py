"""Names and results of a verified audit trail: files, what was found, and how a chain stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from kmsjwks.domain.audit import ChainHead

_NAME = re.compile(r"audit-([0-9]{8}T[0-9]{6}Z)-([0-9a-f]{16})-([0-9]{5,9})\.jsonl")


@dataclass(frozen=True, slots=True)
class FileName:
    """``audit-<UTC time of its making>-<chain>-<part, from 1>.jsonl``."""

    made: str
    chain: str
    part: int

    def __str__(self) -> str:
        return f"audit-{self.made}-{self.chain}-{self.part:05d}.jsonl"


def parse_file_name(name: str) -> FileName | None:
    match = _NAME.fullmatch(name)
    return FileName(match[1], match[2], int(match[3])) if match else None


@dataclass(frozen=True, slots=True)
class TrailFile:
    """``lines()`` are a file's lines in order, each with its newline (the last may lack it)."""

    name: str
    lines: Callable[[], Iterable[bytes]]


class Kind(StrEnum):
    """What is wrong with a record."""

    EDITED = "edited"
    DELETED = "deleted"
    REORDERED = "reordered"
    DUPLICATE = "duplicate"
    FOREIGN = "foreign"
    INVALID = "invalid"  # no JSON object, or without its place in the chain
    TRUNCATED = "truncated"
    MISSING_FILE = "missing-file"
    SWAPPED_FILE = "swapped-file"
    REWRITTEN = "rewritten"  # another record stands where a checkpoint knows one


@dataclass(frozen=True, slots=True)
class Problem:
    """The first bad record of a chain: ``line`` from 1, 0 for the file itself; ``seq`` is None
    where it cannot be told. ``said`` is for people."""

    kind: Kind
    file: str
    line: int
    seq: int | None
    said: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        record = "" if self.seq is None else f" (seq {self.seq})"
        return f"{where}{record}: {self.kind}: {self.said}"


class Status(StrEnum):
    """How a chain ends. Of an ``open`` or ``torn`` one only a checkpoint can tell whether records
    are missing at its end."""

    CLOSED = "closed"  # in an orderly way: nothing is missing
    OPEN = "open"  # its process still runs, was killed, or the tail was cut off
    TORN = "torn"  # open, and its last line is half a record
    EMPTY = "empty"  # a file without a record
    BROKEN = "broken"  # see the problem


@dataclass(frozen=True, slots=True)
class ChainReport:
    """``records`` and ``head`` count up to the problem, where there is one. Times in seconds;
    None where no record has one. ``torn`` says where half a line is; ``announced`` is the SHA-256
    of the last checkpoint that the chain says was signed, empty for none."""

    chain: str
    files: tuple[str, ...]
    records: int
    first_time: float | None
    last_time: float | None
    head: ChainHead | None
    status: Status
    problem: Problem | None = None
    torn: str = ""
    announced: str = ""


@dataclass(frozen=True, slots=True)
class TrailReport:
    """``strangers``: files that are none of the trail by their names."""

    chains: tuple[ChainReport, ...]
    strangers: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(chain.problem for chain in self.chains if chain.problem is not None)

    @property
    def sound(self) -> bool:
        """Nothing contradicts the trail; ``Status`` says what it does not prove."""
        return not self.problems

    @property
    def records(self) -> int:
        return sum(chain.records for chain in self.chains)
