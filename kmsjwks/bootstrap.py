"""The composition root: the only place that knows which parts go together."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from multiprocessing.util import Finalize
from typing import Any

from kmsjwks.config import BackendSettings, Settings
from kmsjwks.domain.errors import (
    AuditUnavailable,
    ConfigurationError,
    InvalidRequest,
    StoreUnavailable,
)
from kmsjwks.domain.failover import Sight
from kmsjwks.domain.keys import Key
from kmsjwks.domain.ports import (
    AuditSink,
    BackendContext,
    BackendFactory,
    Clock,
    KeyBackend,
    KeyStore,
    ServerHooks,
)
from kmsjwks.domain.sampling import (
    ReleaseCheck,
    SamplingPlan,
    Surroundings,
    VerifySample,
    verify_all,
    verify_none,
)
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.publishing.files import DirectoryTarget
from kmsjwks.publishing.targets import checkpoint_target_for, target_for
from kmsjwks.services.audited import ActTrail, DeferringSink
from kmsjwks.services.auditedbackend import AuditedBackend
from kmsjwks.services.auditedstore import AuditedKeyStore
from kmsjwks.services.backendwatch import BackendWatch, WatchTiming
from kmsjwks.services.boundedbackend import BoundedBackend
from kmsjwks.services.checkpointing import Checkpointer, CheckpointPlan, CheckpointSigner
from kmsjwks.services.exporting import Exporter, ExportTiming, ScheduledExport
from kmsjwks.services.failover import FailoverOptions, FailoverService
from kmsjwks.services.failoverkeeper import FailoverKeeper
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.keymaking import KeyMaker
from kmsjwks.services.keysets import KeysetService
from kmsjwks.services.keytrouble import KeyTroubles
from kmsjwks.services.leases import LeaseKeeper
from kmsjwks.services.lifecycle import KeyService, KeyServiceOptions
from kmsjwks.services.migration import MigrationService
from kmsjwks.services.planning import Planner, PlannerOptions, Visible
from kmsjwks.services.publication import DocumentWarnings
from kmsjwks.services.signing import SigningService
from kmsjwks.services.snapshot import Refreshing, Snapshot, SnapshotKeeper, take_snapshot
from kmsjwks.storage.audit_chain import FileLimits, check_directory
from kmsjwks.storage.audit_checkpoints import CHECKPOINTS
from kmsjwks.storage.audit_file import FileAuditSink, SinkOptions
from kmsjwks.storage.audit_left import LeftChains
from kmsjwks.storage.audit_reader import AuditReader
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.lastgood import LastGoodDocuments
from kmsjwks.storage.migration import migrate

_log = logging.getLogger(__name__)
BACKEND_GROUP = "kmsjwks.backends"


class SystemClock:
    def now(self) -> float:
        return time.time()


@dataclass(frozen=True, slots=True)
class Service:
    """Everything wired together. Nothing in it has touched a device or started a thread yet."""

    settings: Settings
    timing: InstallationTiming
    store: KeyStore
    backends: Mapping[str, KeyBackend]
    snapshots: SnapshotKeeper
    keysets: KeysetService
    keys: KeyService
    migration: MigrationService
    failover: FailoverService
    watch: BackendWatch
    troubles: KeyTroubles
    clock: Clock
    planner: Planner
    signing: SigningService
    audit: AuditSink
    trail: AuditReader
    checkpoints: Checkpointer | None = None
    export: ScheduledExport | None = None

    def failover_keeper(self) -> FailoverKeeper:
        """For a serving process: it starts threads, of which this process needs one set."""
        return FailoverKeeper(self.failover, self.watch, self.snapshots, self.clock)

    def close(self) -> None:
        """Give up leases and close devices; a database that is down keeps nobody from leaving."""
        if self.export is not None:
            self.export.close()
        _close_audit(self.audit, self.checkpoints)
        with suppress(StoreUnavailable):
            self.snapshots.close()
        self.watch.close()
        for backend in self.backends.values():
            backend.close()


def prepare_database(settings: Settings) -> None:
    """Create it and migrate it where that is due. Serving processes do not: one that is started
    anew while the database is gone must not make an empty one.

    Raises:
        ConfigurationError, StoreUnavailable.
    """
    migrate(make_engine(settings.database.url))


def build(
    settings: Settings,
    environ: Mapping[str, str],
    hooks: ServerHooks | None = None,
    *,
    faults: FaultPoints | None = None,
    clock: Clock | None = None,
) -> Service:
    """Wire a service over a prepared database, which need not answer now.

    ``hooks`` are those of a serving process; without them every backend call is bounded by a
    thread of its own. ``faults`` and ``clock`` are for tests.

    Raises:
        ConfigurationError: a backend's options, or the database URL.
    """
    clock = clock or SystemClock()
    backends = open_backends(settings, environ, hooks)
    audit = audit_sink(settings, clock, hooks)
    trail = ActTrail(audit, clock)
    # A command line's calls are bounded anyway.
    bounded = {name: BoundedBackend(one) for name, one in backends.items()} if hooks else backends
    makers = {name: AuditedBackend(name, one, trail) for name, one in bounded.items()}
    store = AuditedKeyStore(SqlKeyStore(make_engine(settings.database.url, create=False)), trail)
    timing = timing_of(settings)
    plan = checkpoint_plan(settings, environ)
    faults = faults or FaultPoints()
    published = LastGoodDocuments(settings.state.directory / "documents.json")
    export = scheduled_export(settings, clock, environ)
    maker = KeyMaker(store, makers, clock, faults)
    migration = MigrationService(store, makers, clock, timing, faults)
    watched = settings.backend_watch
    watch = BackendWatch(backends, clock, WatchTiming(watched.interval, watched.patience))
    troubles = KeyTroubles(clock)
    release_check = release_check_of(settings)
    snapshots = SnapshotKeeper(
        take=lambda now: take_snapshot(
            store, backends, max_age=settings.jwks.max_age, now=now, release_check=release_check
        ),
        revision=store.revision,
        leases=LeaseKeeper(store, _process_name(), timing.grace),
        clock=clock,
        refreshing=Refreshing(
            settings.snapshot.refresh_interval,
            timing.grace,
            after=lambda snapshot: after(snapshot),  # noqa: PLW0108  # made below, from this
            last_good=published.load,
        ),
    )
    checkpoints = None
    if plan is not None:
        others = LeftChains(settings.audit.directory, clock)
        signer = CheckpointSigner(plan.keyset, snapshots, audit, clock, others)
        checkpoints = Checkpointer(signer, plan)
    after: Callable[[Snapshot], None] = _nothing
    if hooks:
        after = _after_refresh(published, DocumentWarnings(), export, checkpoints)
        Finalize(None, _close_audit, (audit, checkpoints), exitpriority=1)
    gate = _gate() if settings.rotation.check_public_jwks else None
    return Service(
        settings=settings,
        timing=timing,
        store=store,
        backends=backends,
        snapshots=snapshots,
        keysets=KeysetService(store, makers, maker, clock, migration),
        keys=KeyService(
            store,
            makers,
            maker,
            clock,
            KeyServiceOptions(
                timing,
                gated=gate is not None,
                approvals=settings.approvals,
                sight=lambda: Sight(watch.health(), troubles.all()),
            ),
        ),
        migration=migration,
        failover=FailoverService(
            store, makers, clock, FailoverOptions(timing, gate is not None, faults, troubles)
        ),
        watch=watch,
        troubles=troubles,
        planner=Planner(
            store, makers, maker, clock, PlannerOptions(timing, gate, faults, snapshots.held)
        ),
        signing=SigningService(snapshots, audit, clock, new_jti, troubles),
        clock=clock,
        audit=audit,
        trail=AuditReader(settings.audit.directory),
        checkpoints=checkpoints,
        export=export,
    )


def audit_sink(settings: Settings, clock: Clock, hooks: ServerHooks | None) -> DeferringSink:
    """
    Raises:
        ConfigurationError: others may write to the directory.
    """
    audit = settings.audit
    check_directory(audit.directory)
    options = SinkOptions(
        FileLimits(audit.max_file_bytes, audit.max_file_age),
        disk=audit.durability == "disk",
        timeout=audit.write_timeout,
    )
    on_stall = hooks.on_audit_stall if hooks else None
    return DeferringSink(FileAuditSink(audit.directory, options, clock, on_stall))


def checkpoint_plan(
    settings: Settings, environ: Mapping[str, str] = os.environ
) -> CheckpointPlan | None:
    """None where no checkpoints are wanted.

    Raises:
        ConfigurationError: a target is none.
    """
    audit = settings.audit
    targets, problems = [], []
    for uri in audit.checkpoint_targets:
        try:
            targets.append(
                checkpoint_target_for(
                    uri,
                    endpoint=settings.publication.s3_endpoint,
                    base=settings.base_directory,
                    environ=environ,
                )
            )
        except InvalidRequest as error:
            problems.append(f"audit.checkpoint_targets: {error}")
    if problems:
        raise ConfigurationError(problems)
    if audit.checkpoint_keyset is None:
        return None
    kept = DirectoryTarget(audit.directory / CHECKPOINTS)
    return CheckpointPlan(audit.checkpoint_keyset, audit.checkpoint_interval, kept, tuple(targets))


def _close_audit(sink: AuditSink, checkpoints: Checkpointer | None) -> None:
    if checkpoints is not None:
        checkpoints.close()
    try:
        sink.close()
    except AuditUnavailable as error:
        _log.error("The audit chain was left open: %s", error)


def _after_refresh(
    published: LastGoodDocuments,
    warnings: DocumentWarnings,
    export: ScheduledExport | None,
    checkpoints: Checkpointer | None,
) -> Callable[[Snapshot], None]:
    def after(snapshot: Snapshot) -> None:
        if checkpoints is not None:
            checkpoints.start()
        if not snapshot.documents:
            return  # nothing is published, which is no reason to forget what was
        published.save(snapshot.documents, revision=snapshot.revision, taken_at=snapshot.taken_at)
        warnings.after_refresh(snapshot.documents)
        if export is not None:
            export.after_refresh(snapshot.documents)

    return after


def _nothing(_: Snapshot) -> None:
    """A command line publishes nothing."""


def scheduled_export(
    settings: Settings, clock: Clock, environ: Mapping[str, str] = os.environ
) -> ScheduledExport | None:
    """Every worker publishes; each compares first, so that only one writes.

    Raises:
        ConfigurationError: a target is none.
    """
    targets, problems = [], []
    for uri in settings.publication.targets:
        try:
            targets.append(
                target_for(
                    uri,
                    endpoint=settings.publication.s3_endpoint,
                    base=settings.base_directory,
                    environ=environ,
                )
            )
        except InvalidRequest as error:
            problems.append(f"publication.targets: {error}")
    if problems:
        raise ConfigurationError(problems)
    if not targets:
        return None
    fresh_for = max(ExportTiming().fresh_for, 3 * settings.snapshot.refresh_interval)
    exporter = Exporter(targets, settings.jwks.is_public)
    return ScheduledExport(exporter, clock, ExportTiming(fresh_for=fresh_for))


def timing_of(settings: Settings) -> InstallationTiming:
    return InstallationTiming(
        max_age=settings.jwks.max_age,
        refresh_interval=math.ceil(settings.snapshot.refresh_interval),
        grace=settings.rotation.grace,
        skew=settings.rotation.skew,
        development=settings.rotation.development,
    )


def release_check_of(settings: Settings) -> ReleaseCheck:
    """Which new signatures are verified, as ``signing.verification`` says."""
    if settings.signing.verification == "sampled":
        around = Surroundings(secrets.SystemRandom().random, time.monotonic, _warn_of_released)
        return VerifySample(SamplingPlan(), around)
    return verify_none if settings.signing.verification == "off" else verify_all


def _warn_of_released(key: Key, unverified: int) -> None:
    _log.error(
        "A signature of key %s of keyset %s did not verify. This process released %d tokens of "
        "that key unverified since the last that did; the audit trail names them. All are "
        "verified now; check the device %s.",
        key.kid,
        key.keyset,
        unverified,
        key.backend,
    )


def _process_name() -> str:
    """Unique, for leases. Each worker builds its own service, so the process is the right one."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def new_jti() -> str:
    """128 random bits, base64url."""
    return secrets.token_urlsafe(16)


def open_backends(
    settings: Settings, environ: Mapping[str, str], hooks: ServerHooks | None
) -> dict[str, KeyBackend]:
    """
    Raises:
        ConfigurationError: every backend's mistakes at once.
    """
    openers = backend_openers(settings, environ)
    return {name: opener(hooks) for name, opener in openers.items()}


def backend_openers(
    settings: Settings, environ: Mapping[str, str]
) -> dict[str, Callable[[ServerHooks | None], KeyBackend]]:
    """Validate the options of every backend; open none.

    Raises:
        ConfigurationError: every backend's mistakes at once.
    """
    factories = _factories()
    context = BackendContext(
        base=settings.base_directory, state=settings.state.directory, environ=dict(environ)
    )
    openers: dict[str, Callable[[ServerHooks | None], KeyBackend]] = {}
    problems: list[str] = []
    for name, backend in settings.backends.items():
        try:
            factory = _factory(factories, backend)
            openers[name] = partial(factory.open, _parse(factory, backend, context))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return openers


def _parse(factory: BackendFactory, backend: BackendSettings, context: BackendContext) -> Any:
    return factory.parse(backend.name, backend.options, context)


def _factories() -> dict[str, Callable[[], BackendFactory]]:
    """One factory a type and process, made when first asked for."""
    made: dict[str, BackendFactory] = {}

    def make(name: str, load: Callable[[], Callable[[], BackendFactory]]) -> BackendFactory:
        if name not in made:
            made[name] = load()()
        return made[name]

    return {
        point.name: partial(make, point.name, point.load)
        for point in entry_points(group=BACKEND_GROUP)
    }


def _factory(
    factories: Mapping[str, Callable[[], BackendFactory]], backend: BackendSettings
) -> BackendFactory:
    if backend.type not in factories:
        raise ConfigurationError(
            [
                f"backends.{backend.name}.type: there is no backend type {backend.type!r}; "
                f"installed: {', '.join(sorted(factories)) or 'none'}"
            ]
        )
    return factories[backend.type]()


def _gate() -> Visible:
    from kmsjwks.publishing.visibility import PublicJwks  # noqa: PLC0415  # 4 MB with urllib3, for those who use it

    return PublicJwks()
