"""psycopg connections whose every call returns. Imported only where psycopg is installed."""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any

from psycopg import Connection, OperationalError

ANSWER_TIMEOUT = 8.0  # seconds; the server gives up on a statement before that


class BoundedConnection(Connection[Any]):
    """Gives up on a server that holds the connection and says nothing: one that is stopped or
    swapping is not noticed by TCP, nor does it notice its own statement timeout.

    ``patience`` is in seconds, for one round trip.
    """

    patience: float = ANSWER_TIMEOUT

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            OperationalError: no answer in time; the connection is closed.
        """
        return super().wait(self._within_patience(gen), *args, **kwargs)

    def _within_patience(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # 0 ten times a second as long as nothing comes
                if not ready and monotonic() > deadline:
                    self.pgconn.finish()
                    raise OperationalError(f"no answer from the server for {self.patience} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
