"""Processes that the bench starts, and ends again whatever happens."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.model import Refused

_START_TIMEOUT = 30.0  # seconds
_STOP_TIMEOUT = 15.0


@contextmanager
def running(
    words: Sequence[str],
    log: Path,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is ended with it. ``environ`` is added to ours."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
            env={**environment(), **(environ or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        yield child
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_TIMEOUT)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def environment() -> dict[str, str]:
    """Ours without settings of the service, which would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KMSJWKS_")}


def output(
    words: Sequence[str], environ: Mapping[str, str] | None = None, timeout: float = 900
) -> str:
    """
    Raises:
        Refused: it failed.
    """
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=timeout, env={**environment(), **(environ or {})},
    )  # fmt: skip
    if done.returncode != 0:
        raise Refused(f"{Path(words[0]).name} failed: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    """What a program says at its end, which for a traceback is the error."""
    return text.strip().rpartition("\n")[2][-500:]


def ask(
    port: int,
    method: str,
    path: str,
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, Mapping[str, str]]:
    """Status, body and headers (names in lower case) of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return (
            answer.status,
            answer.read(),
            {name.lower(): value for name, value in answer.getheaders()},
        )
    finally:
        connection.close()


def wait_for(
    child: subprocess.Popen[bytes], port: int, path: str, log: Path, below: int = 500
) -> None:
    """Until ``path`` answers with a status ``below`` this.

    Raises:
        Refused: it ended, or never answered.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and child.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            if ask(port, "GET", path)[0] < below:
                return
        time.sleep(0.01)
    raise Refused(f"{log.stem} did not start: {log.read_text('utf-8', 'replace')[-500:]}")
