"""Whether the record proves what it should: every sentence here is a condition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proof.plan import Plan, Times
from proof.record import Look, Record
from proof.replicas import KeyFacts


@dataclass(frozen=True, slots=True)
class Verdict:
    holds: bool
    says: str


@dataclass(frozen=True, slots=True)
class Case:
    """Everything there is to judge. ``clients``: names of the verifiers.
    ``refs_in_token``: the keys that the backend holds at the end."""

    plan: Plan
    times: Times
    record: Record
    keys: Sequence[KeyFacts]
    clients: Sequence[str]
    refs_in_token: frozenset[str]


def judge(case: Case) -> list[Verdict]:
    return [
        *client_verdicts(case.record, case.clients, case.plan.missed_share),
        *_signing(case),
        *_rotations(case),
        *_compromise(case),
        *_dates(case),
        *_states(case),
    ]


def client_verdicts(
    record: Record, clients: Sequence[str], missed_share: float
) -> Iterator[Verdict]:
    """``missed_share``: of all tokens, how many a client may have checked too late to count."""
    total = sum(record.accepted.values())
    but = " not signed by the compromised key" if record.compromise else ""
    yield Verdict(
        not record.refusals,
        f"{len(record.refusals)} refusals of an unexpired token{but}, {total} acceptances",
    )
    signed = sum(one.count for one in record.signed.values())
    for client in clients:
        excused = sum(n for (name, _), n in record.excused.items() if name == client)
        refused = sum(one.client == client for one in record.refusals)
        looked = {
            look: sum(
                n
                for (name, _, seen), n in record.accepted.items()
                if (name, seen) == (client, look)
            )
            for look in Look
        }
        missed = record.missed[client]
        complete = sum(looked.values()) + excused + refused + missed == 2 * signed
        said = f"{excused} refusals of the compromised key's tokens, " if record.compromise else ""
        yield Verdict(
            complete and missed <= missed_share * signed,
            f"{client} judged every token twice: accepted {looked[Look.FIRST]} at once and "
            f"{looked[Look.LAST]} before exp, of {signed}; {said}"
            f"{missed} checks too late to count",
        )


def _signing(case: Case) -> Iterator[Verdict]:
    record, plan = case.record, case.plan
    yield Verdict(
        record.longest_pause <= plan.longest_pause,
        f"longest pause in signing {record.longest_pause:.2f} s "
        f"(at {record.longest_pause_at - record.began:.0f} s), at most {plan.longest_pause:.0f} s",
    )
    yield Verdict(
        len(record.kills) >= plan.kills,
        f"{len(record.kills)} SIGKILLs: {sum(k.what == 'replica' for k in record.kills)} of whole "
        f"replicas, {sum(k.what == 'worker' for k in record.kills)} of workers",
    )
    yield Verdict(not record.own_ends, "; ".join(record.own_ends) or "no replica ended by itself")


def _rotations(case: Case) -> Iterator[Verdict]:
    signing = [key for key in case.keys if key.kid in case.record.signed]
    scheduled = len(signing) - 1 - (case.record.compromise is not None)
    yield Verdict(
        scheduled >= case.plan.rotations, f"{scheduled} scheduled rotations besides the compromise"
    )
    waited = [case.record.signed[key.kid].first - key.published_at for key in signing[1:]]
    least = min(waited, default=0.0)
    yield Verdict(
        least >= case.times.published_before_signing,
        f"every key but the first was published at least {least:.1f} s before its first token",
    )


def _compromise(case: Case) -> Iterator[Verdict]:
    compromise = case.record.compromise
    if compromise is None:
        yield Verdict(False, "no key was compromised")
        return
    for what, last in (
        ("signed", case.record.signed[compromise.kid].last),
        ("published", case.record.seen[compromise.kid].last),
    ):
        yield Verdict(
            last <= compromise.ended + case.plan.compromise_reach,
            f"the compromised key was last {what} {last - compromise.ended:+.1f} s from the end "
            f"of the command, at most {case.plan.compromise_reach:+.0f} s",
        )


def _dates(case: Case) -> Iterator[Verdict]:
    early = late = withdrawn = 0
    compromised = case.record.compromise.kid if case.record.compromise else None
    for key in case.keys:
        signed = case.record.signed.get(key.kid)
        if signed is None:
            continue
        # The key that took over from the compromised one is dated by the act itself.
        early += key.activate_at is None or signed.first_iat < key.activate_at
        if key.kid == compromised or key.deactivated_at is None:
            continue
        late += signed.last_iat >= key.deactivated_at
        withdrawn += key.withdraw_at is None or key.withdraw_at <= signed.last_exp
    yield Verdict(not early, f"{early} keys signed before their activation, on any replica")
    yield Verdict(not late, f"{late} keys signed after their deactivation, on any replica")
    yield Verdict(not withdrawn, f"{withdrawn} keys were withdrawn before their last token's exp")


def _states(case: Case) -> Iterator[Verdict]:
    states = [key.state for key in case.keys]
    active, spare = states.count("active"), states.count("pre-activation")
    yield Verdict(
        (active, spare) == (1, 1), f"at the end {active} active key and {spare} published spare"
    )
    known = {key.ref for key in case.keys if key.state != "destroyed"}
    yield Verdict(
        case.refs_in_token == known,
        f"the token holds {len(case.refs_in_token)} keys: {len(case.refs_in_token - known)} that "
        f"nobody owns, {len(known - case.refs_in_token)} missing",
    )
