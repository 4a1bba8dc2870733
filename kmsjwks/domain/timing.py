"""The inequalities that keep verifiers from losing, and the arithmetic behind every date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kmsjwks.domain.errors import InvalidRequest

DAY = 86400
MINUTE = 60
MAX_OVERLAPPING_KEYS = 8  # deactivated keys in one JWKS, at most
MAX_DELAY = 3650 * DAY  # any single setting: beyond this it is a slip of the keyboard
STALE_WHILE_REVALIDATE = MINUTE  # RFC 5861 section 3: a cache may serve a JWKS this much older


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a date: ``seconds`` and what they are for."""

    seconds: int
    reason: str


@dataclass(frozen=True, slots=True)
class InstallationTiming:
    """What is true of the whole installation. All in seconds.

    ``max_age``: Cache-Control of the JWKS. ``refresh_interval``: how often a replica looks for
    changes. ``grace``: how long a replica signs from a snapshot that it cannot refresh, and is
    ready to serve verifiers. ``skew``: the most that two clocks differ, replicas' or verifiers'.
    ``development``: the floors do not hold; every answer says that this is unsafe.
    """

    max_age: int = 300
    refresh_interval: int = 2
    grace: int = 900
    skew: int = 300
    development: bool = False

    @property
    def notice(self) -> int:
        """How long a decision takes to reach every replica that reaches the database (seconds).
        The skew: the decision is dated by one clock and carried out by another."""
        return 2 * self.refresh_interval + self.skew

    def propagation_terms(self) -> tuple[Term, ...]:
        """From the publication of a key to the moment when no cache is without it: a replica
        cut off just before serves the older JWKS for its grace, and a cache keeps that."""
        return (
            Term(self.max_age, "max-age of the JWKS"),
            Term(STALE_WHILE_REVALIDATE, "stale-while-revalidate"),
            Term(self.grace, "grace of a replica without database"),
            Term(2 * self.refresh_interval, "refresh of the replicas"),
            Term(self.skew, "clock skew"),
        )

    @property
    def propagation_floor(self) -> int:
        """``activate_at >= published_at +`` this."""
        return total(self.propagation_terms())


@dataclass(frozen=True, slots=True)
class RotationSchedule:
    """One keyset's rotation. All in seconds.

    ``period``: time between activations, None for on demand only. ``propagation``: how long a key
    is published before it signs. ``leeway``: clock difference that verifiers may allow.
    ``destroy_after``: how long after withdrawal destruction begins, None for on demand only.
    ``destroy_window``: how long a destruction can still be cancelled.
    """

    period: int | None = None
    propagation: int = DAY
    leeway: int = 5 * MINUTE
    destroy_after: int | None = None
    destroy_window: int = 7 * DAY


def total(terms: Sequence[Term]) -> int:
    return sum(term.seconds for term in terms)


def arithmetic(terms: Sequence[Term]) -> str:
    """``300 s max-age of the JWKS + 4 s refresh of the replicas``."""
    return " + ".join(f"{span(term.seconds)} {term.reason}" for term in terms)


def span(seconds: int) -> str:
    """``90 s``, ``15 m``, ``1 h``, ``30 d``: the largest unit that divides it."""
    for size, unit in ((DAY, "d"), (3600, "h"), (MINUTE, "m")):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def withdrawal_terms(
    schedule: RotationSchedule, timing: InstallationTiming, max_lifetime: int
) -> tuple[Term, ...]:
    """``withdraw_at = deactivated_at +`` these. A replica that was cut off before the hand-over
    was scheduled signs on with the old key, but no longer than ``grace`` after it: the schedule is
    written at least ``notice`` ahead, which makes up for the difference of the clocks."""
    return (
        Term(timing.grace, "grace of a replica without database"),
        Term(max_lifetime, "longest token lifetime"),
        *verifier_terms(schedule, timing),
    )


def verifier_terms(schedule: RotationSchedule, timing: InstallationTiming) -> tuple[Term, ...]:
    """``withdraw_at = max_exp +`` these, once ``max_exp`` is known."""
    return (
        Term(schedule.leeway, "leeway"),
        Term(2 * timing.refresh_interval, "refresh of the replicas"),
        Term(timing.skew, "clock skew"),
    )


def check_schedule(
    schedule: RotationSchedule, timing: InstallationTiming, max_lifetime: int
) -> RotationSchedule:
    """Refuse what would break a verifier, with the arithmetic. ``max_lifetime`` in seconds.

    Raises:
        InvalidRequest
    """
    _check_range(schedule)
    floor = timing.propagation_terms()
    if schedule.propagation < total(floor) and not timing.development:
        raise InvalidRequest(
            f"A propagation delay of {span(schedule.propagation)} is below the floor of "
            f"{span(total(floor))}: {arithmetic(floor)}. Verifiers would meet a kid that they "
            "cannot know yet."
        )
    if schedule.leeway < 5 * MINUTE and not timing.development:
        raise InvalidRequest("The leeway must be at least 5 m: verifiers commonly allow as much.")
    if schedule.period is not None:
        _check_period(schedule, schedule.period, timing, max_lifetime)
    return schedule


def _check_range(schedule: RotationSchedule) -> None:
    delays = {
        "rotation period": schedule.period,
        "propagation delay": schedule.propagation,
        "leeway": schedule.leeway,
        "delay before destruction": schedule.destroy_after,
        "destruction window": schedule.destroy_window,
    }
    for name, delay in delays.items():
        if delay is not None and not 0 <= delay <= MAX_DELAY:
            raise InvalidRequest(
                f"The {name} of {span(delay)} must be between 0 s and {span(MAX_DELAY)}."
            )


def _check_period(
    schedule: RotationSchedule, period: int, timing: InstallationTiming, max_lifetime: int
) -> None:
    # The next spare is published when the last one is activated, and must be ready a period later.
    needed = (
        Term(schedule.propagation, "propagation delay"),
        Term(2 * timing.refresh_interval, "refresh of the replicas"),
        Term(timing.skew, "clock skew"),
    )
    if period < total(needed):
        raise InvalidRequest(
            f"A rotation period of {span(period)} is shorter than "
            f"{span(total(needed))}: {arithmetic(needed)}. A spare could never be ready in time."
        )
    overlap = withdrawal_terms(schedule, timing, max_lifetime)
    if total(overlap) > MAX_OVERLAPPING_KEYS * period:
        raise InvalidRequest(
            f"A deactivated key stays published for {span(total(overlap))} "
            f"({arithmetic(overlap)}), which is more than {MAX_OVERLAPPING_KEYS} rotation periods "
            f"of {span(period)}: the JWKS would hold too many keys. Shorten the maximum "
            "lifetime or lengthen the period."
        )
