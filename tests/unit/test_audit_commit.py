"""Group commit: one write for all that wait, nobody waits for ever, nothing half-written counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from kmsjwks.domain.errors import AuditUnavailable
from kmsjwks.storage.audit_commit import GroupCommit
from tests.support.load import wait_until

MODES = pytest.mark.parametrize("inline", [True, False], ids=["inline", "thread"])


class Disk:
    """Writes are held up while it is ``stuck``."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.error: Exception | None = None
        self.begun = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.writing = 0

    def write(self, bodies: Sequence[bytes]) -> None:
        self.writing += 1
        assert self.writing == 1, "two threads write"
        self.begun.release()
        self.free.wait()
        self.writing -= 1
        if self.error is not None:
            raise self.error
        self.batches.append(list(bodies))

    @property
    def bodies(self) -> list[bytes]:
        return [body for batch in self.batches for body in batch]


def commit_over(disk: Disk, inline: bool, timeout: float = 5.0) -> GroupCommit:
    return GroupCommit(disk.write, timeout, (lambda ident: None) if inline else None)


@MODES
def test_a_lone_caller_writes_at_once(inline: bool) -> None:
    disk = Disk()
    commit = commit_over(disk, inline)
    commit.submit(b"1")
    commit.submit(b"2")
    assert disk.batches == [[b"1"], [b"2"]]


@MODES
def test_what_waits_is_written_together(inline: bool) -> None:
    disk = Disk()
    commit = commit_over(disk, inline)
    disk.free.clear()
    with ThreadPoolExecutor(11) as pool:
        first = pool.submit(commit.submit, b"first")
        disk.begun.acquire()
        others = [pool.submit(commit.submit, b"%d" % n) for n in range(10)]
        wait_until(lambda: len(commit._queue) == 10, 5, "ten waiting")
        disk.free.set()
        for future in (first, *others):
            future.result(5)
    assert len(disk.batches) == 2
    assert sorted(disk.batches[1]) == sorted(b"%d" % n for n in range(10))


@MODES
def test_under_load_every_record_is_written_once(inline: bool) -> None:
    disk = Disk()
    commit = commit_over(disk, inline)

    def submit(thread: int) -> None:
        for turn in range(200):
            commit.submit(b"%d-%d" % (thread, turn))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(submit, range(16)))
    assert sorted(disk.bodies) == sorted(b"%d-%d" % (n, t) for n in range(16) for t in range(200))


@MODES
@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("a bug")])
def test_a_failed_write_refuses_all_in_it_and_no_more(inline: bool, error: Exception) -> None:
    disk = Disk()
    commit = commit_over(disk, inline)
    disk.error = error
    with pytest.raises(AuditUnavailable):
        commit.submit(b"lost")
    disk.error = None
    commit.submit(b"kept")
    assert disk.bodies == [b"kept"]


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except AuditUnavailable:
        return True
    return False


def test_a_disk_that_hangs_costs_everybody_the_timeout_at_most() -> None:
    disk = Disk()
    commit = commit_over(disk, False, timeout=0.2)
    disk.free.clear()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda n: refused(lambda: commit.submit(b"%d" % n)), range(8)))
        wait_until(lambda: refused(lambda: commit.submit(b"late")), 1, "refusal")
    disk.free.set()
    wait_until(lambda: not refused(lambda: commit.submit(b"after")), 2, "recovery")
    assert b"late" not in disk.bodies


def test_a_hanging_leader_is_answered_for_and_releases_nothing() -> None:
    disk, stalled = Disk(), list[int]()
    commit = GroupCommit(disk.write, 0.2, stalled.append)
    disk.free.clear()
    leader: Future[bool]
    with ThreadPoolExecutor(2) as pool:
        idents = list[int]()

        def lead() -> bool:
            idents.append(threading.get_ident())
            return refused(lambda: commit.submit(b"leader"))

        leader = pool.submit(lead)
        disk.begun.acquire()
        assert refused(lambda: commit.submit(b"follower"))
        wait_until(lambda: stalled, 2, "an answer for the leader")
        assert stalled == idents
        assert not leader.done()
        disk.free.set()
        assert leader.result(5), "its request was refused already"
    commit.submit(b"after")
    assert disk.bodies == [b"leader", b"after"]  # recorded, but never released
    assert stalled == idents
