"""Pages of audit records for a principal: newest first, with bounded work and memory."""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kmsjwks.domain.access import Action, Principal, require
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.errors import Forbidden, InvalidRequest

MAX_LIMIT = 1000
_MAX_LOOKED_AT = 20_000  # records of one page
_MAX_SECONDS = 0.5  # of one page; the interpreter is shared with signing
_DISORDER = 3.0  # seconds by which times in a chain may go back: a record waits for others' writes
_END_OF_TIME = 1e10  # seconds; later, infinite or no number: not written by us
_CURSOR = re.compile(r"([0-9]{1,13})-([0-9a-f]{16})-([0-9]{1,18})")

Record = Mapping[str, Any]
_Place = tuple[int, str, int]  # minus milliseconds, chain, minus seq: newest first


class TrailReader(Protocol):
    def newest(self, wanted: RecordFilter) -> Iterator[dict[str, Any]]:
        """Newest first, over all chains.

        Raises:
            AuditUnavailable: a file cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Page:
    """``before`` is the cursor of the next page; None where nothing older is left."""

    records: tuple[Record, ...]
    before: str | None


class AuditSearch:
    """Thread-safe; reads files and writes none."""

    def __init__(self, reader: TrailReader) -> None:
        self._reader = reader

    def page(
        self, principal: Principal, wanted: RecordFilter, limit: int, before: str | None = None
    ) -> Page:
        """Records of keysets that the principal may audit; those of no keyset (the chains' own,
        and of keys in backends) only where a grant is for all keysets.

        A page may hold fewer than ``limit`` records, or none, and still have a next one: no page
        looks at more than so many records.

        Raises:
            Forbidden: no grant to audit, or none for the keyset that is asked for.
            InvalidRequest: ``before`` is not a cursor.
            AuditUnavailable: the trail cannot be read.
        """
        _require(principal, wanted.keyset)
        start = None if before is None else _place_of(before)
        deadline = time.monotonic() + _MAX_SECONDS
        found: list[Record] = []
        last = start
        for looked_at, (place, record) in enumerate(self._ordered(wanted, start), 1):
            if len(found) == limit or looked_at > _MAX_LOOKED_AT or time.monotonic() > deadline:
                return Page(tuple(found), _cursor(last) if last else before)
            last = place
            if wanted.matches(record) and _may_see(principal, record):
                found.append(record)
        return Page(tuple(found), None)

    def _ordered(
        self, wanted: RecordFilter, start: _Place | None
    ) -> Iterator[tuple[_Place, Record]]:
        """Records with a time, in the order of their places, after ``start``."""
        heap: list[tuple[_Place, int, Record]] = []
        records = self._reader.newest(RecordFilter(until=_until(wanted.until, start)))
        for number, record in enumerate(records):
            place = _place(record)
            if place is None or (start is not None and place <= start):
                continue
            if wanted.since is not None and -place[0] / 1000 < wanted.since - _DISORDER:
                break
            heapq.heappush(heap, (place, number, record))
            while heap[0][0][0] < place[0] - _DISORDER * 1000 or len(heap) > _MAX_LOOKED_AT:
                first, _, popped = heapq.heappop(heap)
                yield first, popped
        while heap:
            first, _, popped = heapq.heappop(heap)
            yield first, popped


def _until(until: float | None, start: _Place | None) -> float | None:
    if start is None:
        return until
    from_cursor = -start[0] / 1000 + 0.001
    return from_cursor if until is None else min(until, from_cursor)


def _place(record: Record) -> _Place | None:
    """None for a record without a time, such as the end of a chain."""
    moment, chain, seq = record.get("time"), record.get("chain"), record.get("seq")
    if not isinstance(moment, int | float) or not isinstance(chain, str) or type(seq) is not int:
        return None
    if not 0 <= moment < _END_OF_TIME:
        return None
    return -round(moment * 1000), chain, -seq


def _cursor(place: _Place) -> str:
    return f"{-place[0]}-{place[1]}-{-place[2]}"


def _place_of(cursor: str) -> _Place:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequest("'before' is not a cursor that an answer of this address gave.")
    return -int(match[1]), match[2], -int(match[3])


def _require(principal: Principal, keyset: str | None) -> None:
    if keyset is not None:
        require(principal, Action.AUDIT, keyset)
    elif not any(Action.AUDIT in grant.actions for grant in principal.grants):
        raise Forbidden(f"{principal.name} has no grant to audit. Ask the operator for one.")


def _may_see(principal: Principal, record: Record) -> bool:
    keyset = record.get("keyset")
    if isinstance(keyset, str):
        return principal.may(Action.AUDIT, keyset)
    return any(Action.AUDIT in one.actions and "*" in one.keysets for one in principal.grants)
