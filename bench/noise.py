"""How much CPU time others took while the bench measured."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_SHORTEST = 0.5  # CPU seconds; the clock ticks are too coarse to say anything of less
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: proc(5), /proc/stat


@dataclass(slots=True)
class Noise:
    """``others`` is known when the measurement is over; shares of all CPUs, 0 to 1."""

    others: float = 0.0


@contextmanager
def watch() -> Iterator[Noise]:
    noise = Noise()
    before, mine = machine_seconds(), own_seconds()
    yield noise
    busy, whole = (now - then for now, then in zip(machine_seconds(), before, strict=True))
    if whole >= _SHORTEST:
        noise.others = max(0.0, busy - (own_seconds() - mine)) / whole


def machine_seconds(proc: Path = Path("/proc")) -> tuple[float, float]:
    """CPU seconds that were worked, and that there were, since the machine started."""
    fields = [int(field) for field in (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields[index] for index in _BUSY) / _TICK, sum(fields) / _TICK


def own_seconds() -> float:
    """CPU seconds of this process, of those it has waited for, and of all its descendants."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime + cpu_seconds(os.getpid(), waited_for=False)


def cpu_seconds(root: int, *, waited_for: bool = True) -> float:
    """CPU seconds of a process and its descendants, and of what each of these has waited for;
    of the root itself only with ``waited_for``."""
    total = 0.0
    for pid, (_, used, children) in _family(root).items():
        total += used + (children if waited_for or pid != root else 0.0)
    return total


def descendants(root: int) -> list[int]:
    return sorted(pid for pid in _family(root) if pid != root)


def _family(root: int) -> dict[int, tuple[int, float, float]]:
    """Parent, own CPU seconds and those of waited-for children, by process id."""
    all_ = dict(_processes())
    family, found = {root}, True
    while found:
        more = {pid for pid, (parent, _, _) in all_.items() if parent in family} - family
        family |= more
        found = bool(more)
    return {pid: all_[pid] for pid in family if pid in all_}


def _processes() -> Iterator[tuple[int, tuple[int, float, float]]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        used, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        yield int(entry.name), (int(fields[1]), used / _TICK, children / _TICK)
