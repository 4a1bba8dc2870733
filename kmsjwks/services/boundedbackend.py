"""A backend whose every call ends: for those who wait for a device while they hold a lock.

A serving process makes its calls in the thread that wants the answer, which costs a signature
nothing, and leaves it to the server to answer for a thread that a device never gives back. A tick
has no such server behind it, and would keep everybody's planner lock with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime
from typing import Any, TypeVar

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import BackendUnavailable
from kmsjwks.domain.ports import BackendKey, BackendStatus, Evidence, KeyBackend

T = TypeVar("T")
_DEADLINE = 15.0  # seconds; beyond what the backends bound themselves by
_MAKING = 120.0  # seconds; a slow HSM takes one to make RSA-4096


class BoundedBackend:
    """A ``KeyBackend``. A call that does not end in time is left to its thread."""

    def __init__(self, backend: KeyBackend) -> None:
        self._backend = backend
        self._lost: Future[Any] | None = None

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        return self._bounded(lambda: self._backend.algorithms)

    def create_key(self, alg: Algorithm, *, request_id: str, keyset: str = "") -> BackendKey:
        return self._bounded(
            lambda: self._backend.create_key(alg, request_id=request_id, keyset=keyset), _MAKING
        )

    def get_key(self, ref: str) -> BackendKey:
        return self._bounded(lambda: self._backend.get_key(ref))

    def list_keys(self) -> Iterator[BackendKey]:
        yield from self._bounded(lambda: list(self._backend.list_keys()), _MAKING)

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        return self._bounded(lambda: self._backend.sign(key, message))

    def evidence(self, ref: str) -> Evidence:
        return self._bounded(lambda: self._backend.evidence(ref))

    def destroy_key(self, ref: str) -> datetime:
        return self._bounded(lambda: self._backend.destroy_key(ref))

    def cancel_destruction(self, ref: str) -> None:
        self._bounded(lambda: self._backend.cancel_destruction(ref))

    def check(self) -> None:
        self._bounded(self._backend.check)

    def status(self) -> BackendStatus:
        return self._backend.status()

    def close(self) -> None:
        self._backend.close()

    def _bounded(self, call: Callable[[], T], seconds: float = _DEADLINE) -> T:
        """
        Raises:
            BackendUnavailable: no answer in time; or a call before is still waited for, so that
                not every try costs a thread.
        """
        lost = self._lost
        if lost is not None and not lost.done():
            raise BackendUnavailable("The device has not answered an earlier call yet.")
        answer: Future[T] = Future()
        thread = threading.Thread(
            target=_fetch, args=(call, answer), name="kmsjwks-bounded-call", daemon=True
        )
        thread.start()
        try:
            return answer.result(seconds)
        except TimeoutError as error:
            if answer.done():  # it is the call that ended so
                raise
            self._lost = answer
            raise BackendUnavailable("The device did not answer within the deadline.") from error


def _fetch(call: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # handed to whoever waits
        answer.set_exception(error)
