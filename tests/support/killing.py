"""Operations of the lifecycle in forked processes that are killed at a fault point.

Everything here runs in a fresh process of its own (``run_apart``), which has no threads and no
PKCS#11 module loaded, so that it can fork children that do.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmsjwks import bootstrap
from kmsjwks.config import Settings, load
from kmsjwks.domain import rotation
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.approvals import ApprovalState
from kmsjwks.domain.keys import Key, KeyState
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.acting import Actor, Proposal
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.keysets import KeysetSpec
from kmsjwks.services.signing import Caller, SignRequest

T0, DAY = 1_900_000_000, 86400
NAME = "demo"
ES256 = find_algorithm("ES256")
OPERATOR = Actor("olga")
CALLER = Caller(
    Principal("alice", (Grant(frozenset({Action.SIGN, Action.VERIFY}), ("*",)),)), "request"
)


@dataclass(frozen=True)
class Place:
    """Where processes meet: a configuration file (for the token) and a database."""

    config: Path
    database: str
    approvals: bool = False


@dataclass
class SetClock:
    seconds: float

    def now(self) -> float:
        return self.seconds


class Process:
    """A service as one process has it, with a clock that stands at ``day``."""

    def __init__(self, place: Place, day: int = 0, at: Callable[[str], None] | None = None) -> None:
        self.clock = SetClock(T0 + day * DAY)
        self.service = bootstrap.build(
            _settings(place), {}, faults=FaultPoints(at), clock=self.clock
        )

    @property
    def backend(self) -> Any:
        return self.service.backends["token"]

    def create(self) -> None:
        spec = KeysetSpec(
            NAME,
            ES256,
            "token",
            TokenRules(issuer="https://issuer.example"),
            replace(RotationSchedule(), destroy_after=DAY),
        )
        self.service.keysets.create(spec, OPERATOR)

    def kid(self, state: KeyState) -> str:
        return next(key.kid for key in self.service.store.keys(NAME) if key.state is state)

    def tick(self, day: int | None = None) -> None:
        """Until it was our turn."""
        if day is not None:
            self.clock.seconds = T0 + day * DAY
        deadline = time.monotonic() + 15
        while (report := self.service.planner.tick()).elsewhere:
            assert time.monotonic() < deadline, "the planner's lock is not freed"
            time.sleep(0.01)
        assert report.failed == {}

    def sign(self) -> str:
        """The kid that signed; the signature was verified."""
        signed = self.service.signing.sign_jwt(CALLER, NAME, SignRequest({"sub": "alice"}))
        assert self.service.signing.verify(CALLER, NAME, signed.token).valid
        return signed.kid

    def refs(self) -> set[str]:
        return {key.ref for key in self.backend.list_keys()}

    def assert_sound(self, others: set[str]) -> None:
        """``others`` are the references of keys in the token that are none of this database."""
        keys = self.service.store.keys(NAME)
        assert [key.state for key in keys].count(KeyState.ACTIVE) == 1
        assert len(rotation.spares(keys)) == 1
        kept = {key.ref for key in keys if key.state is not KeyState.DESTROYED}
        assert self.refs() - others == kept
        assert list(self.service.store.open_intents()) == []


def _make_database(place: Place) -> None:
    bootstrap.prepare_database(_settings(place))


def _settings(place: Place) -> Settings:
    acts = ("destroy", "undo-compromise") if place.approvals else ()
    overrides = {"database.url": place.database, "approvals.required_for": acts}
    return load(place.config, environ={}, overrides=overrides)


def _nothing(_: Process) -> None:
    pass


def _without_spare(process: Process) -> None:
    process.create()
    process.service.keys.hold(process.kid(KeyState.PRE_ACTIVATION), OPERATOR)


def _leftover(process: Process) -> None:
    process.create()
    process.service.store.begin_creation("gone", "never", "token", ES256, T0)


def _in_destruction(process: Process) -> None:
    _rotate(process)
    process.tick(5)


def _rotate(process: Process) -> None:
    if not process.service.store.keysets():
        process.create()
    process.service.keys.rotate(NAME, OPERATOR)
    process.tick(2)


def _compromise(process: Process) -> None:
    process.service.keys.compromise(process.kid(KeyState.ACTIVE), OPERATOR)
    process.tick()


def _destroy_spare(process: Process) -> None:
    process.service.keys.destroy(process.kid(KeyState.PRE_ACTIVATION), OPERATOR)
    process.tick()


def _wrongly_compromised(process: Process) -> None:
    process.create()
    _compromise(process)


def _first_spare(process: Process) -> Key:
    """The one to destroy, if it was decided already."""
    found = process.service.store.keys(NAME)
    waiting = [key for key in found if key.state is KeyState.PRE_ACTIVATION]
    return min(waiting, key=lambda key: key.times.destroy_at is None)


def _destroy_by_two(process: Process) -> None:
    kid = _first_spare(process).kid
    _by_two(process, lambda: process.service.keys.destroy(kid, OPERATOR))


def _destroyed_by_two(process: Process) -> None:
    """What the kill left is gone on with, and is done once."""
    _destroy_by_two(process)
    assert _first_spare(process).times.destroy_at is not None
    _assert_told(process, "destroy-approved", "destruction-begun")


def _undo_by_two(process: Process) -> None:
    found = process.service.store.keys(NAME)
    wrong = next((key.kid for key in found if key.state is KeyState.COMPROMISED), None)
    if wrong is not None:
        _by_two(process, lambda: process.service.keys.undo_compromise(wrong, OPERATOR))


def _undone_by_two(process: Process) -> None:
    _undo_by_two(process)
    assert process.kid(KeyState.DEACTIVATED)
    _assert_told(process, "undo-compromise-approved", "compromise-undone")


def _assert_told(process: Process, *events: str) -> None:
    told = [event.event for event in process.service.store.events(NAME)]
    assert [told.count(event) for event in events] == [1] * len(events), told
    assert [one.state for one in process.service.store.approvals()] == [ApprovalState.APPROVED]


def _by_two(process: Process, act: Callable[[], Proposal]) -> None:
    approval = act().approval
    if approval is not None:
        process.service.keys.approve(approval.id, Actor("paul"))
    process.tick()


@dataclass(frozen=True)
class Operation:
    """``day``: when others go on after a kill. ``approvals``: destroying and undoing takes two.
    ``after``: what those who go on do first."""

    prepare: Callable[[Process], None]
    act: Callable[[Process], None]
    day: int = 0
    approvals: bool = False
    after: Callable[[Process], None] = _nothing


OPERATIONS = {
    "create": Operation(_nothing, Process.create),
    "spare": Operation(_without_spare, Process.tick),
    "reconcile": Operation(_leftover, Process.tick),
    "rotate": Operation(Process.create, _rotate, 2),
    "compromise": Operation(Process.create, _compromise),
    "destroy": Operation(Process.create, _destroy_spare),
    "destroy by two": Operation(
        Process.create, _destroy_by_two, approvals=True, after=_destroyed_by_two
    ),
    "undo by two": Operation(
        _wrongly_compromised, _undo_by_two, approvals=True, after=_undone_by_two
    ),
    "destruction": Operation(_in_destruction, lambda process: process.tick(20), 20),
}


def kill_at_every_point(name: str, config: Path, databases: list[str]) -> None:
    """One case a database, the first of them to find the points; there must be enough."""
    operation = OPERATIONS[name]
    places = [Place(config, url, operation.approvals) for url in databases]
    points = in_child(lambda: _points(places[0], operation))
    print(f"{name}: {', '.join(points)}")
    assert points
    assert len(points) < len(places)
    for number, point in enumerate(points):
        _case(places[number + 1], operation, point, points[:number].count(point))


def _points(place: Place, operation: Operation) -> list[str]:
    reached: list[str] = []
    _make_database(place)
    process = Process(place, at=reached.append)
    operation.prepare(process)
    reached.clear()
    operation.act(process)
    return reached


def _case(place: Place, operation: Operation, point: str, passes: int) -> None:
    """Killed at ``point`` after passing it ``passes`` times."""
    others = set(in_child(lambda: _prepared(place, operation)))
    code = exit_code(lambda: _act_and_die(place, operation, point, passes))
    assert code == -signal.SIGKILL, f"{point} was not reached: exit {code}"
    in_child(lambda: _go_on(place, operation, others))


def _prepared(place: Place, operation: Operation) -> list[str]:
    _make_database(place)
    process = Process(place)
    others = process.refs()
    operation.prepare(process)
    return sorted(others)


def _act_and_die(place: Place, operation: Operation, point: str, passes: int) -> None:
    left = [passes]

    def at(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    operation.act(Process(place, at=at))


def _go_on(place: Place, operation: Operation, others: set[str]) -> None:
    """Tokens are signed before anybody has ticked, and afterwards with the same key."""
    process = Process(place, operation.day)
    operation.after(process)
    exists = bool(process.service.store.keysets())
    signed = process.sign() if exists else None
    process.tick()
    if not exists:  # nobody asked again: what was made is disposed of
        assert process.refs() == others
        process.create()
    process.assert_sound(others)
    process.service.snapshots.refresh()
    assert process.sign() == (signed or process.kid(KeyState.ACTIVE))
    process.tick()
    process.assert_sound(others)


def tick_at_once(config: Path, database: str) -> None:
    """Ten processes on a keyset that lacks a spare."""
    place = Place(config, database)
    before = in_child(lambda: _lacking(place))
    gate, hold = os.pipe()
    children = [_fork(lambda: _wait_and_tick(place, gate, hold)) for _ in range(10)]
    os.close(gate)
    os.close(hold)  # when the last writer is gone, all read the end
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 10
    in_child(lambda: _one_more(place, before))


def _lacking(place: Place) -> int:
    _make_database(place)
    process = Process(place)
    _without_spare(process)
    return len(process.service.store.keys(NAME))


def _wait_and_tick(place: Place, gate: int, hold: int) -> None:
    process = Process(place)
    process.backend.check()  # logged in, so that all come at once
    os.close(hold)
    os.read(gate, 1)
    for _ in range(5):
        assert process.service.planner.tick().failed == {}


def _one_more(place: Place, before: int) -> None:
    process = Process(place)
    process.tick()
    assert len(process.service.store.keys(NAME)) == before + 1
    process.assert_sound(set())


def in_child(function: Callable[[], Any]) -> Any:
    """What ``function`` returns (JSON) in a forked process."""
    reader, writer = os.pipe()

    def run() -> None:
        os.close(reader)
        result = json.dumps(function()).encode()
        os.write(writer, result)

    pid = _fork(run)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        result = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"exit {code}; see stderr"
    return json.loads(result)


def exit_code(function: Callable[[], None]) -> int:
    """Of a forked process; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(function), 0)[1])


def _fork(function: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
