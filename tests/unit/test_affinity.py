"""Workers keep to a CPU of their own exactly where there are as many as CPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kmsjwks.config import ServerSettings, load
from kmsjwks.http.affinity import keep_to_one_cpu, usable_cpus, worker_count
from tests.support.wiring import write_config


@pytest.fixture
def server(tmp_path: Path) -> ServerSettings:
    return load(write_config(tmp_path, ""), environ={}).server


def cpus_of_a_thread(act: Callable[[], None]) -> set[int]:
    """Linux keeps the CPUs of each thread: those of the tests stay as they are."""
    found: list[set[int]] = []

    def run() -> None:
        act()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_as_many_workers_as_cpus_have_one_each(server: ServerSettings) -> None:
    cpus = usable_cpus()
    got = [
        cpus_of_a_thread(lambda worker=worker: keep_to_one_cpu(server, worker))  # type: ignore[misc]
        for worker in range(worker_count(server))
    ]
    assert got == [{cpu} for cpu in cpus]
    assert usable_cpus() == cpus, "this process was changed"


@pytest.mark.parametrize("workers", [1, 3, 1000])
def test_other_numbers_leave_it_to_the_kernel(server: ServerSettings, workers: int) -> None:
    if workers == len(usable_cpus()):
        workers += 1
    some = replace(server, workers=workers)
    assert cpus_of_a_thread(lambda: keep_to_one_cpu(some, 0)) == set(usable_cpus())


def test_off(server: ServerSettings) -> None:
    off = replace(server, worker_cpu_affinity="off")
    assert cpus_of_a_thread(lambda: keep_to_one_cpu(off, 0)) == set(usable_cpus())


def test_workers_are_counted_by_the_cpus_that_may_be_used(server: ServerSettings) -> None:
    counts: list[int] = []

    def confined() -> None:
        os.sched_setaffinity(0, {usable_cpus()[0]})
        counts.append(worker_count(server))

    cpus_of_a_thread(confined)
    assert counts == [1]
