"""Run a test's body in a process of its own, so that a crash of a native module is a failure."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.context import SpawnProcess


def start(function: Callable[..., None], *arguments: object) -> SpawnProcess:
    """``function`` (of a module, not nested) in a fresh interpreter."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    return process


def finish(process: SpawnProcess, timeout: float) -> None:
    """Wait ``timeout`` seconds; an exception, a signal or silence over there fails the test."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the process did not end within {timeout} s")
    if process.exitcode < 0:
        raise AssertionError(f"the process died of {signal.Signals(-process.exitcode).name}")
    assert process.exitcode == 0, f"the process failed (exit {process.exitcode}); see its stderr"


def run_apart(function: Callable[..., None], *arguments: object, timeout: float = 60) -> None:
    finish(start(function, *arguments), timeout)


class Herd:
    """Forked children of this process that start at the same instant.

    The parent must have no thread at work in native code: run it with ``run_apart``.
    """

    def __init__(self, count: int, function: Callable[[int], None]) -> None:
        gate, self._open_gate = os.pipe()
        self._pids = [self._fork(gate, number, function) for number in range(count)]
        os.close(gate)

    def _fork(self, gate: int, number: int, function: Callable[[int], None]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.close(self._open_gate)
            os.read(gate, 1)  # returns when the last writer is gone
            function(number)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def go(self) -> None:
        os.close(self._open_gate)

    def kill(self, number: int) -> None:
        os.kill(self._pids[number], signal.SIGKILL)

    def wait(self) -> list[int]:
        """The exit codes, in order; negative for a signal."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self._pids]
