"""Whether the record proves what it should: every sentence here is a condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from proof.failover_cluster import Event
from proof.failover_plan import CLOUD, DEMO, KEYSETS, PRIMARY, STANDBY, FailoverPlan
from proof.failover_record import Bad, Phase, Report, Story, longest_gap
from proof.failover_scenario import CUT_OFF, FLAPPING, PHASES, PRIMARY_DOWN, REMOVED
from proof.failover_watch import BACKENDS, HEALTH, JWKS, READY
from proof.judge import Verdict, client_verdicts
from proof.record import Record
from proof.replicas import KeyFacts

_NOTICED = 8.0  # seconds after a backend's end until every worker's report is to tell of it
_TOLD = 4.0  # seconds after a failover until every worker knows
_FIRST_ANSWER = 10.0  # seconds after a kill until a new worker has asked what is down
_MOST = 0.9  # of the reports


@dataclass(frozen=True, slots=True)
class FailoverCase:
    """Everything there is to judge. ``audit``: the signing records of all replicas."""

    plan: FailoverPlan
    record: Record
    story: Story
    keys: Sequence[KeyFacts]
    events: Sequence[Event]
    clients: Sequence[str]
    audit: Sequence[dict[str, Any]]

    def of_demo(self) -> list[KeyFacts]:
        return [key for key in self.keys if key.keyset == DEMO]

    def phase(self, name: str) -> Phase | None:
        return next((one for one in self.story.phases if one.name == name), None)


def judge(case: FailoverCase) -> list[Verdict]:
    return [
        *_played(case),
        *client_verdicts(case.record, case.clients, case.plan.missed_share),
        *_pauses(case),
        *_moves(case),
        *_keys(case),
        *_withdrawals(case),
        *_audit(case),
        *_service(case),
        *_reports(case),
        *_kills(case),
    ]


def allowed_pause(plan: FailoverPlan, keyset: str, phase: str) -> float | None:
    """Seconds without a token; None where the keyset's only backend is cut off."""
    if keyset == DEMO and phase == PRIMARY_DOWN:
        return plan.failover_after + plan.noticing
    if keyset == DEMO and phase == FLAPPING:
        return plan.flap_down + plan.noticing
    if keyset == CLOUD and phase == CUT_OFF:
        return None
    return plan.quiet_pause


def pause(case: FailoverCase, keyset: str, phase: Phase) -> float:
    moments = [one.at for one in case.story.released if one.keyset == keyset]
    return longest_gap(moments, phase)


def _played(case: FailoverCase) -> Iterator[Verdict]:
    played = [phase.name for phase in case.story.phases]
    complete = tuple(played) == PHASES and not case.story.unmet
    yield Verdict(complete, "; ".join(case.story.unmet) or f"all acts: {', '.join(played)}")


def _pauses(case: FailoverCase) -> Iterator[Verdict]:
    for phase in case.story.phases:
        for keyset in KEYSETS:
            allowed, found = (
                allowed_pause(case.plan, keyset, phase.name),
                pause(case, keyset, phase),
            )
            if allowed is None:
                continue
            yield Verdict(
                found <= allowed,
                f"{phase.name}: longest pause in signing of {keyset} {found:.2f} s, at most "
                f"{allowed:.1f} s",
            )


def _moves(case: FailoverCase) -> Iterator[Verdict]:
    happened = Counter(one.event for one in case.events if one.keyset == DEMO)
    wanted = {"failed-over": 1, "failback-scheduled": 1, "migration-begun": 3}
    yield Verdict(
        all(happened[name] == count for name, count in wanted.items()),
        ", ".join(f"{happened[name]} x {name} (of {count})" for name, count in wanted.items()),
    )
    backend_of = {key.kid: key.backend for key in case.keys}
    kids = [one.kid for one in case.story.released if one.keyset == DEMO]
    runs = [kids[0], *(after for before, after in pairwise(kids) if before != after)]
    places = [backend_of[kid] for kid in runs]
    yield Verdict(
        places == [PRIMARY, STANDBY, PRIMARY, STANDBY] and len(set(runs)) == 4,
        f"demo signed in {', '.join(places)}: {len(set(runs))} keys, one after the other",
    )


def _keys(case: FailoverCase) -> Iterator[Verdict]:
    made = case.of_demo()
    yield Verdict(
        len(made) <= case.plan.keys_made,
        f"{len(made)} keys made for demo, at most {case.plan.keys_made}",
    )
    flapping = case.phase(FLAPPING)
    if flapping is not None:
        late = sum(flapping.began < key.created_at < flapping.ended for key in made)
        yield Verdict(late <= 1, f"{late} of them while the primary came and went, at most 1")
    signing = [key for key in made if key.kid in case.record.signed]
    waited = [case.record.signed[key.kid].first - key.published_at for key in signing]
    least = min(waited[1:], default=0.0)
    yield Verdict(
        least >= case.plan.times.published_before_signing,
        f"every key but the first was published at least {least:.1f} s before its first token",
    )


def _withdrawals(case: FailoverCase) -> Iterator[Verdict]:
    record = case.record
    early = beyond = 0
    for key in case.keys:
        signed, seen = record.signed.get(key.kid), record.seen.get(key.kid)
        if signed is None or key.deactivated_at is None:
            continue
        early += seen is None or seen.last < signed.last_exp
        beyond += signed.last_iat > key.deactivated_at + case.plan.late_signing
    yield Verdict(not early, f"{early} keys left the JWKS before their last token's exp")
    yield Verdict(not beyond, f"{beyond} keys signed after another one had taken over")
    old = [key for key in case.of_demo() if key.backend == PRIMARY and key.deactivated_at]
    gone = [
        key for key in old
        if key.kid in record.seen and record.seen[key.kid].last < record.closed - 3
    ]  # fmt: skip
    yield Verdict(
        len(old) == len(gone) == 2,
        f"{len(gone)} of {len(old)} keys that signed in the primary have left the JWKS at the end",
    )


def _audit(case: FailoverCase) -> Iterator[Verdict]:
    recorded = Counter((one["jti"], one["kid"], one["keyset"]) for one in case.audit)
    released = Counter((one.jti, one.kid, one.keyset) for one in case.story.released)
    missing = sum((released - recorded).values())
    twice = sum(count > 1 for count in recorded.values())
    yield Verdict(
        not missing and not twice,
        f"{sum(released.values())} tokens released, {missing} without an audit record, "
        f"{twice} recorded twice",
    )
    # A worker killed between the record and the answer, or one that answered too late.
    spare = sum((recorded - released).values())
    unanswered = sum(n for what, n in case.record.sign_failures.items() if "HTTP" not in what)
    yield Verdict(
        spare <= unanswered,
        f"{sum(recorded.values())} audit records: {spare} of tokens whose answer was lost, "
        f"and {unanswered} requests without an answer",
    )


def _service(case: FailoverCase) -> Iterator[Verdict]:
    story, plan = case.story, case.plan
    for path in (HEALTH, READY, JWKS, BACKENDS):
        bad = [one for one in story.bad if one.path == path and not _is_starting(case, one)]
        answered = story.answered_at.get(path, [])
        gap = max(longest_gap(answered, one) for one in story.phases)
        why = Counter(one.what for one in bad)
        yield Verdict(
            not bad and gap <= plan.quiet_pause,
            f"{path}: {len(answered)} answers, at most {gap:.2f} s between two of them; none bad "
            f"from a replica that is up{''.join(f', but {n} x {what}' for what, n in why.items())}",
        )
    times = sorted(story.jwks_seconds)
    slow = times[int(len(times) * 0.99)]
    yield Verdict(
        slow <= plan.slow_jwks,
        f"99 of 100 answers with the JWKS took at most {slow:.3f} s, the slowest {times[-1]:.3f} s",
    )


def _is_starting(case: FailoverCase, bad: Bad) -> bool:
    """A replica or worker that was just started says itself that it is not ready."""
    return bad.path == READY and _killed_lately(case, bad.replica, bad.at, case.plan.starting)


def _killed_lately(case: FailoverCase, replica: str, at: float, seconds: float) -> bool:
    return any(
        kill.replica == replica and 0 <= at - kill.at <= seconds for kill in case.record.kills
    )


def _reports(case: FailoverCase) -> Iterator[Verdict]:
    """Each act's reports once it was noticed: what is down, and what cannot sign because of it."""
    expected = {PRIMARY_DOWN: PRIMARY, CUT_OFF: STANDBY, REMOVED: PRIMARY}
    for name, backend in expected.items():
        phase = case.phase(name)
        if phase is None:
            continue
        end = phase.began + case.plan.standby_cut_off if name == CUT_OFF else phase.ended
        for path in (READY, BACKENDS):
            inside = _between(case, path, phase.began + _NOTICED, end)
            right = sum(one.down == {backend} for one in inside)
            yield Verdict(
                bool(inside) and right >= _MOST * len(inside),
                f"{name}: {right} of {len(inside)} reports of {path} name {backend} alone as down",
            )
        yield from _affected(case, name, phase.began, end)


def _affected(case: FailoverCase, name: str, began: float, end: float) -> Iterator[Verdict]:
    """Which keysets cannot sign: those of the backend that is down, until the standby signs."""
    wanted = {CLOUD} if name == CUT_OFF else set()
    settled = began + _NOTICED
    if name == PRIMARY_DOWN:
        moved = [
            one.at
            for one in case.story.released
            if one.keyset == DEMO and began + case.plan.failover_after < one.at
        ]
        takeover = min(moved, default=end)
        before = _between(case, BACKENDS, began, takeover)
        told = sum(DEMO in one.cannot_sign for one in before)
        yield Verdict(
            told > 0, f"{name}: {told} reports name demo as unable to sign before the failover"
        )
        settled = takeover + _TOLD
    inside = _between(case, BACKENDS, settled, end)
    right = sum(one.cannot_sign == wanted for one in inside)
    yield Verdict(
        bool(inside) and right >= _MOST * len(inside),
        f"{name}: {right} of {len(inside)} reports name "
        f"{', '.join(sorted(wanted)) or 'no keyset'} as unable to sign",
    )


def _between(case: FailoverCase, path: str, begin: float, end: float) -> list[Report]:
    """Without those of workers that may just have been started: a call to what is down has to end
    before they know."""
    return [
        one
        for one in case.story.reports
        if one.path == path
        and begin < one.at < end
        and not _killed_lately(case, one.replica, one.at, _FIRST_ANSWER)
    ]


def _kills(case: FailoverCase) -> Iterator[Verdict]:
    kills = case.record.kills
    yield Verdict(
        len(kills) >= case.plan.kills,
        f"{len(kills)} SIGKILLs: {sum(one.what == 'replica' for one in kills)} of whole replicas, "
        f"{sum(one.what == 'worker' for one in kills)} of workers",
    )
    ended = case.record.own_ends
    yield Verdict(not ended, "; ".join(ended) or "no replica ended by itself")
