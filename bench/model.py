"""The words of the bench: samples of contenders, rows of the table, scenes that serve both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

Metrics = Mapping[str, float]
"""``rate`` (per second), ``p50`` and ``p99`` (milliseconds), ``mb``, ``seconds``, ``percent``..."""

Measure = Callable[[int], Metrics]
"""Measures for about so many seconds."""


class Refused(Exception):
    """The measurement is worth nothing: a request failed, or a peer did not do its work."""


class Absent(Exception):
    """What would be measured is not to be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contender. ``others`` is the share of all CPU time (0 to 1) that went to
    processes that are not the bench's."""

    metrics: Metrics
    others: float


@dataclass(frozen=True, slots=True)
class Limit:
    """What a row's value must reach (``least``) or stay under (``most``), and what it aims at."""

    kind: Literal["least", "most"]
    bound: float
    aim: float | None = None

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.kind == "least" else value <= self.bound

    def reaches_aim(self, value: float) -> bool:
        if self.aim is None:
            return self.holds(value)
        return value >= self.aim if self.kind == "least" else value <= self.aim


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: ``metric`` of ``ours`` over that of ``peer``, or alone without one."""

    work: str
    metric: str
    unit: str
    ours: str
    peer: str | None
    limit: Limit | None
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The contenders of a scene by name, and why others are missing."""

    measures: Mapping[str, Measure]
    absent: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Options:
    """``seconds`` of one measurement, ``rounds`` of each, keysets of the large installation,
    seconds of soak (0 for none)."""

    seconds: int
    rounds: int
    keysets: int
    soak: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Contenders that are measured in turns, and the rows they make. With ``once`` one round."""

    name: str
    rows: tuple[Row, ...]
    open: Callable[[Options], AbstractContextManager[Opened]]
    once: bool = False
