"""Every date is explained, and every explanation adds up to its date."""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import replace

import pytest

from kmsjwks.domain import migration
from kmsjwks.domain.effects import effect_of_early_takeover, effects_of_compromise
from kmsjwks.domain.explanation import Date, explain, moment
from kmsjwks.domain.keys import Key, Keyset, KeyState, Standby
from kmsjwks.domain.rotation import HandOver, Schedule, plan
from kmsjwks.domain.timing import DAY, total
from tests.unit.test_rotation import (
    ACTIVE,
    DUE,
    KEYSET,
    OVERLAP,
    SCHEDULE,
    SPARE,
    T0,
    TIMING,
    VERIFIERS,
    _deactivated,
    _key,
    _policy,
    _scheduled,
)
from tests.unit.test_timing import _read

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
NOW = T0 + 100


def _dates(
    keys: list[Key], kid: str, now: int = NOW, *, gated: bool = False, after: int | None = None
) -> dict[str, Date]:
    shown = explain(_policy(after), keys, TIMING, now, gated=gated)
    assert [one.kid for one in shown] == [
        key.kid for key in sorted(keys, key=lambda key: (key.times.created_at, key.kid))
    ]
    (found,) = [one for one in shown if one.kid == kid]
    for date in found.dates:
        _adds_up(date)
    return {date.what: date for date in found.dates}


def _adds_up(date: Date) -> None:
    if date.since is None:
        return
    (stamp,) = STAMP.findall(date.why)
    since = calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
    assert since == date.since
    assert date.at == since + total(date.terms)
    assert date.at == since + _read(STAMP.sub("", date.why))


def test_a_spare_is_activated_by_the_rotation_period() -> None:
    date = _dates([ACTIVE, SPARE], "new")["will be activated"]
    assert date.at == DUE
    assert date.why == f"last activation {moment(T0)} + 7 d rotation period"


def test_a_spare_waits_for_its_propagation() -> None:
    late = replace(SPARE, times=replace(SPARE.times, published_at=DUE - 5))
    date = _dates([ACTIVE, late], "new")["will be activated"]
    assert (date.at, date.why) == (
        DUE - 5 + DAY,
        f"published {moment(DUE - 5)} + 1 d propagation delay",
    )


def test_an_operator_s_rotation_waits_for_the_replicas() -> None:
    at = T0 + 3 * DAY + TIMING.notice
    date = _dates([ACTIVE, _scheduled(at)], "new")["will be activated"]
    assert (
        date.why == f"decided {moment(T0 + 3 * DAY)} + 4 s refresh of the replicas + 5 m clock skew"
    )


@pytest.mark.parametrize("now", [T0, T0 + DAY, DUE - 1, DUE + 500])
def test_what_is_shown_is_what_the_planner_does(now: int) -> None:
    (step,) = plan(KEYSET, [ACTIVE, SPARE], TIMING, now, gated=False)
    assert isinstance(step, Schedule)
    assert _dates([ACTIVE, SPARE], "new", now)["will be activated"].at == step.activate_at
    keys = [ACTIVE, _scheduled()]
    shown = _dates(keys, "old", now)
    due = plan(KEYSET, keys, TIMING, max(now, DUE), gated=False)[0]
    assert isinstance(due, HandOver)
    assert shown["will be deactivated" if now < DUE else "deactivated"].at == due.at
    assert shown["will be withdrawn"].at == due.withdraw_at


@pytest.mark.parametrize(
    ("keys", "gated", "words"),
    [
        ([ACTIVE, SPARE], True, "public URL"),
        ([ACTIVE, replace(SPARE, hold=True)], False, "on hold"),
        ([replace(ACTIVE, hold=True), SPARE], False, "active key old is on hold"),
        ([ACTIVE, SPARE, _scheduled(kid="newer")], False, "another spare"),
        ([ACTIVE, SPARE, _key("a", KeyState.PRE_ACTIVATION)], False, "another spare"),
    ],
)
def test_why_a_spare_has_no_date(keys: list[Key], gated: bool, words: str) -> None:
    date = _dates(keys, "new", gated=gated)["will be activated"]
    assert date.at is None
    assert words in date.why


def test_rotation_on_demand_says_from_when() -> None:
    keyset = replace(KEYSET, schedule=replace(SCHEDULE, period=None))
    shown = explain(keyset, [ACTIVE, SPARE], TIMING, NOW, gated=False)
    (date,) = [d for one in shown if one.kid == "new" for d in one.dates if d.at is None]
    assert date.why == f"rotates on demand only; ready from {moment(T0 + DAY)}"


def test_withdrawal_by_the_longest_lifetime() -> None:
    date = _dates([ACTIVE, SPARE, _deactivated()], "gone")["will be withdrawn"]
    assert date.at == T0 + 10 + OVERLAP
    assert date.why == (
        f"deactivated {moment(T0 + 10)} + 15 m grace of a replica without database + "
        "1 h longest token lifetime + 5 m leeway + 4 s refresh of the replicas + 5 m clock skew"
    )


def test_withdrawal_by_the_last_token() -> None:
    key = _deactivated(max_exp=T0 + 500, withdraw_at=T0 + 500 + VERIFIERS)
    date = _dates([ACTIVE, SPARE, key], "gone")["will be withdrawn"]
    assert date.why.startswith(f"tokens until {moment(T0 + 500)} + 5 m leeway + 4 s refresh")


def test_withdrawal_by_rules_that_hold_no_more() -> None:
    bound = T0 + 10**6
    key = _deactivated(exp_bound=bound, withdraw_at=bound + VERIFIERS)
    date = _dates([ACTIVE, SPARE, key], "gone")["will be withdrawn"]
    assert date.why.startswith(f"tokens under earlier rules until {moment(bound)} + ")
    key = _deactivated(withdraw_at=T0 + 777)
    date = _dates([ACTIVE, SPARE, key], "gone")["will be withdrawn"]
    assert "under the rules when it was written" in date.why


def test_destruction_by_policy_on_demand_and_pending() -> None:
    keys = [ACTIVE, SPARE, _deactivated()]
    assert _dates(keys, "gone")["will be destroyed"].why == "on demand only"
    shown = _dates(keys, "gone", after=DAY)
    begins = T0 + 10 + OVERLAP + DAY
    assert shown["destruction begins"].at == begins
    assert shown["will be destroyed"].at == begins + 7 * DAY
    pending = _deactivated(destroy_at=T0 + 10**6)
    date = _dates([ACTIVE, SPARE, pending], "gone")["will be destroyed"]
    assert date.at == T0 + 10**6
    assert f"can be cancelled until {moment(T0 + 10**6)}" in date.why


def test_what_happened_to_a_compromised_and_destroyed_key() -> None:
    key = _deactivated(compromised_at=T0 + 20, private_destroyed_at=T0 + 30, destroyed_at=T0 + 31)
    shown = _dates([ACTIVE, SPARE, replace(key, state=KeyState.DESTROYED)], "gone")
    assert {what: date.at for what, date in shown.items()} == {
        "published": T0,
        "activated": T0,
        "deactivated": T0 + 10,
        "withdrawn": T0 + 20,
        "private half destroyed": T0 + 30,
        "destroyed": T0 + 31,
    }
    held = replace(_key("bad", KeyState.COMPROMISED, compromised_at=T0 + 9), hold=True)
    assert "on hold" in _dates([ACTIVE, SPARE, held], "bad")["will be destroyed"].why


def test_what_a_compromise_does_to_living_tokens() -> None:
    def alive(key: Key, now: int = NOW) -> str:
        return effects_of_compromise(KEYSET, key, TIMING, now)[1]

    assert f"up to {3600 + 900 + 300} s" in alive(ACTIVE)
    assert alive(SPARE) == "It has signed no token."
    assert f"up to {500 + 300 - 100} s" in alive(_deactivated(max_exp=T0 + 500))
    assert f"up to {3600 + 900 + 300 - 90} s" in alive(_deactivated())
    assert alive(_deactivated(max_exp=T0), T0 + 301).startswith("No token")


def test_a_spare_that_is_too_young_is_warned_of() -> None:
    assert effect_of_early_takeover(KEYSET, SPARE, T0 + DAY) is None
    warning = effect_of_early_takeover(KEYSET, SPARE, NOW)
    assert warning is not None
    assert moment(T0 + DAY) in warning


STANDBY = replace(SPARE, kid="there", backend="kms")
WITH_STANDBY = replace(KEYSET, standby=Standby("kms", 90, 7200))


def _stands_by(keyset: Keyset, keys: list[Key], kid: str) -> str:
    (shown,) = [one for one in explain(keyset, keys, TIMING, NOW, gated=False) if one.kid == kid]
    (date,) = [date for date in shown.dates if date.what == "stands by"]
    assert date.at is None
    return date.why


def test_a_standby_s_spare_waits_for_a_failure() -> None:
    keys = [ACTIVE, SPARE, STANDBY]
    why = _stands_by(WITH_STANDBY, keys, "there")
    assert why == (
        "in kms: takes over when softhsm fails and has been down for 90 s; "
        f"known to every verifier from {moment(T0 + DAY)}"
    )
    on_command = replace(WITH_STANDBY, standby=Standby("kms", None, None))
    assert "in kms: takes over on command only" in _stands_by(on_command, keys, "there")
    # The other goes on as ever.
    shown = explain(WITH_STANDBY, keys, TIMING, NOW, gated=False)
    (date,) = [d for one in shown if one.kid == "new" for d in one.dates if "activated" in d.what]
    assert date.at == DUE


def test_after_a_failover_the_primary_s_spare_stands_by() -> None:
    keys = [replace(ACTIVE, backend="kms"), STANDBY, SPARE]
    assert "in softhsm: takes over when softhsm has been up again for 2 h" in _stands_by(
        WITH_STANDBY, keys, "new"
    )
    coming_back = [keys[0], STANDBY, _scheduled(NOW + TIMING.notice)]
    shown = explain(WITH_STANDBY, coming_back, TIMING, NOW, gated=False)
    (date,) = [d for one in shown if one.kid == "new" for d in one.dates if "activated" in d.what]
    assert date.at == NOW + TIMING.notice


def test_a_spare_that_is_left_behind_by_a_migration() -> None:
    moving = replace(KEYSET, backend="kms")
    assert "which the keyset leaves; retired once kms signs" in _stands_by(
        moving, [ACTIVE, SPARE, STANDBY], "new"
    )


def test_the_stages_of_a_migration() -> None:
    moving = replace(KEYSET, backend="kms")
    scheduled = replace(_scheduled(kid="there"), backend="kms")
    moved = replace(ACTIVE, kid="there", backend="kms")

    def at(keyset: Keyset, *keys: Key) -> str:
        return migration.progress(keyset, keys, NOW).stage

    assert at(KEYSET, ACTIVE, SPARE) == "settled"
    assert at(moving, ACTIVE, SPARE) == "no-key-yet"
    assert at(moving, ACTIVE, SPARE, STANDBY) == "published"
    assert at(moving, ACTIVE, SPARE, scheduled) == "scheduled"
    assert at(moving, moved, _deactivated()) == "retiring"
    assert at(moving, moved, replace(_deactivated(), state=KeyState.DESTROYED)) == "settled"


def test_a_backend_s_own_waiting_window() -> None:
    end = NOW + 7 * DAY
    waits = _deactivated(destroy_at=NOW - 10, private_destroyed_at=end)
    date = _dates([ACTIVE, SPARE, waits], "gone")["irreversible from"]
    assert date.at == end
    assert f"can be cancelled until {moment(end)}" in date.why
    bad = replace(waits, state=KeyState.COMPROMISED)
    assert "cancelled" not in _dates([ACTIVE, SPARE, bad], "gone")["irreversible from"].why
    assert "private half destroyed" in _dates([ACTIVE, SPARE, waits], "gone", end)


@pytest.mark.parametrize(
    ("kept_until", "hold", "at", "words"),
    [
        (NOW + 60, False, NOW + 60, f"can be undone until {moment(NOW + 60)}"),
        (NOW, False, None, "as soon as the backend can"),
        (None, False, None, "as soon as the backend can"),
        (NOW + 60, True, None, "on hold"),
    ],
)
def test_when_a_compromised_key_is_destroyed(
    kept_until: int | None, hold: bool, at: int | None, words: str
) -> None:
    key = _key("bad", KeyState.COMPROMISED, compromised_at=NOW - 5, destroy_at=kept_until)
    date = _dates([ACTIVE, SPARE, replace(key, hold=hold)], "bad")["will be destroyed"]
    assert date.at == at
    assert words in date.why
