"""The audit chain: any edit, loss, insertion or reordering shows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.audit import GENESIS, SigningRecord, link
from kmsjwks.domain.errors import MalformedJson

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


def _chain(length: int) -> list[bytes]:
    lines, previous = list[bytes](), GENESIS
    for sequence in range(length):
        event = replace(RECORD, jti=f"jti-{sequence}").as_event()
        line, previous = link(event, sequence, previous)
        lines.append(line)
    return lines


def _first_bad(lines: list[bytes]) -> int | None:
    """An auditor's check, written from the description of the chain and not from its code."""
    previous = "0" * 64
    for sequence, line in enumerate(lines):
        record = json.loads(line)
        if record["seq"] != sequence or record["prev"] != previous:
            return sequence
        previous = hashlib.sha256(line).hexdigest()
    return None


def test_a_whole_chain_holds() -> None:
    lines = _chain(20)
    assert _first_bad(lines) is None
    assert json.loads(lines[0])["prev"] == GENESIS == "0" * 64


def test_link_returns_the_hash_of_exactly_the_line() -> None:
    line, digest = link(RECORD.as_event(), 0, GENESIS)
    assert digest == hashlib.sha256(line).hexdigest()
    assert b"\n" not in line
    assert link(RECORD.as_event(), 0, GENESIS) == (line, digest)


@given(data=st.data())
def test_one_changed_byte_shows_in_the_next_record(data: st.DataObject) -> None:
    lines = _chain(5)
    victim = data.draw(st.integers(0, 3))
    event = json.loads(lines[victim])
    name = data.draw(st.sampled_from(sorted(event.keys() - {"seq", "prev"})))
    event[name] = f"{event[name]}x"
    lines[victim] = json.dumps(event, separators=(",", ":")).encode()
    assert _first_bad(lines) == victim + 1


@given(data=st.data())
def test_even_white_space_shows(data: st.DataObject) -> None:
    lines = _chain(5)
    victim = data.draw(st.integers(0, 3))
    lines[victim] += b" "
    assert _first_bad(lines) == victim + 1


@pytest.mark.parametrize("victim", range(4))
def test_a_lost_record_shows(victim: int) -> None:
    lines = _chain(5)
    del lines[victim]
    assert _first_bad(lines) == victim


@pytest.mark.parametrize("victim", range(4))
def test_swapped_records_show(victim: int) -> None:
    lines = _chain(5)
    lines[victim], lines[victim + 1] = lines[victim + 1], lines[victim]
    assert _first_bad(lines) == victim


def test_a_record_slipped_in_shows() -> None:
    lines = _chain(5)
    _, previous = link(json.loads(lines[1]), 1, json.loads(lines[1])["prev"])
    forged, _ = link(RECORD.as_event(), 2, previous)
    assert _first_bad([*lines[:2], forged, *lines[2:]]) == 3


def test_an_event_cannot_choose_its_place() -> None:
    line, _ = link({"event": "x", "seq": 99, "prev": "f" * 64}, 3, "a" * 64)
    assert json.loads(line) == {"event": "x", "seq": 3, "prev": "a" * 64}


def test_sequence_and_previous_both_enter_the_hash() -> None:
    event = RECORD.as_event()
    digests = {link(event, 0, GENESIS)[1], link(event, 1, GENESIS)[1], link(event, 0, "a" * 64)[1]}
    assert len(digests) == 3


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


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_from_callers_cannot_start_a_line_of_its_own(text: str) -> None:
    line, _ = link(replace(RECORD, jti=text).as_event(), 0, GENESIS)
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line)["jti"] == text


def test_what_cannot_be_written_is_an_error_and_not_a_record() -> None:
    with pytest.raises(MalformedJson):
        link({"jti": "\ud800"}, 0, GENESIS)
