"""Audit records, and the line that each becomes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.audit import (
    GENESIS,
    ActRecord,
    Phase,
    SigningRecord,
    encode,
    encode_record,
    link,
)
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.errors import MalformedJson

CHAIN = "0123456789abcdef"
RECORD = SigningRecord(
    time=1_900_000_000.123456,
    principal="billing",
    keyset="demo",
    kid="NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
    jti="7f1d",
    exp=1_900_000_300,
    claims_sha256="ab" * 32,
    request_id="r-1",
)


def test_a_line_is_the_record_and_its_place() -> None:
    line, digest = link(encode(RECORD.as_event()), CHAIN, 7, "a" * 64)
    assert digest == hashlib.sha256(line).hexdigest()
    place = {"chain": CHAIN, "seq": 7, "prev": "a" * 64}
    assert json.loads(line) == {**RECORD.as_event(), **place}
    assert line.endswith(b',"chain":"0123456789abcdef","seq":7,"prev":"' + b"a" * 64 + b'"}')


def test_chain_sequence_and_previous_all_enter_the_hash() -> None:
    body = encode(RECORD.as_event())
    places = [
        (CHAIN, 0, GENESIS),
        (CHAIN, 1, GENESIS),
        (CHAIN, 0, "a" * 64),
        ("f" * 16, 0, GENESIS),
    ]
    assert len({link(body, *place)[1] for place in places}) == 4


def test_a_signing_record_says_who_what_and_when_and_never_the_claims() -> None:
    event = RECORD.as_event()
    assert event == {
        "event": "jwt.signed",
        "time": 1_900_000_000.123,
        "principal": "billing",
        "keyset": "demo",
        "kid": RECORD.kid,
        "jti": "7f1d",
        "exp": 1_900_000_300,
        "claims_sha256": "ab" * 32,
        "request_id": "r-1",
    }
    assert {field.name for field in fields(RECORD)} == event.keys() - {"event"}


@given(
    time=st.floats(0, 1e12) | st.integers(0, 10**12),
    exp=st.integers(-(10**30), 10**30),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=6, max_size=6),
)
def test_a_signing_record_is_encoded_as_any_other(time: float, exp: int, texts: list[str]) -> None:
    principal, keyset, kid, jti, claims, request = texts
    record = SigningRecord(time, principal, keyset, kid, jti, exp, claims, request)
    assert encode_record(record) == encode(record.as_event())


@pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf")])
def test_a_time_that_is_none_is_an_error_and_not_a_record(time: float) -> None:
    with pytest.raises(MalformedJson):
        encode_record(replace(RECORD, time=time))


def test_an_act_leaves_out_what_it_has_not() -> None:
    act = ActRecord(1.5, "act-1", Phase.INTENT, "lifecycle.held", principal="olga", keyset="demo")
    assert act.as_event() == {
        "event": "lifecycle.held",
        "time": 1.5,
        "phase": "intent",
        "act": "act-1",
        "principal": "olga",
        "keyset": "demo",
    }


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_from_callers_cannot_start_a_line_of_its_own(text: str) -> None:
    line, _ = link(encode(replace(RECORD, jti=text).as_event()), CHAIN, 0, GENESIS)
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line)["jti"] == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_filter_finds_its_record_by_the_bytes_too(text: str) -> None:
    wanted = RecordFilter(principal=text)
    record = replace(RECORD, principal=text).as_event()
    line, _ = link(encode(record), CHAIN, 0, GENESIS)
    assert all(needle in line for needle in wanted.needles())
    assert wanted.matches(record)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RecordFilter(), True),
        (RecordFilter(principal="billing", keyset="demo", kid=RECORD.kid, jti="7f1d"), True),
        (RecordFilter(principal="bill"), False),
        (RecordFilter(event="jwt.*"), True),
        (RecordFilter(event="lifecycle.*"), False),
        (RecordFilter(since=1_900_000_000.123, until=1_900_000_000.124), True),
        (RecordFilter(until=1_900_000_000.123), False),
        (RecordFilter(since=1_900_000_000.2), False),
    ],
)
def test_filters(wanted: RecordFilter, found: bool) -> None:
    assert wanted.matches(RECORD.as_event()) is found


def test_what_cannot_be_written_is_an_error_and_not_a_record() -> None:
    with pytest.raises(MalformedJson):
        encode({"jti": "\ud800"})
    with pytest.raises(MalformedJson):
        encode_record(replace(RECORD, request_id="\ud800"))
    with pytest.raises(MalformedJson):
        encode_record(ActRecord(1.5, "act-1", Phase.INTENT, "\ud800"))


def test_an_act_is_encoded_too() -> None:
    act = ActRecord(1.5, "act-1", Phase.OUTCOME, "lifecycle.held", detail="é")
    assert json.loads(encode_record(act)) == act.as_event()
