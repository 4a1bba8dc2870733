"""Documents to files and buckets: once, or whenever they change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kmsjwks.domain.documents import JWKS_MEDIA_TYPE, Document
from kmsjwks.domain.errors import PublicationFailed
from kmsjwks.domain.ports import Clock, DocumentTarget

_GIVE_UP_AFTER = 3  # failures in a row: the target is down, and each may take its whole timeout
_log = logging.getLogger(__name__)


class Exporter:
    """Publishes documents to every target. Nothing is ever deleted there. Thread-safe."""

    def __init__(
        self,
        targets: Sequence[DocumentTarget],
        is_public: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Their ``str`` names them in messages. Documents of issuers that are not public are left
        out: nobody is asked for a credential there."""
        self._targets, self._is_public = tuple(targets), is_public

    def export(self, documents: Mapping[str, Document]) -> list[str]:
        """What was written, as ``target: name``; nothing where all is as it should be.

        Raises:
            PublicationFailed: not all could be published; what could be, was.
        """
        written: list[str] = []
        failures: list[str] = []
        documents = {
            path: document
            for path, document in documents.items()
            if self._is_public(document.issuer)
        }
        for target in self._targets:
            failures += _publish(target, documents, written)
        if failures:
            raise PublicationFailed(" ".join(failures), retry_after=5)
        return written


def _publish(
    target: DocumentTarget, documents: Mapping[str, Document], written: list[str]
) -> list[str]:
    """Adds to ``written``; returns what failed."""
    failures: list[str] = []
    in_a_row = 0
    for path in sorted(documents, key=lambda path: _order(path, documents[path])):
        name = path.removeprefix("/")
        try:
            if target.publish(name, documents[path]):
                written.append(f"{target}: {name}")
            in_a_row = 0
        except PublicationFailed as error:
            if str(error) not in failures:
                failures.append(str(error))
            in_a_row += 1
            if in_a_row == _GIVE_UP_AFTER:
                break
    return failures


def _order(path: str, document: Document) -> tuple[bool, str]:
    """Metadata after the JWKS that it points to."""
    return document.media_type != JWKS_MEDIA_TYPE, path


@dataclass(frozen=True, slots=True)
class ExportTiming:
    """In seconds. ``verify_every``: how often unchanged documents are compared with the targets,
    which repairs what somebody else overwrote. ``fresh_for``: how long after the last refresh
    documents are still published; a replica that lost the database must not overwrite newer ones.
    ``first_retry`` doubles up to ``longest_retry``."""

    verify_every: float = 60.0
    fresh_for: float = 30.0
    first_retry: float = 1.0
    longest_retry: float = 60.0


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """Times in seconds since the epoch; ``last_error`` is empty while all is well."""

    last_success: float | None = None
    last_change: float | None = None
    failing_since: float | None = None
    last_error: str = ""


class ScheduledExport:
    """Publishes in a thread of its own, which starts with the first documents: a target that hangs
    delays nobody. Always the newest documents; what came in between is passed over."""

    def __init__(
        self, exporter: Exporter, clock: Clock, timing: ExportTiming | None = None
    ) -> None:
        self._exporter, self._clock = exporter, clock
        self._timing = timing or ExportTiming()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._latest: Mapping[str, Document] = {}
        self._refreshed = self._published_at = 0.0  # monotonic seconds
        self._published: Mapping[str, Document] | None = None
        self._retry_at, self._failures = 0.0, 0
        self._status = ExportStatus()

    def after_refresh(self, documents: Mapping[str, Document]) -> None:
        """Take note, without waiting. To be called after every refresh that reached the database,
        also where nothing changed: that is how the documents stay fresh enough to publish."""
        with self._wake:
            changed = documents is not self._latest and documents != self._latest
            self._latest, self._refreshed = documents, time.monotonic()
            if changed:
                self._retry_at, self._failures = 0.0, 0
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._keep, name="kmsjwks-export", daemon=True
                )
                self._thread.start()
            self._wake.notify()

    def status(self) -> ExportStatus:
        with self._wake:
            return self._status

    def close(self) -> None:
        """Publish no more. Does not wait for a target that hangs."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _keep(self) -> None:
        while (documents := self._next()) is not None:
            try:
                written = self._exporter.export(documents)
            except PublicationFailed as error:
                self._failed(str(error))
            except Exception as error:  # a target's bug must not end publication
                _log.exception("Publication failed in a way that it should not.")
                self._failed(type(error).__name__)
            else:
                self._succeeded(documents, written)

    def _next(self) -> Mapping[str, Document] | None:
        """Wait until there is something to publish; None when closed."""
        with self._wake:
            while not self._closed:
                wait = self._wait(time.monotonic())
                if wait <= 0:
                    return self._latest
                self._wake.wait(wait)
            return None

    def _wait(self, now: float) -> float:
        """Seconds until the next attempt is due. A stale replica waits for `after_refresh`."""
        timing = self._timing
        if now - self._refreshed > timing.fresh_for:
            return timing.longest_retry
        if self._failures:
            return self._retry_at - now
        if self._published != self._latest:
            return 0.0
        return self._published_at + timing.verify_every - now

    def _succeeded(self, documents: Mapping[str, Document], written: Sequence[str]) -> None:
        now = self._clock.now()
        with self._wake:
            recovered = self._status.failing_since is not None
            self._published, self._published_at = documents, time.monotonic()
            self._failures = 0
            changed = now if written else self._status.last_change
            self._status = ExportStatus(last_success=now, last_change=changed)
        for one in written:
            _log.info("Published %s.", one)
        if recovered:
            _log.info("Publication works again.")

    def _failed(self, why: str) -> None:
        now = self._clock.now()
        with self._wake:
            known, before = self._status.last_error, self._status
            since = now if before.failing_since is None else before.failing_since
            self._status = ExportStatus(before.last_success, before.last_change, since, why)
            delay = min(
                self._timing.longest_retry, self._timing.first_retry * 2 ** min(self._failures, 16)
            )
            self._failures += 1
            self._retry_at = time.monotonic() + delay
        if why != known:
            _log.error("Publication failed; what is published stays as it is: %s", why)
