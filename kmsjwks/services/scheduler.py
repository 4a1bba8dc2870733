"""Ticks from time to time, in a thread of a serving process."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kmsjwks.domain.errors import KmsJwksError
from kmsjwks.services.planning import Planner, TickReport

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LastTick:
    """``at`` in seconds since the epoch; None before the first."""

    at: float | None = None
    failed: int = 0


class Scheduler:
    """``interval`` in seconds, varied a little so that replicas do not move in step."""

    def __init__(
        self, planner: Planner, interval: float, after: Callable[[], None] = lambda: None
    ) -> None:
        """``after`` is called when a tick changed something."""
        self._planner, self._interval, self._after = planner, interval, after
        self.last = LastTick()

    def start(self) -> None:
        threading.Thread(target=self._run, name="kmsjwks-scheduler", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._tick()
            time.sleep(self._interval * random.uniform(0.8, 1.2))  # noqa: S311  # no secret

    def _tick(self) -> None:
        try:
            report = self._planner.tick()
        except KmsJwksError as error:
            _log.error("The rotation could not be looked after: %s", error)
            self.last = LastTick(self.last.at, self.last.failed + 1)
            return
        except Exception:  # the thread must survive a bug, or nothing rotates any more
            _log.exception("The rotation could not be looked after.")
            self.last = LastTick(self.last.at, self.last.failed + 1)
            return
        self._report(report)

    def _report(self, report: TickReport) -> None:
        for line in report.done:
            _log.info("%s", line)
        if not report.elsewhere:
            self.last = LastTick(time.time(), len(report.failed))
        if report.done:
            self._after()
