"""What the samples say: cells of the table, its text and its JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.model import Row
from bench.runner import Taken

QUIET = 0.05
"""Share of the CPUs that others may take before a cell is called noisy."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A row with its medians. ``value`` is the ratio, or what was measured where there is no peer;
    None where it was not measured, ``reason`` then says why. ``noise`` is the largest share that
    others took in any round of it."""

    scene: str
    row: Row
    ours: float | None
    peer: float | None
    value: float | None
    noise: float
    reason: str | None

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "skipped"
        if self.row.limit is None:
            return "-"
        if not self.row.limit.holds(self.value):
            return "FAIL"
        return "aim" if self.row.limit.reaches_aim(self.value) else "pass"


def cells(taken: Iterable[Taken]) -> list[Cell]:
    return [_cell(one, row) for one in taken for row in one.scene.rows]


def _cell(taken: Taken, row: Row) -> Cell:
    names = [row.ours] if row.peer is None else [row.ours, row.peer]
    reasons = [f"{name}: {taken.missing[name]}" for name in names if name in taken.missing]
    reasons += [
        f"{name}: not measured" for name in names
        if name not in taken.missing and not taken.samples.get(name)
    ]  # fmt: skip
    ours, peer = (_median(taken, name, row.metric) for name in (row.ours, row.peer))
    if ours is not None:
        ours *= row.factor
    value = None
    if not reasons and ours is not None:
        value = ours if row.peer is None else ours / peer if peer else None
    others = [sample.others for name in names for sample in taken.samples.get(name, ())]
    return Cell(taken.scene.name, row, ours, peer, value, max(others, default=0.0),
                "; ".join(reasons) or None)  # fmt: skip


def _median(taken: Taken, name: str | None, metric: str) -> float | None:
    samples = taken.samples.get(name or "")
    return median(sample.metrics[metric] for sample in samples) if samples else None


def table(all_cells: Sequence[Cell]) -> str:
    lines = [("work", "ours", "peer", "ratio", "bound", "aim", "verdict", "others")]
    for cell in all_cells:
        limit, unit = cell.row.limit, cell.row.unit
        sign = "" if limit is None else ">= " if limit.kind == "least" else "<= "
        lines.append((
            cell.row.work,
            _amount(cell.ours, unit),
            _amount(cell.peer, unit) if cell.row.peer else "",
            f"{cell.value:.2f}" if cell.value is not None and cell.row.peer else "",
            f"{sign}{limit.bound:g}" if limit else "",
            f"{sign}{limit.aim:g}" if limit and limit.aim is not None else "",
            cell.verdict,
            _others(cell),
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in lines]  # fmt: skip
    notes = [f"skipped: {cell.row.work}: {cell.reason}" for cell in all_cells if cell.reason]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], *notes, *_warning(all_cells)])


def _others(cell: Cell) -> str:
    if cell.value is None:
        return ""
    return f"{cell.noise:.0%}{' noisy' if cell.noise > QUIET else ''}"


def _warning(all_cells: Sequence[Cell]) -> list[str]:
    noisy = [cell for cell in all_cells if cell.value is not None and cell.noise > QUIET]
    if not noisy:
        return []
    return [
        f"NOISE: in {len(noisy)} rows others took up to {max(cell.noise for cell in noisy):.0%} of "
        "the CPUs during a round. Ratios of such rows prove nothing; measure on a quiet machine."
    ]


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def document(taken: Sequence[Taken], options: Any, began: str) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "began": began,
        "options": asdict(options),
        "machine": {
            "cpus": os.cpu_count(), "processor": _processor(), "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "cells": [
            {**asdict(cell), "verdict": cell.verdict, "noisy": cell.noise > QUIET}
            for cell in cells(taken)
        ],
        "samples": {
            one.scene.name: {
                name: [asdict(sample) for sample in got] for name, got in one.samples.items()
            }
            for one in taken
        },
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
