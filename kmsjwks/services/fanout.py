"""Many calls of one kind, over a few threads where that helps, until a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

_MOST_THREADS = 64  # of all calls at once, in one process


class FanOut:
    """Thread-safe. Threads live as long as what they are for; a call that hangs keeps its own."""

    def __init__(self, most_threads: int = _MOST_THREADS) -> None:
        self._free = threading.BoundedSemaphore(most_threads)

    def run(self, call: Callable[[int], bool], times: int, width: int, until: float) -> None:
        """``call(0)``, ``call(1)`` and so on, ``times`` in all, up to ``width`` at once.

        Returns when all have returned, when one that returned False and those beside it have, or
        at ``until`` (monotonic seconds). Then calls under way are left to their threads; alone in
        the caller's thread, which is where they are made with a ``width`` of 1 or while threads
        are short, a call is waited for.

        Raises:
            Exception: what a call raised; the others end as after False.
        """
        run = _Run(call, times, until)
        width = self._take(min(width, times))
        if width < 2:
            self._free_some(width)
            run.work()
        else:
            run.spread(width, self._free.release)
        if run.errors:
            raise run.errors[0]

    def _take(self, wanted: int) -> int:
        if wanted < 2:
            return 0
        taken = 0
        while taken < wanted and self._free.acquire(blocking=False):
            taken += 1
        return taken

    def _free_some(self, taken: int) -> None:
        if taken:
            self._free.release(taken)


@dataclass(slots=True)
class _Run:
    call: Callable[[int], bool]
    times: int
    until: float
    stopped: bool = False
    turns: count[int] = field(default_factory=count)  # next() is atomic
    errors: list[Exception] = field(default_factory=list)

    def work(self) -> None:
        while not self.stopped and time.monotonic() < self.until:
            turn = next(self.turns)
            if turn >= self.times:
                return
            try:
                if not self.call(turn):
                    self.stopped = True
            except Exception as error:  # raised by whoever waits
                self.stopped = True
                self.errors.append(error)

    def spread(self, width: int, over: Callable[[], None]) -> None:
        def help_out() -> None:
            try:
                self.work()
            finally:
                over()

        threads = []
        for _ in range(width):
            thread = threading.Thread(target=help_out, name="kmsjwks-fan-out", daemon=True)
            try:
                thread.start()
                threads.append(thread)
            except RuntimeError:  # the system allows no more threads
                over()
        if not threads:
            self.work()
        for thread in threads:
            thread.join(max(0.0, self.until - time.monotonic()))
