"""The services of the lifecycle over a `FakeBackend`, SQLite, and a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kmsjwks.domain import rotation
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.approvals import ApprovalPolicy
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.timing import InstallationTiming, RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.acting import Actor
from kmsjwks.services.failover import FailoverOptions, FailoverService
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.keymaking import KeyMaker
from kmsjwks.services.keysets import KeysetService, KeysetSpec
from kmsjwks.services.lifecycle import KeyService, KeyServiceOptions
from kmsjwks.services.migration import MigrationService
from kmsjwks.services.planning import Planner, PlannerOptions, TickReport, Visible
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import migrate
from tests.fakes import FakeBackend

T0 = 1_900_000_000
DAY = 86400
OPERATOR = Actor("olga")
TRYING = Actor("olga", dry_run=True)


@dataclass
class SetClock:
    seconds: float = T0

    def now(self) -> float:
        return self.seconds


class Crash(BaseException):
    """What a fault point raises in the place of a kill."""


@dataclass
class Crashes:
    """Crash at the fault point ``wanted``; ``reached`` lists those that were passed."""

    wanted: str | None = None
    reached: list[str] = field(default_factory=list)

    def __call__(self, point: str) -> None:
        self.reached.append(point)
        if point == self.wanted:
            self.wanted = None
            raise Crash(point)


class Lab:
    """One keyset's installation; everything is public for tests to look at."""

    def __init__(
        self,
        directory: Path,
        visible: Visible | None = None,
        timing: InstallationTiming | None = None,
        approvals: ApprovalPolicy | None = None,
    ) -> None:
        engine = make_engine(f"sqlite:///{directory / 'lab.db'}")
        migrate(engine)
        self.clock, self.crashes = SetClock(), Crashes()
        self.timing = timing or InstallationTiming()
        self.backend = FakeBackend(
            clock=lambda: datetime.fromtimestamp(self.clock.seconds, UTC),
        )
        self.other = FakeBackend(
            clock=lambda: datetime.fromtimestamp(self.clock.seconds, UTC),
            deletion_window=timedelta(days=7),
        )
        backends = {"fake": self.backend, "other": self.other}
        faults = FaultPoints(self.crashes)
        self.store = SqlKeyStore(engine)
        self.maker = KeyMaker(self.store, backends, self.clock, faults)
        gated = visible is not None
        self.migration = MigrationService(self.store, backends, self.clock, self.timing, faults)
        self.keysets = KeysetService(self.store, backends, self.maker, self.clock, self.migration)
        self.service = KeyService(
            self.store,
            backends,
            self.maker,
            self.clock,
            KeyServiceOptions(self.timing, gated, approvals or ApprovalPolicy()),
        )
        self.failover = FailoverService(
            self.store, backends, self.clock, FailoverOptions(self.timing, gated, faults)
        )
        options = PlannerOptions(self.timing, visible, faults)
        self.planner = Planner(self.store, backends, self.maker, self.clock, options)

    def create(self, name: str = "demo", **schedule: int | None) -> Keyset:
        return self.keysets.create(spec(name, **schedule), OPERATOR)

    def tick(self, after: int = 0) -> TickReport:
        """``after`` seconds."""
        self.clock.seconds += after
        report = self.planner.tick()
        assert not report.elsewhere
        return report

    @property
    def now(self) -> int:
        return int(self.clock.seconds)

    def keys(self, name: str = "demo") -> list[Key]:
        return list(self.store.keys(name))

    def key(self, kid: str) -> Key:
        return next(key for key in list(self.store.keys()) if key.kid == kid)

    @property
    def active(self) -> Key:
        found = [key for key in self.keys() if key.state is KeyState.ACTIVE]
        assert len(found) == 1
        return found[0]

    @property
    def spare(self) -> Key:
        found = rotation.spares(self.keys())
        assert len(found) == 1
        return found[0]

    def events(self, name: str = "demo") -> list[str]:
        """Oldest first."""
        return [event.event for event in reversed(self.store.events(name))]

    def assert_sound(self, name: str = "demo") -> None:
        """One active key and a spare, and the backend has what the store knows, no more."""
        keys = self.keys(name)
        assert sum(key.state is KeyState.ACTIVE for key in keys) == 1
        assert len(rotation.spares(keys)) == 1
        self.assert_no_orphan()

    def assert_no_orphan(self) -> None:
        kept = {key.ref for key in list(self.store.keys()) if key.state is not KeyState.DESTROYED}
        assert {key.ref for key in self.backend.list_keys()} == kept
        assert list(self.store.open_intents()) == []


def spec(name: str = "demo", **schedule: int | None) -> KeysetSpec:
    settings: dict[str, int | None] = {"period": 7 * DAY, "destroy_after": DAY, **schedule}
    return KeysetSpec(
        name,
        find_algorithm("ES256"),
        "fake",
        TokenRules(issuer="https://issuer.example"),
        replace(RotationSchedule(), **settings),  # type: ignore[arg-type]
    )


def crash_at(lab: Lab, point: str, act: Callable[[], object]) -> None:
    """Run ``act`` until it reaches ``point``, which it must."""
    lab.crashes.wanted = point
    try:
        act()
    except Crash:
        return
    raise AssertionError(f"{point} was not reached; only {lab.crashes.reached} were")
