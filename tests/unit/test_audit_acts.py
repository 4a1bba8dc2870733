"""Acts in the audit trail: nothing changes without an intent, and every change has its outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kmsjwks.domain.approvals import ApprovalPolicy, ProtectedAct
from kmsjwks.domain.audit import AuditRecord, ChainHead
from kmsjwks.domain.errors import (
    ApprovalRefused,
    AuditUnavailable,
    BackendUnavailable,
    StoreUnavailable,
)
from kmsjwks.domain.keys import KeyState
from kmsjwks.domain.ports import KeyBackend, KeyStore
from kmsjwks.services.acting import Actor
from kmsjwks.services.audited import Act, ActTrail, DeferringSink
from kmsjwks.services.auditedbackend import AuditedBackend
from kmsjwks.services.auditedstore import AuditedKeyStore
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.keymaking import KeyMaker
from kmsjwks.services.keysets import KeysetService
from kmsjwks.services.lifecycle import KeyService, KeyServiceOptions
from kmsjwks.services.migration import MigrationService
from kmsjwks.services.planning import Planner, PlannerOptions
from tests.support.lifecycle import DAY, Lab, spec
from tests.unit.test_audit import RECORD

OLGA = Actor("olga", request_id="r-7")


@dataclass
class Sink:
    """In memory; refuses record number ``fails_at`` and all after it until that is None."""

    records: list[dict[str, Any]] = field(default_factory=list)
    fails_at: int | None = None
    closed: bool = False

    def record(self, record: AuditRecord) -> None:
        if self.fails_at is not None and len(self.records) >= self.fails_at:
            raise AuditUnavailable("full")
        self.records.append(record.as_event())

    def record_all(self, records: Sequence[AuditRecord]) -> None:
        for record in records:
            self.record(record)

    def head(self) -> ChainHead | None:
        return None

    def close(self) -> None:
        self.closed = True

    def said(self) -> list[tuple[str, str]]:
        return [(one["event"], one["phase"]) for one in self.records]


class AuditedLab(Lab):
    """The same services over audited parts."""

    def __init__(self, directory: Path, approvals: ApprovalPolicy = ApprovalPolicy()) -> None:  # noqa: B008
        super().__init__(directory)
        self.sink = Sink()
        self.deferring = DeferringSink(self.sink)
        trail = ActTrail(self.deferring, self.clock)
        faults = FaultPoints(self.crashes)
        store: KeyStore = AuditedKeyStore(self.store, trail)
        backends: dict[str, KeyBackend] = {"fake": AuditedBackend("fake", self.backend, trail)}
        self.maker = KeyMaker(store, backends, self.clock, faults)
        self.migration = MigrationService(store, backends, self.clock, self.timing, faults)
        self.keysets = KeysetService(store, backends, self.maker, self.clock, self.migration)
        self.service = KeyService(
            store,
            backends,
            self.maker,
            self.clock,
            KeyServiceOptions(self.timing, gated=False, approvals=approvals),
        )
        options = PlannerOptions(self.timing, None, faults)
        self.planner = Planner(store, backends, self.maker, self.clock, options)


@pytest.fixture
def lab(tmp_path: Path) -> AuditedLab:
    return AuditedLab(tmp_path)


def test_creating_a_keyset(lab: AuditedLab) -> None:
    lab.keysets.create(spec(), OLGA)
    assert lab.sink.said() == [
        ("backend.create-key", "intent"),
        ("backend.create-key", "outcome"),
        ("backend.create-key", "intent"),
        ("backend.create-key", "outcome"),
        ("lifecycle.keyset-created", "intent"),
        ("lifecycle.keyset-created", "outcome"),
    ]
    intent, outcome = lab.sink.records[-2:]
    assert intent | {"phase": "outcome"} == outcome
    assert (intent["principal"], intent["keyset"], intent["kid"], intent["request_id"]) == (
        "olga", "demo", lab.active.kid, "r-7",
    )  # fmt: skip
    assert f"spare {lab.spare.kid}" in intent["detail"]
    assert [one["ref"] for one in lab.sink.records if "ref" in one] == [
        lab.active.ref, lab.spare.ref,
    ]  # fmt: skip


def test_a_key_from_compromise_to_destruction(lab: AuditedLab) -> None:
    lab.keysets.create(spec(), OLGA)
    gone, spare = lab.active, lab.spare
    lab.sink.records.clear()
    lab.service.compromise(gone.kid, OLGA)
    lab.tick()
    intents = [one for one in lab.sink.records if one["phase"] == "intent"]
    assert intents[0]["event"] == "lifecycle.compromised"
    assert f"{spare.kid}: pre-activation to active" in intents[0]["detail"]
    destroyed = next(one for one in intents if one["event"] == "backend.destroy-key")
    assert (destroyed["backend"], destroyed["ref"]) == ("fake", gone.ref)
    assert lab.sink.said().index(("backend.destroy-key", "outcome")) < lab.sink.said().index(
        ("lifecycle.destroyed", "intent")
    )
    acts = [one["act"] for one in lab.sink.records]
    assert all(acts.count(act) == 2 for act in acts)


def test_no_intent_no_change(lab: AuditedLab) -> None:
    lab.keysets.create(spec(), OLGA)
    active, spare = lab.active, lab.spare
    lab.sink.fails_at = 0
    acts: list[Callable[[], object]] = [
        lambda: lab.keysets.create(spec("other"), OLGA),
        lambda: lab.keysets.update("demo", spec().rules, spec(period=9 * DAY).schedule, OLGA),
        lambda: lab.service.compromise(active.kid, OLGA),
        lambda: lab.service.hold(active.kid, OLGA),
        lambda: lab.service.destroy(spare.kid, OLGA),
        lambda: lab.tick(30 * DAY),
    ]
    revision, refs = lab.store.revision(), {key.ref for key in lab.backend.list_keys()}
    for act in acts:
        with pytest.raises(AuditUnavailable):
            act()
    assert lab.store.revision() == revision
    assert {key.ref for key in lab.backend.list_keys()} == refs
    lab.sink.fails_at = None
    lab.tick()
    lab.assert_sound()


def test_no_intent_no_destruction_in_the_backend(lab: AuditedLab) -> None:
    lab.keysets.create(spec(), OLGA)
    gone = lab.active
    lab.service.compromise(gone.kid, OLGA)
    lab.sink.fails_at = len(lab.sink.records)
    with pytest.raises(AuditUnavailable):
        lab.tick()
    assert lab.backend.get_key(gone.ref)
    lab.sink.fails_at = None
    lab.tick()
    assert lab.key(gone.kid).state is KeyState.DESTROYED


def test_an_outcome_that_cannot_be_written_comes_first_later(
    lab: AuditedLab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.keysets.create(spec(), OLGA)
    lab.sink.fails_at = len(lab.sink.records) + 1
    with caplog.at_level(logging.ERROR):
        lab.service.hold(lab.active.kid, OLGA)
    assert lab.active.hold
    assert "outcome cannot be recorded" in caplog.text
    with pytest.raises(AuditUnavailable):
        lab.deferring.record(RECORD)
    lab.sink.fails_at = None
    lab.deferring.record(RECORD)
    assert [one["event"] for one in lab.sink.records[-3:]] == [
        "lifecycle.held", "lifecycle.held", "jwt.signed",
    ]  # fmt: skip
    assert lab.sink.records[-2]["phase"] == "outcome"
    lab.deferring.record(RECORD)
    assert lab.sink.records[-2]["event"] == "jwt.signed", "written once"


def test_what_was_kept_is_written_before_the_end(lab: AuditedLab) -> None:
    lab.sink.fails_at = 0
    lab.deferring.record_at_last(RECORD)
    with pytest.raises(AuditUnavailable):
        lab.deferring.close()
    lab.sink.fails_at = None
    lab.deferring.close()
    assert (len(lab.sink.records), lab.sink.closed) == (1, True)


@pytest.mark.parametrize(
    ("error", "phase", "code"),
    [
        (StoreUnavailable("gone"), "unknown", "store-unavailable"),
        (BackendUnavailable("gone"), "unknown", "backend-unavailable"),
        (ValueError("postgresql://user:secret@host/db"), "unknown", "internal"),
    ],
)
def test_what_stops_an_act_is_recorded_by_its_code(
    lab: AuditedLab, error: Exception, phase: str, code: str
) -> None:
    trail = ActTrail(lab.deferring, lab.clock)
    with pytest.raises(type(error)), trail.act(Act("lifecycle.held")):
        raise error
    last = lab.sink.records[-1]
    assert (last["phase"], last["error"]) == (phase, code)
    assert "secret" not in str(lab.sink.records)


def test_a_change_that_the_database_refuses_has_failed(lab: AuditedLab) -> None:
    lab.keysets.create(spec(), OLGA)
    store = AuditedKeyStore(lab.store, ActTrail(lab.deferring, lab.clock))
    event = lab.store.events("demo")[0]
    with pytest.raises(Exception, match=r"exists already|taken"):
        store.add_keyset(lab.store.keysets()[0], lab.active, event=event)
    assert (lab.sink.records[-1]["phase"], lab.sink.records[-1]["error"]) == ("failed", "conflict")


def test_a_dry_run_is_no_act(lab: AuditedLab) -> None:
    lab.keysets.create(spec(), OLGA)
    before = len(lab.sink.records)
    lab.service.compromise(lab.active.kid, Actor("olga", dry_run=True))
    assert len(lab.sink.records) == before


def test_both_persons_are_in_the_trail(tmp_path: Path) -> None:
    lab = AuditedLab(tmp_path, ApprovalPolicy(frozenset(ProtectedAct)))
    lab.keysets.create(spec(), OLGA)
    lab.sink.records.clear()
    asked = lab.service.destroy(lab.spare.kid, OLGA).approval
    assert asked is not None
    with pytest.raises(ApprovalRefused):
        lab.service.approve(asked.id, OLGA)
    assert lab.sink.said() == [
        ("lifecycle.destroy-proposed", "intent"),
        ("lifecycle.destroy-proposed", "outcome"),
    ]
    lab.service.approve(asked.id, Actor("paul", request_id="r-8"))
    assert lab.sink.said()[2:] == [
        ("lifecycle.destroy-approved", "intent"),
        ("lifecycle.destruction-begun", "intent"),
        ("lifecycle.destruction-begun", "outcome"),
        ("lifecycle.destroy-approved", "outcome"),
    ]
    proposed, *_, approved = lab.sink.records
    assert (proposed["principal"], proposed["kid"]) == ("olga", asked.kid)
    assert asked.id in proposed["detail"]
    assert asked.id in approved["detail"]
    for one in lab.sink.records[2:]:
        assert (one["principal"], one["request_id"]) == ("paul", "r-8")
        assert "proposed by olga, approved by paul" in one["detail"]


def test_no_approval_without_an_intent(tmp_path: Path) -> None:
    lab = AuditedLab(tmp_path, ApprovalPolicy(frozenset(ProtectedAct)))
    lab.keysets.create(spec(), OLGA)
    spare = lab.spare
    asked = lab.service.destroy(spare.kid, OLGA).approval
    assert asked is not None
    for more in (0, 1):  # the second act's intent is needed, too
        lab.sink.fails_at = len(lab.sink.records) + more
        with pytest.raises(AuditUnavailable):
            lab.service.approve(asked.id, Actor("paul"))
        assert lab.key(spare.kid) == spare
        assert list(lab.store.approvals()) == [asked]
        lab.sink.fails_at = None
    lab.service.approve(asked.id, Actor("paul"))
    assert lab.key(spare.kid).times.destroy_at is not None
