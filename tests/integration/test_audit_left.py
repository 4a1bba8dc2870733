"""Chains that processes left open: whose ends others have signed, and whose not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kmsjwks.domain.audit import GENESIS, ChainHead, Control, encode, link
from kmsjwks.storage.audit_left import LeftChains
from tests.support.lifecycle import SetClock

OWN, OTHER = "a" * 16, "b" * 16
HERE = socket.gethostname()


class Directory:
    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, SetClock()
        self.left = LeftChains(path, self.clock)
        self.last: dict[str, ChainHead] = {}

    def chain(
        self, *events: str, pid: int, chain: str = OTHER, host: str = HERE, age: float = 6.0
    ) -> Path:
        """A file with these records after the opening one, written ``age`` seconds ago."""
        name = f"audit-20260101T000000Z-{chain}-00001.jsonl"
        opened: dict[str, Any] = {
            "event": Control.OPENED,
            "file": name,
            "host": host,
            "pid": pid,
        }
        records = [opened, *({"event": event} for event in events)]
        previous, text = GENESIS, b""
        for seq, record in enumerate(records):
            line, previous = link(encode(record), chain, seq, previous)
            text += line + b"\n"
        path = self.path / name
        path.write_bytes(text)
        self.touch(path, age)
        self.last[chain] = ChainHead(chain, len(events), previous, name)
        return path

    def touch(self, path: Path, age: float) -> None:
        then = self.clock.now() - age
        os.utime(path, (then, then))

    def found(self) -> list[ChainHead]:
        return self.left.heads(OWN)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


@pytest.fixture
def gone() -> int:
    """The number of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_of_a_process_that_is_gone(directory: Directory, gone: int) -> None:
    directory.chain("jwt.signed", "checkpoint.signed", pid=gone)
    assert directory.found() == [directory.last[OTHER]]


def test_a_number_that_is_ours_now(directory: Directory) -> None:
    """Processes of a container have the same numbers after each start."""
    directory.chain("jwt.signed", pid=os.getpid())
    directory.chain("jwt.signed", pid=os.getpid(), chain=OWN)
    assert directory.found() == [directory.last[OTHER]]


def test_a_write_may_be_under_way(directory: Directory, gone: int) -> None:
    directory.chain("jwt.signed", pid=gone, age=4.0)
    assert directory.found() == []


@pytest.mark.parametrize(("host", "pid"), [(HERE, os.getppid()), ("elsewhere", 1)])
def test_of_a_process_that_may_run(directory: Directory, host: str, pid: int) -> None:
    path = directory.chain("jwt.signed", pid=pid, host=host, age=500.0)
    assert directory.found() == []
    directory.touch(path, 601.0)
    assert directory.found() == [directory.last[OTHER]]


def test_processes_that_do_nothing_give_each_other_nothing_to_do(directory: Directory) -> None:
    directory.chain("jwt.signed", "checkpoint.signed", pid=os.getppid(), age=9999.0)
    assert directory.found() == []


def test_two_that_do_not_see_each_other_end_it_too(directory: Directory, gone: int) -> None:
    """Containers of one host name: each takes the other for gone, and each checkpoint of the one
    is a record that the other has not signed."""
    directory.chain("jwt.signed", "checkpoint.signed", pid=gone)
    directory.left.signed(directory.found())
    directory.chain("jwt.signed", "checkpoint.signed", "checkpoint.signed", pid=gone)
    assert directory.found() == []
    directory.chain("jwt.signed", "checkpoint.signed", "jwt.signed", pid=gone)
    assert directory.found() == [directory.last[OTHER]]


def test_the_clock_was_put_back_between_two_parts(directory: Directory, gone: int) -> None:
    directory.chain("jwt.signed", "audit.rotated", pid=gone)
    line, sha256 = link(encode({"event": "x"}), OTHER, 3, directory.last[OTHER].sha256)
    name = f"audit-20250101T000000Z-{OTHER}-00002.jsonl"
    (directory.path / name).write_bytes(line + b"\n")
    directory.touch(directory.path / name, 6.0)
    assert directory.found() == [ChainHead(OTHER, 3, sha256, name)]


def test_an_ended_chain(directory: Directory, gone: int) -> None:
    """The backend was down when its process ended, or there was no keyset for checkpoints yet."""
    path = directory.chain("audit.closing", "audit.closed", pid=gone)
    assert directory.found() == [directory.last[OTHER]]
    directory.touch(path, 4.0)
    assert directory.found() == []


def test_an_ended_chain_whose_end_is_signed(directory: Directory, gone: int) -> None:
    directory.chain("audit.closing", "audit.closed", pid=gone)
    kept = directory.path / "checkpoints"
    kept.mkdir()
    (kept / f"checkpoint-20260101T000000Z-{OTHER}-000000000001.jws").touch()
    assert directory.found() == [directory.last[OTHER]]
    (kept / f"checkpoint-20260101T000000Z-{OTHER}-000000000002.jws").touch()
    assert directory.found() == []


@pytest.mark.parametrize("events", [("jwt.signed",), ("audit.closing", "audit.closed")])
def test_what_was_signed_is_done_with(
    directory: Directory, gone: int, events: tuple[str, ...]
) -> None:
    directory.chain(*events, pid=gone)
    directory.left.signed(directory.found())
    assert directory.found() == directory.found() == []
    directory.chain("jwt.signed", *events, pid=gone)
    again = directory.found()
    assert again == ([directory.last[OTHER]] if events[-1] == "jwt.signed" else [])


def test_half_a_line_is_left_out(directory: Directory, gone: int) -> None:
    path = directory.chain("jwt.signed", pid=gone)
    with path.open("ab") as file:
        file.write(b'{"event":"jwt.si')
    directory.touch(path, 6.0)
    assert directory.found() == [directory.last[OTHER]]


def test_an_announced_file_that_is_empty(directory: Directory, gone: int) -> None:
    directory.chain("jwt.signed", "audit.rotated", pid=gone)
    following = directory.path / f"audit-20260101T000001Z-{OTHER}-00002.jsonl"
    following.touch()
    directory.touch(following, 6.0)
    assert directory.found() == [directory.last[OTHER]]


@pytest.mark.parametrize("content", [b"", b"\n", b"garbage\n", b'{"event":"x","chain":"y"}\n'])
def test_what_is_no_chain(directory: Directory, content: bytes) -> None:
    name = f"audit-20260101T000000Z-{OTHER}-00001.jsonl"
    (directory.path / name).write_bytes(content)
    directory.touch(directory.path / name, 9999.0)
    assert directory.found() == []
