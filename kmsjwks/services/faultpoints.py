"""Named points at which a test can end the process. In production nothing happens at them."""

from __future__ import annotations

from collections.abc import Callable


class FaultPoints:
    """``at`` is called with the name of each point as it is reached."""

    def __init__(self, at: Callable[[str], None] | None = None) -> None:
        self._at = at

    def reach(self, point: str) -> None:
        if self._at is not None:
            self._at(point)
