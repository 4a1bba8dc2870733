"""The file sink over real files: rotation, what becomes of damaged ones, kills, forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.audittrail import Kind, Status
from kmsjwks.domain.errors import AuditUnavailable, ConfigurationError
from kmsjwks.storage.audit_chain import FileLimits, check_directory
from kmsjwks.storage.audit_file import FileAuditSink, SinkOptions
from kmsjwks.storage.audit_reader import AuditReader
from tests.support.audit import verified_events, verified_records
from tests.support.lifecycle import SetClock
from tests.support.load import wait_until
from tests.unit.test_audit import RECORD

LIMITS = FileLimits(1024 * 1024, 3600.0)


class Trail:
    def __init__(self, directory: Path) -> None:
        self.directory, self.clock = directory, SetClock()
        self.sink = self.open()
        self.count = 0

    def open(self, limits: FileLimits = LIMITS, *, disk: bool = False) -> FileAuditSink:
        self.sink = FileAuditSink(
            self.directory, SinkOptions(limits, disk), self.clock, lambda ident: None
        )
        return self.sink

    def record(self, times: int = 1) -> None:
        for _ in range(times):
            self.sink.record(replace(RECORD, jti=str(self.count), time=self.clock.now()))
            self.count += 1

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)

    def jtis(self) -> list[str]:
        return [event["jti"] for event in verified_events(self.directory)]

    def kinds(self) -> set[Kind]:
        return {problem.kind for problem in AuditReader(self.directory).verify().problems}


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / "audit")


def test_a_chain_from_its_opening_to_its_close(trail: Trail) -> None:
    assert trail.sink.head() is None
    trail.record(2)
    head = trail.sink.head()
    trail.sink.close()
    records = verified_records(trail.directory)
    assert [one["event"] for one in records] == [
        "audit.opened", "jwt.signed", "jwt.signed", "audit.closing", "audit.closed",
    ]  # fmt: skip
    (file,) = trail.files
    assert (records[0]["file"], records[0]["pid"]) == (file.name, os.getpid())
    assert records[0].keys() >= {"host", "version", "time"}
    (chain,) = AuditReader(trail.directory).verify().chains
    assert (chain.status, chain.problem, chain.records) == (Status.CLOSED, None, 5)
    assert head is not None
    assert (head.chain, head.seq, head.file) == (chain.chain, 2, file.name)
    assert head.sha256 == records[3]["prev"]


def test_nothing_recorded_nothing_made(trail: Trail) -> None:
    trail.sink.close()
    assert not trail.directory.exists()


def test_only_the_owner_may_look(trail: Trail) -> None:
    trail.record()
    modes = {path.stat().st_mode & 0o777 for path in trail.files}
    assert (trail.directory.stat().st_mode & 0o777, modes) == (0o700, {0o600})


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        check_directory(tmp_path)
    tmp_path.chmod(0o755)
    check_directory(tmp_path)


@pytest.mark.parametrize("disk", [False, True])
def test_files_that_are_full_are_followed_without_a_gap(trail: Trail, disk: bool) -> None:
    trail.open(FileLimits(4096, 3600.0), disk=disk)
    trail.record(60)
    trail.sink.close()
    assert len(trail.files) > 3
    assert all(path.stat().st_size < 4096 + 1024 for path in trail.files)
    assert trail.jtis() == [str(number) for number in range(60)]
    (chain,) = AuditReader(trail.directory).verify().chains
    assert (chain.status, len(chain.files)) == (Status.CLOSED, len(trail.files))


def test_a_file_that_is_old_is_followed(trail: Trail) -> None:
    trail.record()
    trail.clock.seconds += 3599
    trail.record()
    assert len(trail.files) == 1
    trail.clock.seconds += 1
    trail.record()
    assert len(trail.files) == 2
    assert AuditReader(trail.directory).verify().sound


def test_records_of_many_threads(trail: Trail) -> None:
    trail.open(FileLimits(8192, 3600.0))

    def record(thread: int) -> None:
        for turn in range(50):
            trail.sink.record(replace(RECORD, jti=f"{thread}-{turn}"))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(record, range(16)))
    trail.sink.close()
    assert sorted(trail.jtis()) == sorted(f"{n}-{t}" for n in range(16) for t in range(50))
    assert AuditReader(trail.directory).verify().chains[0].status is Status.CLOSED


def remove(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))


def replace_file(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


def remove_directory(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        (remove, {Kind.MISSING_FILE}),
        (move, {Kind.MISSING_FILE}),
        (replace_file, set()),
        (truncate, {Kind.TRUNCATED}),
        (append, {Kind.INVALID}),
        (remove_directory, {Kind.MISSING_FILE}),
    ],
)
def test_a_damaged_file_is_left_and_the_loss_shows(
    trail: Trail, damage: Callable[[Path], None], kinds: set[Kind]
) -> None:
    trail.record(3)
    (file,) = trail.files
    damage(file)
    trail.record(3)
    trail.sink.close()
    assert trail.kinds() == kinds
    recorded = [one["jti"] for one in AuditReader(trail.directory).records(RecordFilter(jti="4"))]
    assert recorded == ["4"]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_half_a_line_is_taken_back(trail: Trail, file_limit: Callable[[int], None]) -> None:
    trail.record()
    size = trail.files[0].stat().st_size
    file_limit(size + 100)
    for _ in range(3):
        with pytest.raises(AuditUnavailable):
            trail.record()
    assert trail.files[0].stat().st_size == size
    file_limit(2**40)
    trail.record()
    trail.sink.close()
    assert trail.jtis() == ["0", "1"]
    assert len(trail.files) == 1


def test_a_rotation_that_fails_is_tried_again(
    trail: Trail, file_limit: Callable[[int], None]
) -> None:
    trail.open(FileLimits(1, 3600.0))
    trail.record()
    file_limit(trail.files[0].stat().st_size + 10)  # the next file is made, but not announced
    with pytest.raises(AuditUnavailable):
        trail.record()
    assert len(trail.files) == 1
    file_limit(2**40)
    trail.record()
    assert AuditReader(trail.directory).verify().sound
    assert trail.jtis() == ["0", "1"]


def test_a_directory_that_cannot_be_made(trail: Trail) -> None:
    trail.directory.write_text("in the way")
    for _ in range(2):
        with pytest.raises(AuditUnavailable):
            trail.record()
    trail.directory.unlink()
    trail.record()
    assert len(trail.jtis()) == 1


def test_a_forked_process_has_a_chain_of_its_own(trail: Trail) -> None:
    trail.record()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            trail.record()
            trail.sink.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    trail.record()
    trail.sink.close()
    report = AuditReader(trail.directory).verify()
    assert [chain.status for chain in report.chains] == [Status.CLOSED] * 2
    assert len(trail.jtis()) == 3


RECORDER = """
import sys, threading
from dataclasses import replace
from pathlib import Path
from kmsjwks.bootstrap import SystemClock
from kmsjwks.storage.audit_chain import FileLimits
from kmsjwks.storage.audit_file import FileAuditSink, SinkOptions
from tests.unit.test_audit import RECORD

options = SinkOptions(FileLimits(2048, 3600.0))
sink = FileAuditSink(Path(sys.argv[1]), options, SystemClock(), lambda ident: None)

def run(thread):
    turn = 0
    while True:
        jti = f"{thread}-{turn}"
        sink.record(replace(RECORD, jti=jti))
        sys.stdout.write(jti + chr(10))
        sys.stdout.flush()
        turn += 1

for thread in range(4):
    threading.Thread(target=run, args=(thread,)).start()
"""


def test_a_process_that_is_killed_leaves_a_chain_that_verifies(trail: Trail) -> None:
    """Several times, because the kill is to hit different moments; files of four records, so that
    rotations are among them."""
    released = set[str]()
    for turn in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", RECORDER, str(trail.directory)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(40 + 17 * turn)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read().splitlines(keepends=True)
        process.wait(10)
        released |= {f"{turn}:{jti}" for jti in seen if jti.endswith("\n")}
        report = AuditReader(trail.directory).verify()
        assert report.sound, report.problems
        assert len(report.chains) == turn + 1
        assert report.chains[-1].status in (Status.OPEN, Status.TORN)
        recorded = {one["jti"] for one in AuditReader(trail.directory).records(RecordFilter())
                    if one["event"] == "jwt.signed"}  # fmt: skip
        assert {jti.strip() for jti in seen if jti.endswith("\n")} <= recorded


def test_a_trail_that_is_written_to_is_verified_as_it_stands(trail: Trail) -> None:
    """Files that come while others are read are no missing ones."""
    trail.open(FileLimits(4096, 3600.0))
    trail.record()
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.001) and len(trail.files) < 500:
            trail.record(10)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            reports = [AuditReader(trail.directory).verify()]
            while not writing.done() and len(trail.files) < 60:
                reports.append(AuditReader(trail.directory).verify())
        finally:
            over.set()
        writing.result()
    assert [problem for report in reports for problem in report.problems] == []
    assert len(reports[-1].chains[0].files) > 40


def test_reading_merges_chains_by_time(trail: Trail) -> None:
    other = Trail(trail.directory)
    for _ in range(6):
        for one in (trail, other):
            trail.clock.seconds += 1
            other.clock.seconds = trail.clock.seconds
            one.record()
    other.sink.close()
    reader = AuditReader(trail.directory)
    times = [one["time"] for one in reader.records(RecordFilter(event="jwt.*"))]
    assert len(times) == 12
    assert times == sorted(times)
    for file in trail.files:  # as if the tests' clock were the system's
        os.utime(file, (trail.clock.seconds, trail.clock.seconds))
    newest = [one["time"] for one in reader.newest(RecordFilter(event="jwt.*"))]
    assert newest == times[::-1]
    since = RecordFilter(event="jwt.*", since=times[3], until=times[5])
    assert [one["time"] for one in reader.records(since)] == times[3:5]


def test_the_newest_are_found_without_reading_everything(trail: Trail) -> None:
    trail.record(2000)
    (file,) = trail.files
    with file.open("r+b") as content:
        content.write(b"\0" * 1000)  # what is not read does not matter
    newest = AuditReader(trail.directory).newest(RecordFilter(event="jwt.*"))
    assert [next(newest)["jti"] for _ in range(300)] == [str(n) for n in range(1999, 1699, -1)]


def test_following_shows_what_comes(trail: Trail) -> None:
    trail.record(2)
    turns = iter([True, True, False])

    def wait() -> bool:
        trail.record(2)
        return next(turns)

    followed = AuditReader(trail.directory).follow(RecordFilter(event="jwt.*"), wait)
    assert [one["jti"] for one in followed] == ["2", "3", "4", "5"]


def test_a_write_that_hangs_is_refused_in_time_and_recovers(tmp_path: Path) -> None:
    """Opening a FIFO for reading hangs until somebody writes to it, as a dead disk does."""
    directory = tmp_path / "audit"
    options = SinkOptions(LIMITS, timeout=0.3)
    sink = FileAuditSink(directory, options, SetClock())
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink.record(RECORD)
    writer = sink._writer
    append = writer._append

    def hang(file: int, data: bytes) -> None:
        fifo.open("rb").close()
        append(file, data)

    writer._append = hang  # type: ignore[method-assign]
    with pytest.raises(AuditUnavailable):
        sink.record(replace(RECORD, jti="late"))
    with pytest.raises(AuditUnavailable):
        sink.record(replace(RECORD, jti="never"))
    writer._append = append  # type: ignore[method-assign]
    fifo.open("wb").close()

    def works() -> bool:
        try:
            sink.record(replace(RECORD, jti="after"))
        except AuditUnavailable:
            return False
        return True

    wait_until(works, 3, "recovery")
    lines = [json.loads(line) for file in directory.iterdir() for line in file.open()]
    assert [one.get("jti") for one in lines] == [None, RECORD.jti, "late", "after"]
