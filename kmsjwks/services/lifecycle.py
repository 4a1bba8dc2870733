"""What an operator does to keys. Every act can be tried first: it yields a proposal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.approvals import ApprovalPolicy, ProtectedAct
from kmsjwks.domain.effects import effect_of_early_takeover, effects_of_compromise
from kmsjwks.domain.errors import BackendError, StoreUnavailable, TransitionRefused
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.failover import Sight, successor
from kmsjwks.domain.keys import Key, Keyset, KeyState, check_transition
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.acting import Actor, Acts, Carrier, Proposal, acts_on, one_key
from kmsjwks.services.approving import ApprovalDesk
from kmsjwks.services.keymaking import KeyMaker
from kmsjwks.services.protecting import ProtectedActs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyServiceOptions:
    """``gated``: spares must have been seen through the public URL before they take over.
    ``sight``: what this process knows of the health of backends."""

    timing: InstallationTiming
    gated: bool
    approvals: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    sight: Callable[[], Sight] = field(default=lambda: Sight({}))


class KeyService:
    """Rotation, compromise, hold, destruction; ``desk`` holds proposals of acts that take two."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        maker: KeyMaker,
        clock: Clock,
        options: KeyServiceOptions,
    ) -> None:
        self._store, self._maker = store, maker
        self._clock, self._timing, self._gated = clock, options.timing, options.gated
        self._carrier = Carrier(store, clock, maker.faults)
        self.desk = ApprovalDesk(store, options.approvals, clock, maker.faults)
        self._protected = ProtectedActs(self._carrier, self.desk, backends, options.timing)
        self._sight = options.sight

    def rotate(self, keyset: str, actor: Actor) -> Proposal:
        """The spare takes over as soon as every verifier may be taken to know it.

        Raises:
            KeysetNotFound
            TransitionRefused: a hold is in the way.
            BackendError: there is no spare, and none can be made.
        """
        return self._carrier.carry_out(
            keyset, actor, lambda found, keys: self._rotate(found, keys, actor)
        )

    def deactivate(self, kid: str, actor: Actor) -> Proposal:
        """Stop signing with the active key: its spare takes over as in ``rotate``.

        Raises:
            KeyNotKnown
            TransitionRefused: it is not the active key, or a hold is in the way.
            BackendError: there is no spare, and none can be made.
        """

        def propose(keyset: Keyset, keys: list[Key]) -> Acts:
            check_transition(one_key(keys, kid), KeyState.DEACTIVATED)
            return self._rotate(keyset, keys, actor)

        return self._carrier.carry_out(self._carrier.key(kid).keyset, actor, propose)

    def compromise(self, kid: str, actor: Actor) -> Proposal:
        """The key leaves the JWKS at once; where it signed, the spare takes over at once. A
        backend that is down does not stand in the way, nor does a tick that hangs in one.

        Raises:
            KeyNotKnown, TransitionRefused.
        """
        return self._carrier.carry_out_urgently(
            self._carrier.key(kid).keyset,
            actor,
            lambda keyset, keys, ours: self._compromise(
                keyset, keys, kid, actor if ours else replace(actor, dry_run=True)
            ),
        )

    def hold(self, kid: str, actor: Actor) -> Proposal:
        """Stop every transition of the key but to compromised. When this returns, none is under
        way: where a tick may be about to destroy the key just now, it is waited for.

        Raises:
            KeyNotKnown
            StoreUnavailable: such a tick does not end.
        """

        def propose(_: Keyset, keys: list[Key], turn: bool) -> Acts:
            key = one_key(keys, kid)
            if not turn and self._is_being_destroyed(key):
                raise StoreUnavailable(
                    f"Key {kid} is due to be destroyed, and another process is changing keys. Try "
                    "again; the hold may come too late.",
                    retry_after=5,
                )
            return acts_on(key, replace(key, hold=True), "held", f"Key {kid} is on hold.")

        key = self._carrier.key(kid)
        if self._is_being_destroyed(key):
            return self._carrier.carry_out(
                key.keyset, actor, lambda one, keys: propose(one, keys, True)
            )
        return self._carrier.carry_out_urgently(key.keyset, actor, propose)

    def _is_being_destroyed(self, key: Key) -> bool:
        """Whether some replica's tick may be at it, by its own clock."""
        due = key.times.destroy_at
        if due is None:
            return key.state is KeyState.COMPROMISED
        return due <= self._clock.now() + self._timing.skew

    def release(self, kid: str, actor: Actor) -> Proposal:
        """End a hold. Dates that passed meanwhile are set anew.

        Raises:
            KeyNotKnown
        """

        def propose(keyset: Keyset, keys: list[Key]) -> Acts:
            now = int(self._clock.now())
            pairs = interventions.released(keyset, keys, kid, self._timing, now)
            changes = [Change(before, after) for before, after in pairs]
            return Acts([f"Key {kid} is released."], changes, "released", kid)

        return self._carrier.carry_out(self._carrier.key(kid).keyset, actor, propose)

    def destroy(self, kid: str, actor: Actor) -> Proposal:
        """Begin the waiting window at whose end the private half is destroyed; of a compromised
        key, end the wait for it. Asked again, the window stays as it is.

        Raises:
            KeyNotKnown
            TransitionRefused: a token that it signed may live, or its state or a hold forbids it.
        """
        return self._protected.do(ProtectedAct.DESTROY, kid, actor)

    def undo_compromise(self, kid: str, actor: Actor) -> Proposal:
        """Take back that the key is compromised: it is deactivated, and published again for its
        tokens. A backend that is down does not stand in the way.

        Raises:
            KeyNotKnown
            TransitionRefused: it is not compromised, destroyed already, or on hold.
        """
        return self._protected.do(ProtectedAct.UNDO_COMPROMISE, kid, actor)

    def approve(self, approval_id: str, actor: Actor) -> Proposal:
        """As the second person, carry out what another one proposed.

        Raises:
            ApprovalNotKnown
            ApprovalRefused: it was made by the same person, is not open, or the key has changed.
            TransitionRefused: what was proposed cannot be done.
        """
        return self._protected.approve(approval_id, actor)

    def cancel_destroy(self, kid: str, actor: Actor) -> Proposal:
        """In our waiting window, or in that of the backend. A proposal that waits for a second
        person is withdrawn instead.

        Raises:
            KeyNotKnown
            TransitionRefused: no destruction is pending, or the key is compromised.
            BackendError: the backend waits for its end, and cannot be asked to stop.
        """
        return self._protected.cancel_destroy(kid, actor)

    def _with_spare(self, keyset: Keyset, keys: list[Key], actor: Actor) -> list[Key]:
        """The keys, with the spare that is to take over made where there is none.

        Raises:
            BackendError
        """
        if rotation.next_spare(keyset, keys) is not None or actor.dry_run:
            return keys
        made = self._maker.make(keyset, where=rotation.next_backend(keyset, keys))
        event = self._carrier.event(actor, keyset.name, made.key.kid, "spare-published")
        self._maker.faults.reach("spare.before")
        self._store.apply([], event, added=[(made.key, made.request_id)])
        self._maker.faults.reach("spare.recorded")
        return list(self._store.keys(keyset.name))

    def _rotate(self, keyset: Keyset, found: list[Key], actor: Actor) -> Acts:
        active = rotation.active_key(found)
        if active is not None and active.hold:
            raise TransitionRefused(f"The active key {active.kid} is on hold; release it first.")
        spare = rotation.next_spare(keyset, self._with_spare(keyset, found, actor))
        if spare is None:
            says = "A spare is made first; it takes over when the propagation delay is over."
            return Acts([says], [], "rotation-requested")
        if rotation.is_blocked(spare, gated=self._gated):
            raise TransitionRefused(
                f"The spare {spare.kid} has not been seen in the JWKS through the public URL; "
                "it cannot take over before."
            )
        at = interventions.rotation_date(keyset, spare, self._timing, int(self._clock.now()))
        says = f"Key {spare.kid} takes over at {moment(at)}."
        if active is not None:
            end = rotation.withdrawal(keyset, active, self._timing, at)
            says += f" Key {active.kid} stays published until {moment(end)} at the latest."
        after = replace(spare, times=replace(spare.times, activate_at=at))
        return acts_on(spare, after, "rotation-requested", says)

    def _compromise(self, keyset: Keyset, found: list[Key], kid: str, actor: Actor) -> Acts:
        key = one_key(found, kid)
        check_transition(key, KeyState.COMPROMISED)
        keys = found
        if key.state is KeyState.ACTIVE:
            try:
                keys = found if rotation.spares(found) else self._with_spare(keyset, found, actor)
            except BackendError as error:
                _log.error("Keyset %s has no spare and none can be made: %s", keyset.name, error)
        now = int(self._clock.now())
        wait = self.desk.policy.compromise_wait
        gone = interventions.compromised(keyset, key, self._timing, wait, now)
        kept_until = gone.times.destroy_at
        says = [*effects_of_compromise(keyset, key, self._timing, now, kept_until=kept_until)]
        changes = [Change(key, gone)]
        if key.state is KeyState.ACTIVE:
            spare = successor(keyset, keys, key, self._sight(), now, gated=self._gated)
            if spare is None:
                says.append("There is no spare: a new key is made and signs at once.")
            else:
                changes.append(_take_over(spare, now))
                changes += self._left_behind(keyset, keys, spare, key.backend)
                early = effect_of_early_takeover(keyset, spare, now)
                says += [f"Key {spare.kid} signs from now on.", *([early] if early else [])]
        return Acts(says, changes, "compromised", kid)

    def _left_behind(
        self, keyset: Keyset, keys: Sequence[Key], spare: Key, left: str
    ) -> list[Change]:
        """Where another backend takes over, the other spares lose their dates: they were chosen
        for a key in the backend ``left``."""
        if spare.backend == left:
            return []
        now = int(self._clock.now())
        return [
            Change(one, after)
            for one in rotation.spares(keys)
            if one.kid != spare.kid
            and (after := interventions.unscheduled(keyset, one, self._timing, now)) != one
        ]


def _take_over(spare: Key, now: int) -> Change:
    check_transition(spare, KeyState.ACTIVE)
    scheduled = spare.times.activate_at
    times = replace(spare.times, activate_at=now if scheduled is None else min(now, scheduled))
    return Change(spare, replace(spare, state=KeyState.ACTIVE, times=times))
