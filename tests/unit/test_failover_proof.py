"""The judge of `make failover-proof` refuses each kind of failure, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from proof.failover_cluster import Event
from proof.failover_judge import FailoverCase, judge
from proof.failover_plan import CLOUD, DEMO, PLAIN, PRIMARY, STANDBY, TOKEN, FailoverPlan
from proof.failover_record import Bad, Phase, Released, Report, Story, longest_gap
from proof.failover_scenario import PHASES
from proof.failover_watch import BACKENDS, HEALTH, JWKS, READY
from proof.record import Kill, Look, Record, Refusal, Token
from proof.replicas import KeyFacts

_CLIENT = "client"
_LENGTH = 20.0  # seconds of an act
_LIFETIME = 20
# What signs when: demo fails over, comes back, moves.
_DEMO = (("p1", PRIMARY, 0, 26), ("k1", STANDBY, 26, 50), ("p2", PRIMARY, 50, 112),
         ("k2", STANDBY, 112, 140))  # fmt: skip
_OTHERS = (("c1", STANDBY, 0, 140), ("t1", TOKEN, 0, 140))


def _phases() -> list[Phase]:
    return [Phase(name, n * _LENGTH, (n + 1) * _LENGTH) for n, name in enumerate(PHASES)]


def _case() -> FailoverCase:
    record, story = Record(0.0), Story(phases=_phases())
    keys = [_sign(record, story, DEMO, *row) for row in _DEMO]
    keys += [
        _sign(record, story, keyset, *row)
        for keyset, row in zip((CLOUD, PLAIN), _OTHERS, strict=True)
    ]
    story.released.sort(key=lambda one: one.at)
    record.closed = 180.0
    record.kills = [Kill(10.0 * n, "replica", "a") for n in range(8)]
    for tenth in range(0, 1400, 2):
        _look(story, tenth / 10)
    events = [
        Event(0, "scheduler", DEMO, None, name, "")
        for name in ("failed-over", "failback-scheduled", *["migration-begun"] * 3)
    ]
    audit = [{"jti": one.jti, "kid": one.kid, "keyset": one.keyset} for one in story.released]
    return FailoverCase(FailoverPlan(), record, story, keys, events, [_CLIENT], audit)


def _sign(
    record: Record, story: Story, keyset: str, kid: str, backend: str, begin: int, end: int
) -> KeyFacts:
    pause = 6 if (keyset, begin) == (DEMO, 0) else 0  # until the failover
    for half in range(2 * begin, 2 * (end - pause)):
        at = half / 2
        token = Token("", kid, at, int(at), int(at) + _LIFETIME)
        record.add_token(token)
        for look in Look:
            record.accept(_CLIENT, token, look)
        story.released.append(Released(at, keyset, kid, f"{kid}-{half}"))
    over = end if end < 140 else None
    record.see([kid], -60.0)
    record.see([kid], end + 25.0 if over else 180.0)
    state = "deactivated" if over else "active"
    withdrawn = None if over is None else over + 30
    return KeyFacts(
        kid, keyset, backend, kid, state, -60, begin - 60, begin, over, withdrawn, None
    )  # fmt: skip


def _look(story: Story, at: float) -> None:
    act = PHASES[int(at / _LENGTH)]
    down = {"primary down": PRIMARY, "standby cut off": STANDBY, "primary removed": PRIMARY}
    names = frozenset({down[act]} if act in down and at < _switch(act) else ())
    unable = {"primary down": DEMO if at < 26 else None, "standby cut off": CLOUD}.get(act)
    for path in (HEALTH, READY, JWKS, BACKENDS):
        story.answer(path, at)
    story.jwks_seconds.append(0.01)
    story.report(Report(at, "b", READY, names, frozenset()))
    story.report(Report(at, "b", BACKENDS, names, frozenset({unable} if unable and names else ())))


def _switch(act: str) -> float:
    """When what is down in the act is up again."""
    began = PHASES.index(act) * _LENGTH
    return began + (FailoverPlan().standby_cut_off if act == "standby cut off" else _LENGTH)


def _failed(case: FailoverCase) -> list[str]:
    return [one.says for one in judge(case) if not one.holds]


def test_a_run_in_which_nothing_went_wrong_passes() -> None:
    assert _failed(_case()) == []


def _refused(case: FailoverCase) -> None:
    token = Token("", "k1", 30.0, 30, 50)
    case.record.refusals.append(Refusal(_CLIENT, Look.FIRST, 30.0, token, "no such key"))
    case.record.accepted[_CLIENT, "k1", Look.FIRST] -= 1


def _unverified(case: FailoverCase) -> None:
    case.record.accepted[_CLIENT, "k1", Look.LAST] -= 1


def _silent(case: FailoverCase) -> None:
    case.story.released[:] = [one for one in case.story.released if not 20 < one.at < 36]


def _neighbour_silent(case: FailoverCase) -> None:
    case.story.released[:] = [
        one for one in case.story.released if one.keyset != PLAIN or not 20 < one.at < 24
    ]


def _withdrawn(case: FailoverCase) -> None:
    case.record.seen["p1"].last = 27.0


def _late(case: FailoverCase) -> None:
    case.record.signed["p1"].last_iat = 32


def _unwell(case: FailoverCase) -> None:
    case.story.bad.append(Bad(30.0, "b", JWKS, "HTTP 503"))


def _untold(case: FailoverCase) -> None:
    case.story.reports[:] = [replace(one, down=frozenset()) for one in case.story.reports]


def _blamed(case: FailoverCase) -> None:
    case.story.reports[:] = [
        replace(one, cannot_sign=frozenset({DEMO})) if one.at > 80 else one
        for one in case.story.reports
    ]


def _unended(case: FailoverCase) -> None:
    case.story.unmet.append("waited 14 s for signing in kms")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_refused, "1 refusals"),
        (_unverified, "judged every token twice"),
        (_silent, "primary down: longest pause in signing of demo"),
        (_neighbour_silent, "primary down: longest pause in signing of plain"),
        (_withdrawn, "left the JWKS before"),
        (_late, "signed after another one had taken over"),
        (_unwell, "but 1 x HTTP 503"),
        (_untold, "alone as down"),
        (_blamed, "standby cut off"),
        (_unended, "waited 14 s"),
    ],
)
def test_harm_is_noticed(harm: Callable[[FailoverCase], None], says: str) -> None:
    case = _case()

    harm(case)

    assert any(says in one for one in _failed(case))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"events": []}, "0 x failed-over"),
        ({"audit": _case().audit[1:]}, "1 without an audit record"),
        ({"audit": [*_case().audit, _case().audit[0]]}, "1 recorded twice"),
        ({"audit": [*_case().audit, {"jti": "x", "kid": "p1", "keyset": DEMO}]}, "answer was lost"),
        ({"keys": [*_case().keys] * 3}, "keys made"),
        (
            {"keys": [replace(one, published_at=25) if one.kid == "k1" else one
                      for one in _case().keys]},
            "was published at least",
        ),
    ],
)  # fmt: skip
def test_what_the_trail_and_the_database_say_counts(changes: dict[str, Any], says: str) -> None:
    case = replace(_case(), **changes)

    assert any(says in one for one in _failed(case))


def test_a_request_without_an_answer_explains_a_record_too_many() -> None:
    case = _case()
    case = replace(case, audit=[*case.audit, {"jti": "x", "kid": "p1", "keyset": DEMO}])
    case.record.sign_failures = Counter({"demo at a: ConnectionError": 1})

    assert _failed(case) == []


def test_a_gap_counts_in_every_act_as_far_as_it_lies_there() -> None:
    moments = [0.0, 1.0, 9.0, 10.0]

    assert longest_gap(moments, Phase("before", 0.0, 4.0)) == 3.0
    assert longest_gap(moments, Phase("after", 4.0, 10.0)) == 5.0
