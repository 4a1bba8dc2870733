"""The result as text: on standard output and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proof.failover_judge import FailoverCase, allowed_pause, pause
from proof.failover_plan import KEYSETS
from proof.judge import Verdict
from proof.replicas import KeyFacts
from proof.table import aligned, failures, verdicts


def report(case: FailoverCase, found: Sequence[Verdict], file: Path) -> None:
    passed = all(one.holds for one in found)
    record = case.record
    outcome = (
        f"{'PASSED' if passed else 'FAILED'}: {len(case.story.released)} tokens, "
        f"{sum(record.accepted.values())} acceptances, {len(record.refusals)} refusals, "
        f"{len(record.kills)} kills, {len(case.of_demo())} keys of demo"
    )
    parts = [
        "moments: seconds since signing began\n\n" + _phases(case),
        _keys(case),
        "events of demo:\n" + _events(case),
        "notes:\n" + "\n".join(f"  {note}" for note in case.story.notes),
        failures(record),
        verdicts(found),
        outcome,
    ]
    text = "\n\n".join(parts)
    file.write_text(text + "\n")
    print(f"\n{text}\nreport: proof/out/{file.name}")


def _phases(case: FailoverCase) -> str:
    """With the longest pause of each keyset, and what it may be."""
    rows = [["act", "began", "ended", *(f"pause of {keyset}" for keyset in KEYSETS)]]
    for phase in case.story.phases:
        cells = []
        for keyset in KEYSETS:
            allowed = allowed_pause(case.plan, keyset, phase.name)
            limit = "its backend" if allowed is None else f"{allowed:.0f}"
            cells.append(f"{pause(case, keyset, phase):.2f} ({limit})")
        rows.append([phase.name, _since(case, phase.began), _since(case, phase.ended), *cells])
    return "\n".join(aligned(rows))


def _keys(case: FailoverCase) -> str:
    head = ["keyset", "backend", "kid", "published", "signed from", "to", "last exp", "withdrawn"]
    rows = [[*head, "last seen", "tokens", "state"]]
    rows += [_key(case, key) for key in case.keys]
    return "\n".join(aligned(rows))


def _key(case: FailoverCase, key: KeyFacts) -> list[str]:
    signed, seen = case.record.signed.get(key.kid), case.record.seen.get(key.kid)
    return [
        key.keyset,
        key.backend,
        key.kid[:8],
        _since(case, key.published_at),
        _since(case, signed.first if signed else None),
        _since(case, signed.last if signed else None),
        _since(case, signed.last_exp if signed else None),
        _since(case, key.withdraw_at),
        _since(case, seen.last if seen else None),
        str(signed.count if signed else 0),
        key.state,
    ]


def _events(case: FailoverCase) -> str:
    return "\n".join(
        f"  {_since(case, one.at):>5} {one.event} {(one.kid or '')[:8]} {one.detail}"
        for one in case.events
        if one.keyset in KEYSETS[:1]
    )


def _since(case: FailoverCase, at: float | None) -> str:
    return "-" if at is None else f"{at - case.record.began:.0f}"
