"""The result as text."""

from __future__ import annotations

from collections.abc import Sequence

from proof.judge import Case, Verdict
from proof.record import Look, Record

_SHOWN_REFUSALS = 10


def table(case: Case) -> str:
    """Per key, moments in seconds since signing began; verified is at once + before exp."""
    head = ["key", "published", "activated", "deactivated", "withdrawn", "state", "signed"]
    rows = [[*head, *case.clients]]
    for number, key in enumerate(case.keys, 1):
        signed = case.record.signed.get(key.kid)
        rows.append(
            [
                f"{number} {key.kid[:8]}",
                *(_moment(case, at) for at in (
                    key.published_at, key.activate_at, key.deactivated_at,
                    key.compromised_at or key.withdraw_at,
                )),
                key.state if key.compromised_at is None else "compromised",
                str(signed.count if signed else 0),
                *(_verified(case, client, key.kid) for client in case.clients),
            ]
        )  # fmt: skip
    return "\n".join(aligned(rows))


def kills(case: Case) -> str:
    return "kills: " + ", ".join(
        f"{kill.at - case.record.began:.0f} s {kill.what} of {kill.replica}"
        for kill in case.record.kills
    )


def failures(record: Record) -> str:
    """What the caller met and went round, and what clients refused."""
    lines = [f"  {count} x {what}" for what, count in record.sign_failures.most_common()]
    text = "the caller turned to another replica after:\n" + "\n".join(lines or ["  nothing"])
    for one in record.refusals[:_SHOWN_REFUSALS]:
        text += (
            f"\nREFUSED by {one.client} {one.look.value} at {one.at - record.began:.1f} s: "
            f"kid {one.token.kid[:8]}, {one.token.exp - one.at:.1f} s before exp: {one.why}"
        )
    return text


def verdicts(found: Sequence[Verdict]) -> str:
    return "\n".join(f"{'ok    ' if one.holds else 'FAILED'} {one.says}" for one in found)


def _moment(case: Case, at: int | None) -> str:
    if at is None:
        return "-"
    return f"{at - case.record.began:.0f} s" + ("" if at <= case.record.closed else " (due)")


def _verified(case: Case, client: str, kid: str) -> str:
    accepted = case.record.accepted
    first, last = accepted[client, kid, Look.FIRST], accepted[client, kid, Look.LAST]
    excused = case.record.excused[client, kid]
    return f"{first}+{last}" + (f" -{excused}" if excused else "")


def aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
