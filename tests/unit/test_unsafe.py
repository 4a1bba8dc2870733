"""Marks of an unsafe installation where no request of a real service shows them easily."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from kmsjwks.cli.logs import configure_logging
from kmsjwks.config import LogFormat, LoggingSettings
from kmsjwks.http.request_ids import UNSAFE
from kmsjwks.http.wsgi import InFlight


class Reply:
    headers: dict[str, str]

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.headers = dict(headers)

    def response_iter(self, status: int, headers: list[tuple[str, str]], body: Any) -> None:
        raise AssertionError


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("unsafe", [True, False])
def test_an_answer_in_place_of_a_stuck_request(unsafe: bool) -> None:
    in_flight, reply = InFlight(UNSAFE if unsafe else {}), Reply()
    in_flight.answer_for(in_flight.begin(reply, {}))
    assert ("X-Kmsjwks-Unsafe" in reply.headers) is unsafe


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize("unsafe", [True, False])
@pytest.mark.parametrize("form", ["json", "text"])
def test_log_lines(form: LogFormat, unsafe: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingSettings("info", form), unsafe=unsafe)
    logging.getLogger("kmsjwks.test").warning("hello")
    (line,) = capsys.readouterr().err.splitlines()
    if form == "json":
        assert json.loads(line).get("unsafe", False) is unsafe
    else:
        assert line.startswith("UNSAFE ") is unsafe
