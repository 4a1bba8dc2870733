"""One verifier at work: every token at once and again shortly before its exp."""

from __future__ import annotations

import heapq
import threading
import time
from itertools import count

from proof.plan import LAST_LOOK
from proof.record import Look, Record, Refusal, Token
from proof.verifiers import RefusedToken, Verifier

_TOO_LATE = 0.1  # seconds before exp: the verdict would be about time, not about keys
_Due = tuple[float, int, Token, Look]


class Lane:
    """A thread of its own, so that no client waits for another one's fetch."""

    def __init__(self, verifier: Verifier, record: Record) -> None:
        self.name = verifier.name
        self._verifier, self._record = verifier, record
        self._due: list[_Due] = []
        self._changed = threading.Condition()
        self._numbers = count()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def put(self, token: Token) -> None:
        with self._changed:
            for at, look in ((token.at, Look.FIRST), (token.exp - LAST_LOOK, Look.LAST)):
                heapq.heappush(self._due, (at, next(self._numbers), token, look))
            self._changed.notify()

    def finish(self, timeout: float) -> bool:
        """Wait until every token was verified; whether it was in time (seconds)."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            self._look(*due)

    def _next(self) -> tuple[Token, Look] | None:
        with self._changed:
            while True:
                if self._due and self._due[0][0] <= time.time():
                    _, _, token, look = heapq.heappop(self._due)
                    return token, look
                if not self._due and self._ending:
                    return None
                self._changed.wait(self._due[0][0] - time.time() if self._due else None)

    def _look(self, token: Token, look: Look) -> None:
        began = time.time()
        if began > token.exp - _TOO_LATE:
            self._record.miss(self.name)
            return
        try:
            self._verifier.verify(token.text)
        except RefusedToken as error:
            if began <= token.exp <= time.time():
                self._record.miss(self.name)  # it expired while the client was fetching
                return
            self._record.refuse(Refusal(self.name, look, began, token, str(error)))
        else:
            self._record.accept(self.name, token, look)
