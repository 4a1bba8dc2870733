"""Workers and CPUs: how many workers there are, and which CPU each keeps to.

A worker is one interpreter lock. Where its threads run on several CPUs they hand that lock over
from one CPU to another several times a request, which costs more than it gains: SoftHSM does not
sign faster with threads, and an HSM or a KMS that is waited for needs no CPU. docs/performance.md
has the figures.
"""

from __future__ import annotations

import os
import sys

from kmsjwks.config import ServerSettings


def usable_cpus() -> tuple[int, ...]:
    """Those that this process may run on (sched_getaffinity(2)): of a container with a cpuset, its
    own."""
    if sys.platform != "linux":
        return tuple(range(os.cpu_count() or 1))
    return tuple(sorted(os.sched_getaffinity(0)))


def worker_count(server: ServerSettings) -> int:
    return server.workers or len(usable_cpus())


def keep_to_one_cpu(server: ServerSettings, worker: int) -> None:
    """In a new worker process, before it has threads; ``worker`` counts from 0.

    Only where there are as many workers as CPUs: then nothing is left for chance. With fewer, which
    CPUs are free is for the kernel to know: several containers on one machine would all choose the
    same ones.
    """
    cpus = usable_cpus()
    if sys.platform != "linux" or server.worker_cpu_affinity == "off":
        return
    if worker_count(server) == len(cpus):
        os.sched_setaffinity(0, {cpus[worker % len(cpus)]})
