"""Faults that tests put in front of the fake's operations, and a count of what was called."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal[
    "latency", "error", "status", "rate", "reset", "close", "truncate", "answer",
    "wrong-signature", "garbage",
]  # fmt: skip


@dataclass
class Fault:
    """One fault; ``count`` calls long, or until cleared. ``applied``: after the operation's effect.

    ``kind``: latency (``seconds``, ``jitter``), error (``code``, ``status``, ``message``),
    status (bare ``status``), rate (ThrottlingException beyond ``per_second``), reset, close,
    truncate, answer (``members`` replaced), wrong-signature, garbage.
    """

    kind: str
    operation: str = "*"
    region: str = "*"
    count: int | None = None
    applied: bool = False
    seconds: float = 0.0
    jitter: float = 0.0
    code: str = "KMSInternalException"
    status: int = 400
    message: str = ""
    per_second: float = 0.0
    members: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.kind in get_args(Kind), f"no fault {self.kind!r}"

    def fits(self, operation: str, region: str) -> bool:
        return self.operation in ("*", operation) and self.region in ("*", region)


class Faults:
    """The faults in force. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._recent: dict[int, deque[float]] = {}

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self._recent.clear()

    def take(self, operation: str, region: str) -> list[Fault]:
        """The faults that hit this call: every latency and rate, and the first of the others."""
        with self._lock:
            hit: list[Fault] = []
            for fault in [each for each in self._faults if each.fits(operation, region)]:
                passive = fault.kind == "latency"
                if not passive and any(each.kind != "latency" for each in hit):
                    continue
                if fault.kind == "rate" and not self._exceeded(fault):
                    continue
                hit.append(fault)
                self._use_up(fault)
            return hit

    def _use_up(self, fault: Fault) -> None:
        if fault.count is None:
            return
        fault.count -= 1
        if fault.count <= 0:
            self._faults.remove(fault)

    def _exceeded(self, fault: Fault) -> bool:
        calls, now = self._recent.setdefault(id(fault), deque()), time.monotonic()
        while calls and calls[0] <= now - 1:
            calls.popleft()
        if len(calls) >= fault.per_second:
            return True
        calls.append(now)
        return False


def delay(fault: Fault) -> float:
    """Seconds of latency for one call."""
    return fault.seconds + random.uniform(0, fault.jitter)


class Calls:
    """How often each operation was asked for in each Region, and every Sign. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._signs: list[dict[str, Any]] = []

    def count(self, operation: str, region: str) -> None:
        with self._lock:
            self._counts[operation, region] += 1

    def signed(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._signs.append(record)

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()
            self._signs.clear()

    def report(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {"operation": operation, "region": region, "calls": calls}
                for (operation, region), calls in sorted(self._counts.items())
            ]

    def signs(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._signs)
