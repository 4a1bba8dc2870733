"""Measures the contenders of a scene in turns."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench import noise
from bench.model import Absent, Opened, Options, Refused, Sample, Scene

_WARM_UP = 1  # seconds


@dataclass(frozen=True, slots=True)
class Taken:
    """The samples of a scene's contenders, and why some have none."""

    scene: Scene
    samples: Mapping[str, list[Sample]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def run(scene: Scene, options: Options, say: Callable[[str], None]) -> Taken:
    """A contender that fails once is out, with its reason: half a cell is none."""
    try:
        with scene.open(options) as opened:
            return _rounds(scene, opened, options, say)
    except (Absent, Refused, AssertionError) as reason:
        say(f"{scene.name}: {reason}")
        names = {name for row in scene.rows for name in (row.ours, row.peer) if name}
        return Taken(scene, {}, dict.fromkeys(names, str(reason)))


def _rounds(scene: Scene, opened: Opened, options: Options, say: Callable[[str], None]) -> Taken:
    samples: dict[str, list[Sample]] = {name: [] for name in opened.measures}
    missing = dict(opened.absent)
    rounds = 1 if scene.once else options.rounds
    for number in range(rounds if scene.once else rounds + 1):
        order = list(opened.measures) if number % 2 else list(opened.measures)[::-1]
        warm_up = number == 0 and not scene.once
        for name in order:
            if name in missing:
                continue
            try:
                sample = _measure(opened, name, _WARM_UP if warm_up else options.seconds)
            except (Absent, Refused, subprocess.TimeoutExpired) as reason:
                missing[name] = str(reason)
                say(f"{scene.name}: {name}: {reason}")
                continue
            if not warm_up:
                samples[name].append(sample)
                say(f"{scene.name} {number or 1}/{rounds} {_told(name, sample)}")
    return Taken(
        scene, {name: got for name, got in samples.items() if name not in missing}, missing
    )


def _measure(opened: Opened, name: str, seconds: int) -> Sample:
    with noise.watch() as watched:
        metrics = opened.measures[name](seconds)
    return Sample(metrics, watched.others)


def _told(name: str, sample: Sample) -> str:
    numbers = " ".join(f"{metric}={value:.4g}" for metric, value in sample.metrics.items())
    return f"{name}: {numbers} others={sample.others:.0%}"
