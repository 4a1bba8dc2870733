"""Workers keep to a CPU of their own exactly where there are as many as CPUs."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmsjwks.config import ServerSettings, load
from kmsjwks.domain.ports import ServerHooks
from kmsjwks.http import server as serving
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
    cpus, workers = usable_cpus(), worker_count(server)
    got = [
        cpus_of_a_thread(lambda worker=worker: keep_to_one_cpu(server, workers, worker))  # type: ignore[misc]
        for worker in range(workers)
    ]
    assert got == [{cpu} for cpu in cpus]
    assert usable_cpus() == cpus, "this process was changed"


@pytest.mark.parametrize("workers", [1, 3, 1000])
def test_other_numbers_leave_it_to_the_kernel(server: ServerSettings, workers: int) -> None:
    if workers == len(usable_cpus()):
        workers += 1
    assert cpus_of_a_thread(lambda: keep_to_one_cpu(server, workers, 0)) == set(usable_cpus())


def test_off(server: ServerSettings) -> None:
    off = replace(server, worker_cpu_affinity="off")
    workers = worker_count(off)
    assert cpus_of_a_thread(lambda: keep_to_one_cpu(off, workers, 0)) == set(usable_cpus())


def test_workers_are_counted_by_the_cpus_that_may_be_used(server: ServerSettings) -> None:
    counts: list[int] = []

    def confined() -> None:
        os.sched_setaffinity(0, {usable_cpus()[0]})
        counts.append(worker_count(server))

    cpus_of_a_thread(confined)
    assert counts == [1]


def test_what_the_system_refuses_is_done_without(
    server: ServerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    workers = worker_count(server)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    keep_to_one_cpu(server, workers, 0)
    assert "does not keep to a CPU of its own: Operation not permitted" in caplog.text
    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    assert worker_count(server) == os.cpu_count()


def test_a_worker_on_its_cpu_knows_how_many_share_the_limits(
    server: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of the machine is divided by the workers that were started."""
    found: list[int] = []

    class Recorder:
        def __init__(self, **options: Any) -> None:
            self.workers = options["workers"]

        def serve(self, spawn_target: Any, target_loader: Any, **_: Any) -> None:
            def load() -> None:
                os.sched_setaffinity(0, {usable_cpus()[0]})
                target_loader()

            assert spawn_target.args[1] == self.workers
            cpus_of_a_thread(load)

    settings = replace(load(tmp_path / "kmsjwks.toml", environ={}), server=server)
    monkeypatch.setattr(serving, "Server", Recorder)
    monkeypatch.setattr(serving, "refuse_taken_address", lambda *_: None)
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda *_, **__: None)

    def load_app(hooks: ServerHooks) -> Callable[..., list[bytes]]:
        found.append(hooks.workers)
        return _nothing

    serving.serve(settings, load_app)
    assert found == [len(usable_cpus())]


def _nothing(*_: object) -> list[bytes]:
    return []
