"""Chains whose ends their processes have not signed: found by others, who do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from kmsjwks.domain.audit import ChainHead
from kmsjwks.domain.auditchain import is_closing, place_of
from kmsjwks.domain.audittrail import parse_file_name
from kmsjwks.domain.ports import Clock
from kmsjwks.storage.audit_checkpoints import CHECKPOINTS

_SETTLED = 5.0  # seconds without a change: a write under way ends, or is taken back
_FORGOTTEN = 600.0  # the same, where it cannot be told whether the process runs
_TAIL_BYTES = 256 * 1024  # at most what a line has
_OWN_MARK = b'{"event":"checkpoint.'  # with nothing after it, a chain is covered

_log = logging.getLogger(__name__)


class LeftChains:
    """One per process. Not thread-safe."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock = directory, clock
        self._over: set[str] = set()  # chains whose ends were signed; nothing follows
        self._signed: set[ChainHead] = set()

    def heads(self, own: str) -> list[ChainHead]:
        """The last whole record of each chain that was left open, or ended without a checkpoint of
        its end, as it seems; ``own`` is left out. What cannot be read is passed over: `audit
        verify` says what is wrong with it."""
        found = []
        for chain, parts in self._chains().items():
            if chain == own or chain in self._over:
                continue
            try:
                head = self._head(chain, parts)
            except OSError as error:
                _log.warning("%s cannot be read: %s.", parts[-1].name, error.strerror)
                continue
            if head is not None and head not in self._signed:
                found.append(head)
        return found

    def signed(self, heads: Sequence[ChainHead]) -> None:
        """These are done with, unless more follows."""
        self._signed.update(heads)

    def _chains(self) -> dict[str, list[Path]]:
        """Their files, in the order of their parts; the chains by time."""
        named = [
            (name, path)
            for path in sorted(self._directory.glob("*.jsonl"))
            if (name := parse_file_name(path.name)) is not None and path.is_file()
        ]
        chains: dict[str, list[Path]] = {name.chain: [] for name, _ in named}
        for name, path in sorted(named, key=lambda one: one[0].part):
            chains[name.chain].append(path)
        return chains

    def _head(self, chain: str, parts: list[Path]) -> ChainHead | None:
        line, file = _last_record(parts)
        place = place_of(line)
        if place is None or place[0] != chain:
            return None
        head = ChainHead(chain, place[1], hashlib.sha256(line).hexdigest(), file)
        unchanged = self._clock.now() - parts[-1].stat().st_mtime
        if is_closing(line):
            if unchanged <= _SETTLED:
                return None
            if head in self._signed or self._is_signed(head):
                self._over.add(chain)
                return None
            return head
        if line.startswith(_OWN_MARK) and any(one.chain == chain for one in self._signed):
            return None  # or two that do not see each other would sign for each other without end
        return head if self._is_left(parts, line, unchanged) else None

    def _is_signed(self, ended: ChainHead) -> bool:
        """Whether the process did so itself when it ended."""
        name = f"checkpoint-*-{ended.chain}-{ended.seq:012d}.jws"
        return any((self._directory / CHECKPOINTS).glob(name))

    @staticmethod
    def _is_left(parts: list[Path], last: bytes, unchanged: float) -> bool:
        if unchanged > _SETTLED and _is_gone(parts[0]):
            return True
        return unchanged > _FORGOTTEN and not last.startswith(_OWN_MARK)


def _is_gone(first: Path) -> bool:
    """Whether the process that opened the chain ran on this host and runs no more. A number that
    is ours now was another process's then."""
    with first.open("rb") as file:
        line = file.readline(_TAIL_BYTES)
    try:
        record = json.loads(line)
        host, pid = str(record["host"]), int(record["pid"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    if host != socket.gethostname():
        return False
    return pid == os.getpid() or (pid > 0 and not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _last_record(parts: list[Path]) -> tuple[bytes, str]:
    """The last line that is whole, and its file's name; nothing where there is none."""
    for path in reversed(parts):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            whole = file.read().split(b"\n")[:-1]
        if whole:
            return whole[-1], path.name
    return b"", ""
