"""Keeps one connection to the token alive: opens it, watches its calls, replaces it when lost.

States, as seen by a caller: *opening* (wait, within your deadline), *up* (use the connection),
*down* (refused at once, with the reason), *denied* (refused until the process restarts).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from kmsjwks.backends.pkcs11.connection import Connection
from kmsjwks.backends.pkcs11.session import now
from kmsjwks.domain.errors import BackendDenied, BackendError, BackendUnavailable
from kmsjwks.domain.ports import BackendStatus

_log = logging.getLogger(__name__)
_TICK = 0.05  # seconds between looks while something is amiss, or a deadline near
# Seconds between looks while all is well. A call that begins in between is overdue later than
# that, or had that little time left: either way nobody waits longer beyond a deadline.
_REST = 0.5
_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 5.0  # seconds between attempts to connect


class Connect(Protocol):
    """``entered_at``: since when (monotonic seconds) the module is being asked; None before."""

    entered_at: float | None

    def __call__(self) -> Connection:
        """
        Raises:
            BackendError
        """


@dataclass(frozen=True, slots=True)
class LinkHooks:
    """What the surroundings do when the module hangs.

    ``on_stall`` gets the ident of each thread that is stuck in the module beyond its deadline;
    ``is_replaceable`` asks whether a fresh process would reach the token; ``replace_process``
    ends this one without finalising the module.
    """

    on_stall: Callable[[int], None] = lambda _thread: None
    is_replaceable: Callable[[], bool] = lambda: False
    replace_process: Callable[[], None] = lambda: None


class Link:
    """Lazy and fork-safe: nothing is loaded, and no thread runs, before the first use in a
    process. Thread-safe."""

    def __init__(
        self, connect: Connect, *, call_timeout: float, replace_after: float, hooks: LinkHooks
    ) -> None:
        self._connect, self._hooks = connect, hooks
        self._call_timeout, self._replace_after = call_timeout, replace_after
        self._reset()
        # A forked child has neither the keeper nor, perhaps, its locks in a usable state.
        os.register_at_fork(after_in_child=partial(_call_if_alive, weakref.WeakMethod(self._reset)))

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._connection: Connection | None = None
        self._keeper: threading.Thread | None = None
        self._attempt: _Attempt | None = None
        self._backoff, self._next_attempt = _FIRST_BACKOFF, 0.0
        self._stalled_since: float | None = None
        self._down: str = ""
        self._down_since: float | None = None
        self._denied: BackendDenied | None = None
        self._closed = False

    def connection(self, deadline: float) -> Connection:
        """The connection, waiting for it until ``deadline`` only while it is being opened.

        Raises:
            BackendUnavailable: down.
            BackendDenied: the token refused our PIN, once.
        """
        connection = self._connection
        if connection is not None and connection.usable:
            return connection
        return self._wait(deadline)

    def _wait(self, deadline: float) -> Connection:
        with self._changed:
            while True:
                if self._denied is not None:
                    raise BackendDenied(str(self._denied))
                if self._closed:
                    raise BackendUnavailable("The backend is closed.")
                self._start_keeper()
                connection = self._connection
                if connection is not None and connection.usable:
                    return connection
                left = deadline - now()
                if self._down or left <= 0:
                    raise self._unavailable()
                self._wake.set()
                self._changed.wait(left)

    def _unavailable(self) -> BackendUnavailable:
        reason = self._down or "The token is still being opened."
        return BackendUnavailable(reason, retry_after=max(1.0, self._backoff))

    def status(self) -> BackendStatus:
        if self._denied is not None:
            return BackendStatus(False, str(self._denied), self._down_since)
        return BackendStatus(not self._down, self._down, self._down_since)

    def lost(self, connection: Connection) -> None:
        """Report a connection that no longer works; another one is opened."""
        connection.usable = False
        self._wake.set()

    def close(self) -> None:
        """Let calls in flight end. A module with a call that never returns is left alone."""
        with self._changed:
            self._closed = True
            connection, self._connection = self._connection, None
            self._wake.set()
            self._changed.notify_all()
        if connection is not None and connection.drain(now() + self._call_timeout):
            connection.close_sessions()

    # The keeper: one daemon thread a process. It never calls the module itself.

    def _start_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(
                target=self._keep, name="kmsjwks-pkcs11-keeper", daemon=True
            )
            self._keeper.start()

    def _keep(self) -> None:
        while not self._closed:
            connection, pause = self._connection, _TICK
            try:
                if connection is None or not connection.usable:
                    self._mend(connection)
                else:
                    pause = self._watch(connection)
            except Exception:  # a hook's; without the keeper the backend would never recover
                _log.exception("The keeper of a PKCS#11 connection met an error and goes on.")
            self._wake.wait(pause)
            self._wake.clear()

    def _watch(self, connection: Connection) -> float:
        """Answer for threads that the module holds beyond their deadline; in how many seconds to
        look again, if nobody wakes the keeper."""
        soon = now() + _TICK
        # A list: every stuck thread is answered for.
        if any([pooled.poison(soon, self._report) for pooled in connection.pool]):
            with self._changed:
                connection.usable = False
                if self._stalled_since is None:
                    self._stalled_since = now()
                self._set_down("The PKCS#11 module does not answer.")
            return _TICK
        first = min(pooled.deadline for pooled in connection.pool)
        return min(max(first - soon, _TICK), _REST)

    def _report(self, thread: int) -> None:
        try:
            self._hooks.on_stall(thread)
        except Exception:  # a hook's; the connection is given up all the same
            _log.exception("A request that is stuck in the PKCS#11 module was not answered.")

    def _mend(self, connection: Connection | None) -> None:
        if connection is not None and connection.in_flight():
            # Calls begun before the loss was noticed: they end, or they are stuck as well.
            self._watch(connection)
            self._consider_replacement()
            return
        if self._attempt is None:
            self._stalled_since = None
            if now() >= self._next_attempt:
                self._attempt = _Attempt(self._connect)
        elif self._attempt.done:
            attempt, self._attempt = self._attempt, None
            self._settle(attempt)
        elif self._attempt.age > self._call_timeout:
            if not self._down:
                with self._changed:
                    self._set_down("The PKCS#11 module does not answer while it is being opened.")
            if self._stalled_since is None:
                self._stalled_since = self._attempt.entered_at
            self._consider_replacement()

    def _settle(self, attempt: _Attempt) -> None:
        with self._changed:
            if isinstance(attempt.result, Connection):
                self._connection = attempt.result
                self._down, self._down_since = "", None
                self._backoff, self._next_attempt = _FIRST_BACKOFF, 0.0
                self._changed.notify_all()
                return
            self._set_down(str(attempt.result))
            if isinstance(attempt.result, BackendDenied):
                self._denied, self._closed = attempt.result, True
            pause = getattr(attempt.result, "retry_after", 0.0)
            self._next_attempt = now() + max(self._backoff, pause if pause > 1.0 else 0.0)
            self._backoff = min(self._backoff * 2, _LAST_BACKOFF)

    def _set_down(self, reason: str) -> None:
        self._down = reason
        if self._down_since is None:
            self._down_since = time.time()
        self._changed.notify_all()

    def _consider_replacement(self) -> None:
        """A stuck call cannot be cancelled. If the token answers a fresh process, become one."""
        since = self._stalled_since
        if since is None or now() - since < self._replace_after:
            return
        self._stalled_since = now()  # ask again after another such time, not at every tick
        # In a thread of its own: asking takes seconds, and the keeper has others to answer for.
        threading.Thread(target=self._replace, name="kmsjwks-pkcs11-probe", daemon=True).start()

    def _replace(self) -> None:
        if self._hooks.is_replaceable() and self._stuck():  # it may have come back meanwhile
            self._hooks.replace_process()

    def _stuck(self) -> bool:
        if self._attempt is not None:
            return not self._attempt.done
        return self._connection is not None and self._connection.in_flight()


def _call_if_alive(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    call = method()
    if call is not None:
        call()


class _Attempt:
    """One try to connect, in a thread of its own because the module may hang."""

    def __init__(self, connect: Connect) -> None:
        self.started = now()
        self.result: Connection | BackendError | None = None
        self._connect = connect
        threading.Thread(target=self._run, name="kmsjwks-pkcs11-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            self.result = self._connect()
        except BackendError as error:
            self.result = error
        except Exception as error:  # a vendor module can raise anything
            self.result = BackendUnavailable(f"Opening the token failed ({type(error).__name__}).")

    @property
    def done(self) -> bool:
        return self.result is not None

    @property
    def entered_at(self) -> float | None:
        return self._connect.entered_at

    @property
    def age(self) -> float:
        return now() - self.started
