"""Group commit: what threads record at the same time is written at once, by one of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from kmsjwks.domain.errors import AuditUnavailable

_log = logging.getLogger(__name__)

Write = Callable[[Sequence[bytes]], None]
"""Makes records durable, all or none. Raises OSError. Never called by two threads at once."""


class _Ticket:
    """Records of one caller, who waits. ``leads``: its thread is to write, and is not waited
    for."""

    __slots__ = ("bodies", "error", "leads", "settled", "wake")

    def __init__(self, bodies: Sequence[bytes]) -> None:
        self.bodies = bodies
        self.error: Exception | None = None
        self.leads = self.settled = False
        self.wake = threading.Lock()
        self.wake.acquire()


class GroupCommit:
    """Leader and followers: whoever finds nobody writing writes all that waits, others wait for
    it, and one of those that came meanwhile leads next. A lone caller waits for nobody.

    A write that hangs costs every caller at most ``timeout`` seconds. With ``on_stall`` the leader
    writes in its own thread, which is the fast way; when that hangs, ``on_stall(its ident)`` must
    answer for it. Without, a thread is started for the write.
    """

    def __init__(
        self, write: Write, timeout: float, on_stall: Callable[[int], None] | None
    ) -> None:
        self._write, self._timeout, self._on_stall = write, timeout, on_stall
        self._mutex = threading.Lock()
        self._queue: deque[_Ticket] = deque()
        self._since: float | None = None  # when the write under way began
        self._leader = 0
        self._answered = False
        self._watched = False

    def submit(self, body: bytes) -> None:
        """As ``submit_all``, for one."""
        self.submit_all((body,))

    def submit_all(self, bodies: Sequence[bytes]) -> None:
        """Return when ``bodies`` are durable, all in one write, in their order.

        Raises:
            AuditUnavailable: none is, or they were not in time: then all may still become so.
        """
        with self._mutex:
            now, since = time.monotonic(), self._since
            if since is not None and now - since > self._timeout:
                raise _stalled()
            alone = since is None and self._on_stall is not None
            if alone:
                self._since, self._leader = now, threading.get_ident()
            else:
                ticket = _Ticket(bodies)
                self._queue.append(ticket)
                self._since = now if since is None else since
        if alone:
            error = self._lead(bodies)
        else:
            if since is None:
                threading.Thread(target=self._drain, name="kmsjwks-audit", daemon=True).start()
            self._wait(ticket)
            error = ticket.error
        if error is not None:
            raise _unavailable(error) from error

    def _lead(self, bodies: Sequence[bytes]) -> Exception | None:
        """Write for oneself, having found nobody writing; who came meanwhile writes next."""
        self._watch()
        error = self._attempt(bodies)
        with self._mutex:
            # A leader that was answered for must not release what it held.
            late, self._answered = self._answered, False
            self._pass_on()
        return _Late() if late and error is None else error

    def _wait(self, ticket: _Ticket) -> None:
        if not ticket.wake.acquire(timeout=self._timeout):
            with self._mutex:
                if not (ticket.settled or ticket.leads):
                    if ticket in self._queue:
                        self._queue.remove(ticket)
                    raise _stalled()
        if ticket.leads:
            self._round()

    def _drain(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """Write what waits. Returns whether more does; somebody else leads then, if threads of
        callers do."""
        self._watch()
        with self._mutex:
            batch = tuple(self._queue)
            self._queue.clear()
            self._since, self._leader = time.monotonic(), threading.get_ident()
        error = self._attempt([body for ticket in batch for body in ticket.bodies])
        with self._mutex:
            for ticket in batch:
                # A leader that was answered for must not release what it held.
                late = ticket.leads and self._answered
                ticket.error = _Late() if late and error is None else error
                ticket.settled = True
                if not ticket.leads:
                    ticket.wake.release()
            self._answered = False
            return self._pass_on()

    def _pass_on(self) -> bool:
        if not self._queue:
            self._since, self._leader = None, 0
            return False
        self._since, self._leader = time.monotonic(), 0
        if self._on_stall is not None:
            self._queue[0].leads = True
            self._queue[0].wake.release()
        return True

    def _attempt(self, bodies: Sequence[bytes]) -> Exception | None:
        try:
            self._write(bodies)
        except OSError as error:
            return error
        except Exception as error:  # nobody may wait for ever because of a bug
            _log.exception("The audit records could not be written.")
            return error
        return None

    def _watch(self) -> None:
        if self._on_stall is None or self._watched:
            return
        self._watched = True
        threading.Thread(target=self._look, name="kmsjwks-audit-watch", daemon=True).start()

    def _look(self) -> None:
        assert self._on_stall is not None
        while True:
            time.sleep(self._timeout / 4)
            with self._mutex:  # the leader cannot take up other work meanwhile
                late = self._since is not None and (time.monotonic() - self._since > self._timeout)
                if late and self._leader and not self._answered:
                    self._answered = True
                    self._on_stall(self._leader)


class _Late(OSError):
    """The write succeeded when its caller had been refused."""


def _stalled() -> AuditUnavailable:
    return AuditUnavailable(
        "The audit trail does not take records in time, so the token was not released and nothing "
        "was changed. The operator must look at the audit directory's disk.",
        retry_after=5,
    )


def _unavailable(error: Exception) -> AuditUnavailable:
    if isinstance(error, _Late):
        return _stalled()
    return AuditUnavailable(
        "The audit record could not be written, so the token was not released and nothing was "
        "changed. The operator must look at the audit directory.",
        retry_after=5,
    )
