"""Workers and CPUs: how many workers there are, and which CPU each keeps to.

A worker is one interpreter lock. Where its threads run on several CPUs they hand that lock over
from one CPU to another several times a request, which costs more than it gains: SoftHSM does not
sign faster with threads, and an HSM or a KMS that is waited for needs no CPU. docs/performance.md
has the figures.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

from kmsjwks.config import ServerSettings

_log = logging.getLogger(__name__)


def usable_cpus() -> tuple[int, ...]:
    """Those that this process may run on (sched_getaffinity(2)): of a container with a cpuset, its
    own."""
    if sys.platform == "linux":
        with suppress(OSError):  # a seccomp filter
            return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def worker_count(server: ServerSettings) -> int:
    """To be asked before workers keep to one CPU: in the service, not in a worker."""
    return server.workers or len(usable_cpus())


def keep_to_one_cpu(server: ServerSettings, workers: int, worker: int) -> None:
    """In a new worker process, before it has threads: ``worker`` of ``workers``, from 0.

    Only where there are as many workers as CPUs: then nothing is left for chance. With fewer, which
    CPUs are free is for the kernel to know: several containers on one machine would all choose the
    same ones.
    """
    cpus = usable_cpus()
    if sys.platform != "linux" or server.worker_cpu_affinity == "off" or workers != len(cpus):
        return
    try:
        os.sched_setaffinity(0, {cpus[worker % len(cpus)]})
    except OSError as error:  # a seccomp filter, or a cpuset that has just changed
        _log.warning("Worker %d does not keep to a CPU of its own: %s.", worker + 1, error.strerror)
