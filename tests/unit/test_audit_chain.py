"""Tampering with a chain: each kind is detected and named where it was done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.audit import GENESIS, ChainHead, encode, link
from kmsjwks.domain.audittrail import Kind, Status, TrailFile, TrailReport
from kmsjwks.domain.auditverification import verify_trail
from kmsjwks.domain.checkpoints import Checkpoint, first_gap, parse_checkpoint
from kmsjwks.domain.errors import InvalidRequest
from tests.unit.test_audit import RECORD

CHAIN = "0123456789abcdef"
OTHER = "fedcba9876543210"

Trail = dict[str, bytes]
"""Contents by file name."""


def name(part: int, chain: str = CHAIN) -> str:
    return f"audit-20300317T174640Z-{chain}-{part:05d}.jsonl"


def make(
    parts: int = 3, each: int = 4, chain: str = CHAIN, *, closed: bool = True, **opening: object
) -> Trail:
    """As a process writes it, but made here by hand."""
    trail: Trail = {}
    seq, previous = 0, GENESIS
    for part in range(1, parts + 1):
        events: list[dict[str, object]] = (
            [{"event": "audit.opened", "time": 1.0, "file": name(1, chain), "pid": 7, **opening}]
            if part == 1
            else [
                {
                    "event": "audit.continues",
                    "time": 1.0,
                    "file": name(part, chain),
                    "continues": name(part - 1, chain),
                }
            ]
        )
        events += [replace(RECORD, jti=f"{part}-{n}").as_event() for n in range(each)]
        if part < parts:
            events.append({"event": "audit.rotated", "time": 2.0, "next": name(part + 1, chain)})
        elif closed:
            events += [{"event": "audit.closing", "time": 3.0}, {"event": "audit.closed"}]
        content = b""
        for event in events:
            line, previous = link(encode(event), chain, seq, previous)
            content += line + b"\n"
            seq += 1
        trail[name(part, chain)] = content
    return trail


def verify(trail: Trail, *checkpoints: Checkpoint) -> TrailReport:
    def file(found: str) -> TrailFile:
        return TrailFile(found, lambda: trail[found].splitlines(keepends=True))

    return verify_trail([file(found) for found in trail], checkpoints)


def first_bad(trail: Trail, *checkpoints: Checkpoint) -> tuple[Kind, str, int, int | None]:
    (problem,) = verify(trail, *checkpoints).problems
    return problem.kind, problem.file, problem.line, problem.seq


def lines(trail: Trail, part: int) -> list[bytes]:
    return trail[name(part)].splitlines(keepends=True)


def put(trail: Trail, part: int, changed: list[bytes]) -> Trail:
    return {**trail, name(part): b"".join(changed)}


def head_of(trail: Trail, seq: int) -> ChainHead:
    every = [line for part in sorted(trail) for line in trail[part].splitlines()]
    return ChainHead(CHAIN, seq, hashlib.sha256(every[seq]).hexdigest())


def checkpoint_of(trail: Trail, seq: int) -> Checkpoint:
    return Checkpoint(1_900_000_000, (head_of(trail, seq),))


def test_a_whole_chain() -> None:
    trail = make()
    (chain,) = verify(trail, checkpoint_of(trail, 9)).chains
    assert (chain.problem, chain.status, chain.records) == (None, Status.CLOSED, 19)
    assert chain.files == tuple(sorted(trail))
    assert chain.head == replace(head_of(trail, 18), file=name(3))
    assert (chain.first_time, chain.last_time) == (1.0, 3.0)


def test_an_auditor_verifies_it_without_our_code() -> None:
    previous, seq = "0" * 64, 0
    for file in sorted(make()):
        for line in make()[file].splitlines():
            record = json.loads(line)
            assert (record["chain"], record["seq"], record["prev"]) == (CHAIN, seq, previous)
            previous, seq = hashlib.sha256(line).hexdigest(), seq + 1


def test_an_edited_record_is_named() -> None:
    trail = make()
    changed = lines(trail, 2)
    changed[2] = changed[2].replace(b'"billing"', b'"Billing"')
    assert first_bad(put(trail, 2, changed)) == (Kind.EDITED, name(2), 3, 8)


def test_an_edited_seq_is_named() -> None:
    trail = make()
    changed = lines(trail, 2)
    changed[2] = changed[2].replace(b'"seq":8', b'"seq":9')
    assert first_bad(put(trail, 2, changed)) == (Kind.EDITED, name(2), 3, 9)


def test_white_space_shows() -> None:
    trail = make()
    changed = lines(trail, 1)
    changed[1] = changed[1].replace(b'"event":', b'"event": ')
    assert first_bad(put(trail, 1, changed)) == (Kind.EDITED, name(1), 2, 1)


def test_a_deleted_record_is_named() -> None:
    trail = make()
    changed = lines(trail, 2)
    del changed[1:3]
    assert first_bad(put(trail, 2, changed)) == (Kind.DELETED, name(2), 2, 9)


def test_records_in_another_order() -> None:
    trail = make()
    changed = lines(trail, 2)
    changed[1], changed[4] = changed[4], changed[1]
    (problem,) = verify(put(trail, 2, changed)).problems
    assert (problem.kind, problem.file, problem.line) == (Kind.REORDERED, name(2), 2)
    assert f"{name(2)}:5" in problem.said


def test_a_record_twice() -> None:
    trail = make()
    changed = lines(trail, 1)
    changed.insert(2, changed[1])
    assert first_bad(put(trail, 1, changed)) == (Kind.DUPLICATE, name(1), 3, 1)


def test_a_record_slipped_in() -> None:
    trail = make()
    changed = lines(trail, 1)
    previous = hashlib.sha256(changed[1][:-1]).hexdigest()
    forged, _ = link(encode(RECORD.as_event()), CHAIN, 2, previous)
    changed.insert(2, forged + b"\n")
    assert first_bad(put(trail, 1, changed))[:3] == (Kind.DUPLICATE, name(1), 4)


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[1]\n", b'{"event":"x"}\n', b"\n", b"\xff\n", b"[" * 9000 + b"\n"]
)
def test_a_foreign_line(line: bytes) -> None:
    trail = make()
    changed = lines(trail, 1)
    changed.insert(2, line)
    assert first_bad(put(trail, 1, changed)) == (Kind.INVALID, name(1), 3, None)


def test_a_line_of_another_chain() -> None:
    trail = make()
    changed = lines(trail, 1)
    changed[2] = make(chain=OTHER)[name(1, OTHER)].splitlines(keepends=True)[2]
    assert first_bad(put(trail, 1, changed)) == (Kind.FOREIGN, name(1), 3, 2)


def test_nothing_comes_after_the_closing_record() -> None:
    trail = make()
    previous = hashlib.sha256(lines(trail, 3)[-1][:-1]).hexdigest()
    more, _ = link(encode(RECORD.as_event()), CHAIN, 19, previous)
    trail[name(3)] += more + b"\n"
    assert first_bad(trail) == (Kind.FOREIGN, name(3), 8, None)


def test_a_tail_cut_off_a_closed_chain_leaves_it_open() -> None:
    trail = make()
    (chain,) = verify(put(trail, 3, lines(trail, 3)[:-3])).chains
    assert (chain.status, chain.problem) == (Status.OPEN, None)


def test_a_tail_cut_off_shows_by_a_checkpoint() -> None:
    trail = make(closed=False)
    cut = put(trail, 3, lines(trail, 3)[:-2])
    assert verify(cut).sound
    assert first_bad(cut, checkpoint_of(trail, 15)) == (Kind.TRUNCATED, name(3), 3, 14)
    assert verify(cut, checkpoint_of(trail, 14)).sound


def test_a_chain_written_anew_shows_by_a_checkpoint() -> None:
    trail, other = make(), make(pid=8)
    assert verify(other).sound
    assert first_bad(other, checkpoint_of(trail, 5)) == (Kind.REWRITTEN, name(1), 6, 5)


def test_checkpoints_that_contradict_each_other() -> None:
    trail = make()
    fork = Checkpoint(1_900_000_000, (ChainHead(CHAIN, 5, "a" * 64),))
    for checkpoints in ([checkpoint_of(trail, 5), fork], [fork, checkpoint_of(trail, 5)]):
        assert first_bad(trail, *checkpoints)[0] is Kind.REWRITTEN


def test_half_a_line_at_the_end_is_reported() -> None:
    trail = make(closed=False)
    trail[name(3)] = trail[name(3)][:-20]
    (chain,) = verify(trail).chains
    assert (chain.status, chain.torn, chain.records) == (Status.TORN, f"{name(3)}:5", 16)


@pytest.mark.parametrize(
    "tail", [b"garbage", b" ", b"\0\0\0", b'{"a":1}', b'{"event":"jwt.signed"\0', b"\xef\xbb\xbf"]
)
def test_what_no_crash_leaves_at_the_end(tail: bytes) -> None:
    trail = make(closed=False)
    trail[name(3)] += tail
    assert first_bad(trail) == (Kind.INVALID, name(3), 6, None)


@pytest.mark.parametrize(
    "tail", [b"{", b'{"event":"', '{"event":"x","detail":"\u00e9'.encode()[:-1]]
)
def test_the_beginning_of_a_record_is_what_a_crash_leaves(tail: bytes) -> None:
    trail = make(closed=False)
    trail[name(3)] += tail
    assert [chain.status for chain in verify(trail).chains] == [Status.TORN]


@pytest.mark.parametrize(("part", "seq"), [(1, 1), (2, 7)])
def test_the_first_record_of_a_file_is_deleted(part: int, seq: int) -> None:
    trail = make()
    assert first_bad(put(trail, part, lines(trail, part)[1:])) == (
        Kind.DELETED, name(part), 1, seq,
    )  # fmt: skip


def test_the_first_record_of_a_file_is_moved_down() -> None:
    trail = make()
    first, second, *others = lines(trail, 1)
    assert first_bad(put(trail, 1, [second, first, *others])) == (
        Kind.REORDERED, name(1), 1, 1,
    )  # fmt: skip


def test_half_a_line_within_a_chain_is_none_of_a_crash() -> None:
    trail = make()
    trail[name(1)] = trail[name(1)][:-20]
    assert first_bad(trail) == (Kind.TRUNCATED, name(1), 6, None)


def test_the_tail_of_a_part_is_cut_off() -> None:
    trail = make()
    assert first_bad(put(trail, 1, lines(trail, 1)[:-2])) == (Kind.TRUNCATED, name(1), 4, 3)


@pytest.mark.parametrize(
    ("part", "bad"),
    [
        (1, (Kind.MISSING_FILE, name(2), 1, 6)),
        (2, (Kind.MISSING_FILE, name(3), 1, 12)),
        (3, (Kind.MISSING_FILE, name(2), 6, 11)),
    ],
)
def test_a_missing_file(part: int, bad: tuple[Kind, str, int, int]) -> None:
    trail = make()
    del trail[name(part)]
    assert first_bad(trail) == bad


def test_a_missing_chain_shows_by_a_checkpoint() -> None:
    gone = checkpoint_of(make(), 17)
    assert first_bad({}, gone)[0] is Kind.MISSING_FILE
    assert first_bad(make(chain=OTHER), gone)[0] is Kind.MISSING_FILE


def test_a_missing_chain_shows_by_the_one_after_it() -> None:
    trail = make(closed=False)
    head = head_of(trail, 16)
    after = {"chain": CHAIN, "seq": 16, "sha256": head.sha256, "file": name(3)}
    follower = make(chain=OTHER, after=after)
    assert verify({**trail, **follower}).sound
    assert first_bad(follower)[0] is Kind.MISSING_FILE
    cut = put(trail, 3, lines(trail, 3)[:-1])
    assert first_bad({**cut, **follower}) == (Kind.TRUNCATED, name(3), 4, 15)


def test_swapped_files() -> None:
    trail = make()
    trail[name(1)], trail[name(2)] = trail[name(2)], trail[name(1)]
    assert first_bad(trail) == (Kind.SWAPPED_FILE, name(1), 1, 6)


def test_a_file_in_the_place_of_another_chains() -> None:
    trail = make()
    trail[name(2)] = make(chain=OTHER)[name(2, OTHER)]
    assert first_bad(trail) == (Kind.SWAPPED_FILE, name(2), 1, 6)


def test_a_part_of_an_earlier_copy_of_the_trail() -> None:
    trail, other = make(), make(pid=8)
    assert first_bad({**trail, name(2): other[name(2)]}) == (Kind.EDITED, name(1), 6, 5)


def test_an_announced_file_that_is_still_empty_is_a_crash() -> None:
    trail = {**make(parts=2, closed=False), name(2): b""}
    (chain,) = verify(trail).chains
    assert (chain.status, chain.problem) == (Status.OPEN, None)


def test_a_file_by_another_name_is_a_stranger() -> None:
    trail = make() | {"notes.jsonl": b"{}\n"}
    report = verify(trail)
    assert (report.strangers, report.sound) == (("notes.jsonl",), True)


def test_two_chains_are_verified_each_by_itself() -> None:
    bad = make(chain=OTHER)
    bad[name(1, OTHER)] = bad[name(1, OTHER)].replace(b'"demo"', b'"Demo"', 1)
    report = verify({**make(), **bad})
    assert [chain.status for chain in report.chains] == [Status.CLOSED, Status.BROKEN]


@given(data=st.data())
def test_any_changed_byte_of_a_closed_chain_shows(data: st.DataObject) -> None:
    trail = make(parts=2, each=2)
    file = data.draw(st.sampled_from(sorted(trail)))
    content = bytearray(trail[file])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    assert is_noticed({**trail, file: bytes(content)})


@given(data=st.data())
def test_any_bytes_taken_out_of_a_closed_chain_show(data: st.DataObject) -> None:
    trail = make(parts=2, each=2)
    file = data.draw(st.sampled_from(sorted(trail)))
    content = trail[file]
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    assert is_noticed({**trail, file: content[:start] + content[end:]})


@given(data=st.data())
def test_any_swap_of_lines_shows(data: st.DataObject) -> None:
    trail = make(parts=2, each=2)
    places = [(part, at) for part in (1, 2) for at in range(len(lines(trail, part)))]
    one, other = data.draw(st.lists(st.sampled_from(places), min_size=2, max_size=2, unique=True))
    swapped = {part: lines(trail, part) for part in (1, 2)}
    first, second = swapped[one[0]][one[1]], swapped[other[0]][other[1]]
    swapped[one[0]][one[1]], swapped[other[0]][other[1]] = second, first
    assert not verify({name(part): b"".join(found) for part, found in swapped.items()}).sound


def is_noticed(trail: Trail) -> bool:
    """A closed chain is not what it was: something is wrong, or it is closed no more."""
    report = verify(trail)
    return not report.sound or report.chains[0].status is not Status.CLOSED


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    checkpoint = checkpoint_of(make(), 3)
    assert parse_checkpoint(checkpoint.payload()) == checkpoint
    with pytest.raises(InvalidRequest):
        parse_checkpoint(checkpoint.payload() + b" ")
    with pytest.raises(InvalidRequest):
        parse_checkpoint(b'{"heads":3}')


def test_checkpoints_are_a_chain_too() -> None:
    first = checkpoint_of(make(), 3)
    second = replace(checkpoint_of(make(), 5), previous=first.sha256)
    third = replace(checkpoint_of(make(), 7), previous=second.sha256)
    assert first_gap([first, second, third]) is None
    assert first_gap([first, third]) == third
    assert first_gap([second, third]) == second
