"""What a worker counts and shows, in files that all processes of the service share.

To be imported only after `metrics.prepare`: prometheus-client decides at its own import whether
values are shared between processes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import Flask
from prometheus_client import Counter, Gauge

from kmsjwks.bootstrap import Service
from kmsjwks.domain.errors import KmsJwksError
from kmsjwks.domain.failover import is_ready
from kmsjwks.domain.keys import KeyState
from kmsjwks.domain.rotation import active_key, is_blocked, is_failed_over, spares
from kmsjwks.http.app import create_app
from kmsjwks.http.context import Refused
from kmsjwks.services.scheduler import Scheduler
from kmsjwks.services.signing import Caller, SignedToken, SigningService, SignRequest
from kmsjwks.services.snapshot import ReadyKeyset, Snapshot
from kmsjwks.services.verifying import Verification

SAMPLE_INTERVAL = 1.0  # seconds
_log = logging.getLogger(__name__)


def metered_app(service: Service, scheduler: Scheduler) -> Flask:
    """The application, counting; and a thread that shows how the worker does."""
    app = create_app(replace(service, signing=MeteredSigning(service.signing)), _refusals())
    Sampler(service, scheduler).start()
    return app


class MeteredSigning(SigningService):
    """A `SigningService` that counts the tokens it releases."""

    def __init__(self, inner: SigningService) -> None:
        self._inner = inner
        self._signed = Counter(
            "kmsjwks_tokens_signed",
            "Tokens signed, recorded and released.",
            ("keyset", "alg"),
            registry=None,
        )
        self._children: dict[tuple[str, str], Counter] = {}  # as many as there are keysets

    def sign_jwt(self, caller: Caller, keyset: str, request: SignRequest) -> SignedToken:
        signed = self._inner.sign_jwt(caller, keyset, request)
        self._count(keyset, signed)
        return signed

    def sign_batch(
        self, caller: Caller, keyset: str, requests: Sequence[SignRequest]
    ) -> list[SignedToken | KmsJwksError]:
        outcomes = self._inner.sign_batch(caller, keyset, requests)
        signed = [one for one in outcomes if isinstance(one, SignedToken)]
        if signed:  # all by one key
            self._count(keyset, signed[0], len(signed))
        return outcomes

    def _count(self, keyset: str, signed: SignedToken, times: int = 1) -> None:
        child = self._children.get((keyset, signed.alg))
        if child is None:
            child = self._signed.labels(keyset, signed.alg)
            self._children[keyset, signed.alg] = child
        child.inc(times)

    def verify(self, caller: Caller, keyset: str, token: str) -> Verification:
        return self._inner.verify(caller, keyset, token)


def _refusals() -> Refused:
    """Counts requests to sign, and items of batches, that get no token."""
    refused = Counter(
        "kmsjwks_sign_refused",
        "Requests to sign, and items of batches, that got no token, by problem code.",
        ("code",),
        registry=None,
    )

    def count(code: str, times: int) -> None:
        refused.labels(code).inc(times)

    return count


@dataclass(frozen=True, slots=True)
class _Gauges:
    staleness: Gauge
    worst_staleness: Gauge
    keys: Gauge
    blocked: Gauge
    tick_success: Gauge
    tick_failures: Gauge
    backend_up: Gauge
    failed_over: Gauge
    standby_not_ready: Gauge
    publication_failing: Gauge


def _gauge(name: str, text: str, mode: Any, *labels: str) -> Gauge:
    return Gauge(f"kmsjwks_{name}", text, labels, registry=None, multiprocess_mode=mode)


def _gauges() -> _Gauges:
    """Of several workers the worst counts, or for what all share, the one that looked last."""
    return _Gauges(
        staleness=_gauge(
            "snapshot_staleness_seconds",
            "Since the database last confirmed what the worker signs from; the worst worker.",
            "livemax",
        ),
        worst_staleness=_gauge(
            "worst_case_staleness_seconds",
            "The most that the timing rules allow: grace and refresh of the replicas.",
            "livemax",
        ),
        keys=_gauge("keys", "Keys by state.", "livemostrecent", "keyset", "state"),
        blocked=_gauge(
            "activation_blocked",
            "1 while a spare was not seen in the JWKS through the public URL.",
            "livemostrecent",
            "keyset",
        ),
        tick_success=_gauge(
            "tick_last_success_timestamp_seconds",
            "When this service last looked after rotation without a failure.",
            "max",
        ),
        tick_failures=_gauge(
            "tick_failures", "Failures of the worker's last tick, or in a row.", "livemax"
        ),
        backend_up=_gauge(
            "backend_up", "0 where a worker knows the backend to be down.", "livemin", "backend"
        ),
        failed_over=_gauge(
            "keyset_failed_over",
            "1 while the standby backend signs in the primary's place.",
            "livemostrecent",
            "keyset",
        ),
        standby_not_ready=_gauge(
            "standby_not_ready",
            "1 while a keyset with a standby has no usable key that verifiers know in the other.",
            "livemostrecent",
            "keyset",
        ),
        publication_failing=_gauge(
            "publication_failing", "1 while a publication target cannot be written.", "livemax"
        ),
    )


class Sampler:
    """Shows from time to time how a worker does, so that no request has to."""

    def __init__(self, service: Service, scheduler: Scheduler) -> None:
        self._service, self._scheduler = service, scheduler
        self._gauges = _gauges()
        timing = service.timing
        self._gauges.worst_staleness.set(timing.grace + 2 * timing.refresh_interval)

    def start(self) -> None:
        threading.Thread(target=self._run, name="kmsjwks-metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.sample()
            except Exception:  # metrics must outlive what they are to show
                _log.exception("The metrics could not be brought up to date.")
            time.sleep(SAMPLE_INTERVAL)

    def sample(self) -> None:
        gauges, service = self._gauges, self._service
        snapshot = service.snapshots.known()
        gauges.staleness.set(service.snapshots.staleness())
        for name, health in service.watch.health().items():
            gauges.backend_up.labels(name).set(health.available)
        last = self._scheduler.last
        gauges.tick_failures.set(last.failed)
        if last.at is not None and not last.failed:
            gauges.tick_success.set(last.at)
        if service.export is not None:
            gauges.publication_failing.set(service.export.status().failing_since is not None)
        if snapshot is not None:
            self._show_keys(snapshot)

    def _show_keys(self, snapshot: Snapshot) -> None:
        gated = self._service.settings.rotation.check_public_jwks
        for name, ready in snapshot.keysets.items():
            tally = Tally(key.state for key in ready.keys)
            for state in KeyState:
                self._gauges.keys.labels(name, state.value).set(tally[state])
            blocked = any(is_blocked(key, gated=gated) for key in spares(ready.keys))
            self._gauges.blocked.labels(name).set(blocked)
            self._show_standby(ready, gated=gated)

    def _show_standby(self, ready: ReadyKeyset, *, gated: bool) -> None:
        keyset, keys, now = ready.keyset, ready.keys, int(self._service.clock.now())
        self._gauges.failed_over.labels(keyset.name).set(is_failed_over(keyset, keys))
        active = active_key(keys)
        away = [key for key in spares(keys) if active is None or key.backend != active.backend]
        refused = self._service.troubles.all()
        ready_there = any(
            is_ready(keyset, key, now, gated=gated) and key.kid not in refused for key in away
        )
        self._gauges.standby_not_ready.labels(keyset.name).set(
            keyset.standby is not None and not ready_there
        )
