"""Creating keysets and changing their rules and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kmsjwks.domain import interventions
from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import (
    Conflict,
    InvalidRequest,
)
from kmsjwks.domain.keys import Keyset, Standby, check_keyset_name
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import RotationSchedule, check_schedule
from kmsjwks.domain.tokenrules import TokenRules, check_rules, fingerprint
from kmsjwks.services.acting import Actor, find_keyset, planner_turn
from kmsjwks.services.issuers import check_issuer
from kmsjwks.services.keymaking import KeyMaker, MadeKey
from kmsjwks.services.migration import MigrationService, check_standby
from kmsjwks.services.publication import issuer_path


@dataclass(frozen=True, slots=True)
class KeysetSpec:
    """What a keyset is made from."""

    name: str
    algorithm: Algorithm
    backend: str
    rules: TokenRules
    schedule: RotationSchedule
    standby: Standby | None = None


class KeysetService:
    """Creating keysets and changing their rules."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        maker: KeyMaker,
        clock: Clock,
        migration: MigrationService,
    ) -> None:
        self._store, self._backends, self._maker = store, backends, maker
        self._clock, self._timing, self._migration = clock, migration.timing, migration

    def create(self, spec: KeysetSpec, actor: Actor) -> Keyset:
        """A keyset with one active key (no verifier waits for a first key) and a published spare;
        that in the standby is made by the next tick.

        Raises:
            InvalidRequest: the name, the rules, the schedule or the backend's name.
            Conflict: the keyset exists, or its issuer cannot be shared.
            BackendError, StoreUnavailable.
        """
        keyset = self._checked(spec)
        if actor.dry_run:
            return self._unused(keyset)
        with planner_turn(self._store):
            self._unused(keyset)
            first = self._maker.make(keyset)
            spare = self._maker.make(keyset, not_these=frozenset({first.request_id}))
            self._add(keyset, first, spare, actor)
        return keyset

    def ensure(self, spec: KeysetSpec, actor: Actor) -> Keyset:
        """Create it, or bring an existing one's rules, schedule and standby in line.

        Raises:
            Conflict: it exists with another algorithm or backend.
        """
        found = next((one for one in self._store.keysets() if one.name == spec.name), None)
        if found is None:
            return self.create(spec, actor)
        if (found.algorithm, found.backend) != (spec.algorithm, spec.backend):
            raise Conflict(
                f"The keyset {spec.name} exists with {found.algorithm.id} in the backend "
                f"{found.backend}. The algorithm cannot be changed; to move the keyset to another "
                "backend, use 'keysets migrate'."
            )
        updated = self.update(spec.name, spec.rules, spec.schedule, actor)
        if spec.standby != found.standby:
            self._migration.stand_by(spec.name, spec.standby, actor)
        return replace(updated, standby=spec.standby)

    def update(
        self, name: str, rules: TokenRules, schedule: RotationSchedule, actor: Actor
    ) -> Keyset:
        """New rules and schedule, for tokens and rotations from now on; what was issued under the
        old ones keeps its end.

        Raises:
            KeysetNotFound, InvalidRequest, Conflict.
        """
        with planner_turn(self._store):
            found = find_keyset(self._store, name)
            wanted = replace(found, rules=rules, schedule=schedule)
            self._check(wanted)
            if issuer_path(wanted.rules.issuer) != issuer_path(found.rules.issuer):
                raise Conflict(
                    f"Tokens of {name} are verified with the JWKS of {found.rules.issuer}; an "
                    "issuer with another path would withdraw it. Make a new keyset for it."
                )
            moved = self._moved_along(found, wanted)
            stay = {one.name for one, _ in moved} | {name}
            check_issuer(wanted, [one for one in self._store.keysets() if one.name not in stay])
            differs = wanted != found or fingerprint(rules) != fingerprint(found.rules)
            if differs and not actor.dry_run:
                self._update(found, wanted, actor)
                for before, after in moved:
                    self._update(before, after, actor)
        return wanted

    def _moved_along(self, found: Keyset, wanted: Keyset) -> list[tuple[Keyset, Keyset]]:
        """An issuer that moves to another host or port takes all its keysets along: they share
        its JWKS and metadata."""
        old, new = found.rules.issuer, wanted.rules.issuer
        if old == new:
            return []
        return [
            (one, replace(one, rules=replace(one.rules, issuer=new)))
            for one in self._store.keysets()
            if one.rules.issuer == old and one.name != found.name
        ]

    def _update(self, found: Keyset, wanted: Keyset, actor: Actor) -> None:
        now = int(self._clock.now())
        changes = [
            Change(key, after)
            for key in self._store.keys(found.name)
            if (after := interventions.updated(key, found, wanted, self._timing, now)) != key
        ]
        event = LifecycleEvent(
            now, actor.name, found.name, None, "keyset-updated", request_id=actor.request_id
        )
        self._store.update_keyset(found, wanted, changes, event)

    def _checked(self, spec: KeysetSpec) -> Keyset:
        check_keyset_name(spec.name)
        if spec.backend not in self._backends:
            raise InvalidRequest(
                f"There is no backend {spec.backend!r}. Configured: "
                f"{', '.join(sorted(self._backends))}."
            )
        now = int(self._clock.now())
        keyset = Keyset(
            spec.name,
            spec.algorithm,
            spec.backend,
            spec.rules,
            now,
            spec.schedule,
            spec.standby,
        )
        self._check(keyset)
        check_standby(self._backends, spec.standby, keyset)
        return keyset

    def _check(self, keyset: Keyset) -> None:
        check_rules(keyset.rules)
        check_schedule(keyset.schedule, self._timing, keyset.rules.max_lifetime)

    def _unused(self, keyset: Keyset) -> Keyset:
        existing = self._store.keysets()
        if any(one.name == keyset.name for one in existing):
            raise Conflict(f"The keyset {keyset.name} exists already.")
        check_issuer(keyset, existing)
        return keyset

    def _add(self, keyset: Keyset, first: MadeKey, spare: MadeKey, actor: Actor) -> None:
        active, now = first.active(), int(self._clock.now())
        event = LifecycleEvent(
            now,
            actor.name,
            keyset.name,
            active.kid,
            "keyset-created",
            request_id=actor.request_id,
        )
        self._maker.faults.reach("keyset-created.before")
        self._store.add_keyset(
            keyset,
            active,
            request_id=first.request_id,
            event=event,
            spare=(spare.key, spare.request_id),
        )
        self._maker.faults.reach("keyset-created.recorded")
