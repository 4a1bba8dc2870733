"""What the bench says of its samples, and what it refuses to say."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import noise, picture, report
from bench.model import (
    Absent,
    Limit,
    Measure,
    Metrics,
    Opened,
    Options,
    Refused,
    Row,
    Sample,
    Scene,
)
from bench.runner import Taken, run
from bench.scenes import merged
from bench.wrk import Request, judged

OPTIONS = Options(seconds=3, rounds=3, keysets=1, soak=0)
LEAST, MOST = Limit("least", 0.8, 0.9), Limit("most", 0.5)


def scene(
    measures: Mapping[str, Measure], *rows: Row, absent: Mapping[str, str] | None = None
) -> Scene:
    @contextmanager
    def opening(_: Options) -> Iterator[Opened]:
        yield Opened(measures, absent or {})

    return Scene("test", rows, opening)


def row(limit: Limit | None = LEAST, metric: str = "rate", peer: str | None = "peer") -> Row:
    return Row("work", metric, "/s", "ours", peer, limit)


def taken(ours: list[float], peer: list[float], limit: Limit = LEAST, others: float = 0) -> Taken:
    made = {
        "ours": [Sample({"rate": value}, others) for value in ours],
        "peer": [Sample({"rate": value}, 0) for value in peer],
    }
    return Taken(scene({}, row(limit)), made, {})


def silent(_: str) -> None:
    return


@pytest.mark.parametrize(
    ("ours", "limit", "verdict"),
    [
        (79, LEAST, "FAIL"),
        (80, LEAST, "pass"),
        (89, LEAST, "pass"),
        (90, LEAST, "aim"),
        (51, MOST, "FAIL"),
        (50, MOST, "aim"),
    ],
)
def test_a_ratio_is_held_against_its_bound_and_aim(ours: float, limit: Limit, verdict: str) -> None:
    (cell,) = report.cells([taken([ours], [100], limit)])
    assert cell.verdict == verdict


def test_the_ratio_is_that_of_the_medians() -> None:
    (cell,) = report.cells([taken([10, 90, 1000], [1, 100, 101])])
    assert (cell.ours, cell.peer, cell.value) == (90, 100, 0.9)


def test_a_factor_turns_requests_into_tokens() -> None:
    batch = Row("work", "rate", "/s", "ours", "peer", LEAST, factor=100)
    made = taken([3], [1000])
    (cell,) = report.cells([Taken(scene({}, batch), made.samples, {})])
    assert (cell.ours, cell.value) == (300, 0.3)


def test_a_row_without_a_peer_is_its_own_value() -> None:
    alone = Taken(scene({}, row(Limit("most", 130), "mb", None)), {"ours": [Sample({"mb": 90}, 0)]})
    (cell,) = report.cells([alone])
    assert (cell.value, cell.verdict) == (90, "aim")


def test_contenders_take_turns_in_both_orders_after_a_warm_up() -> None:
    asked: list[tuple[str, int]] = []

    def contender(name: str) -> Measure:
        def measure(seconds: int) -> Metrics:
            asked.append((name, seconds))
            return {"rate": 1}

        return measure

    got = run(scene({"a": contender("a"), "b": contender("b")}), OPTIONS, silent)
    assert asked == [
        ("b", 1), ("a", 1), ("a", 3), ("b", 3), ("b", 3), ("a", 3), ("a", 3), ("b", 3),
    ]  # fmt: skip
    assert {name: len(samples) for name, samples in got.samples.items()} == {"a": 3, "b": 3}


def test_a_contender_that_fails_in_a_later_round_has_no_cell() -> None:
    rounds = iter([{"rate": 1.0}, {"rate": 1.0}])

    def failing(_: int) -> Metrics:
        try:
            return next(rounds)
        except StopIteration:
            raise Refused("3 of 10 answers were not as expected") from None

    got = run(scene({"ours": lambda _: {"rate": 1}, "peer": failing}, row()), OPTIONS, silent)
    (cell,) = report.cells([got])
    assert (cell.value, cell.verdict) == (None, "skipped")
    assert cell.reason == "peer: 3 of 10 answers were not as expected"
    assert "peer: 3 of 10 answers" in report.table([cell])


def test_a_missing_peer_is_said_and_ours_still_measured() -> None:
    only_ours = scene({"ours": lambda _: {"rate": 7}}, row(), absent={"peer": "no binary here"})
    (cell,) = report.cells([run(only_ours, OPTIONS, silent)])
    assert (cell.ours, cell.value, cell.reason) == (7, None, "peer: no binary here")


def test_a_scene_that_does_not_open_skips_its_rows() -> None:
    @contextmanager
    def opening(_: Options) -> Iterator[Opened]:
        raise Absent("wrk is not installed")
        yield

    (cell,) = report.cells([run(Scene("test", (row(),), opening), OPTIONS, silent)])
    assert cell.verdict == "skipped"
    assert "wrk is not installed" in (cell.reason or "")


def test_a_noisy_round_is_called_noisy() -> None:
    quiet, loud = report.cells([taken([1], [1]), taken([1, 1], [1], others=0.3)])
    assert "NOISE" not in report.table([quiet])
    assert "NOISE: in 1 rows others took up to 30%" in report.table([quiet, loud])


@pytest.mark.parametrize(
    "change", [{"bad": 1}, {"socket_errors": 1}, {"checked": 9}, {"requests": 0, "checked": 0}]
)
def test_wrk_is_believed_only_when_every_answer_was_checked_and_good(
    change: dict[str, int],
) -> None:
    said = {
        "requests": 10, "seconds": 2.0, "p50": 1.0, "p99": 2.0, "bad": 0, "checked": 10,
        "socket_errors": 0,
    }  # fmt: skip
    assert judged(said)["rate"] == 5
    with pytest.raises(Refused):
        judged({**said, **change})


def test_a_request_is_written_for_lua_byte_by_byte() -> None:
    request = Request(1, "/p", "POST", '{"a":"é\n"}', {"X-Y": 'q"'}, expect=(200, 404), pause=10)
    assert request.lua() == (
        'return {\n  method = "POST",\n  path = "/p",\n'
        '  headers = {["X-Y"] = "q\\034"},\n'
        "  expect = {[200] = true, [404] = true},\n"
        '  body = "{\\034a\\034:\\034\\195\\169\\010\\034}",\n  pause = 10,\n}\n'
    )


def test_the_picture_is_well_formed_and_shows_skipped_rows() -> None:
    cells = report.cells(
        [taken([90], [100]), Taken(scene({}, row()), {}, {"ours": "<absent> & gone"})]
    )
    text = "".join(ET.fromstring(picture.draw(cells, "a < b")).itertext())
    assert "0.90" in text
    assert "skipped" in text


def test_a_bar_is_longer_where_it_is_better() -> None:
    most = report.cells([taken([25], [100], MOST), taken([100], [100], MOST)])
    assert [picture.goodness(cell) for cell in most] == [2, 0.5]


def test_the_cpu_time_of_children_is_ours() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = noise.own_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert noise.own_seconds() - before >= 0.25
        assert child.pid in noise.descendants(os.getpid())
        child.communicate(b"\n")
    assert noise.own_seconds() - before >= 0.25  # also when it has been waited for


def test_the_machine_is_busy_with_what_is_neither_idle_nor_waiting(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    fields = [tick * n for n in (1, 2, 4, 100, 50, 8, 16, 32, 999, 999)]
    (tmp_path / "stat").write_text("cpu  " + " ".join(map(str, fields)) + "\ncpu0 0\n")
    assert noise.machine_seconds(tmp_path) == (63, 213)


def test_more_settings_join_a_table_that_is_there() -> None:
    ours = '[audit]\ndirectory = "audit"\n[backends.x]\n'
    assert merged(ours, '[audit]\ndurability = "disk"\n') == (
        '[audit]\ndurability = "disk"\ndirectory = "audit"\n[backends.x]\n'
    )
    assert merged(ours, "[signing]\n").endswith("\n[signing]\n")
