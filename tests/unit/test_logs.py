"""What a log line may hold. The canary stands for a PIN, a DSN, a token or a claim."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from kmsjwks.backends.pkcs11.uri import UriError
from kmsjwks.cli.logs import configure_logging
from kmsjwks.cli.logsafety import MAX_MESSAGE, log_unhandled
from kmsjwks.config import LogFormat, LoggingSettings
from kmsjwks.domain.errors import StoreUnavailable

CANARY = "c4n4ry"

Lines = Callable[[], str]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("kmsjwks")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]


def logging_to(stream: io.StringIO, form: LogFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream in the place of stderr, whatever pytest does to that."""
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(LoggingSettings("debug", form))


@pytest.fixture(params=["json", "text"])
def lines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lines:
    stream = io.StringIO()
    logging_to(stream, request.param, monkeypatch)
    return stream.getvalue


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """The one JSON line that was written."""
    stream = io.StringIO()
    logging_to(stream, "json", monkeypatch)

    def read() -> dict[str, Any]:
        (line,) = stream.getvalue().splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    return read


OURS = logging.getLogger("kmsjwks.test")


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    claim = CANARY
    try:
        raise error from cause
    except BaseException as caught:
        assert claim
        return caught


def test_known_fields_only(entry: Callable[[], dict[str, Any]]) -> None:
    extra = {"request_id": "r1", "keyset": "demo", "token": CANARY, "kid": {"a": CANARY}}
    OURS.info("signed by %s", "batch", extra=extra)
    found = entry()
    assert found.pop("time")
    assert found.pop("process")
    assert found == {
        "level": "INFO", "logger": "kmsjwks.test", "message": "signed by batch",
        "request_id": "r1", "keyset": "demo",
    }  # fmt: skip


def test_a_dict_is_no_way_to_add_fields(entry: Callable[[], dict[str, Any]]) -> None:
    OURS.info({"claims": CANARY})  # pythonjsonlogger makes fields of it
    assert "claims" not in entry().keys() - {"message"}


def test_a_traceback_without_values(lines: Lines) -> None:
    error = raised(RuntimeError(f"claim {CANARY}"), raised(ValueError(CANARY)))
    OURS.error("It failed.", exc_info=error)
    said = lines()
    assert CANARY not in said
    assert "RuntimeError" in said
    assert "from ValueError" in said
    assert "test_logs.py:" in said


def test_an_exception_as_an_argument(lines: Lines) -> None:
    OURS.error("Cannot: %s", ValueError(CANARY))
    OURS.error("Cannot: %(why)r", {"why": KeyError(CANARY)})
    OURS.error("Cannot: %s", FileNotFoundError(2, "No such file or directory", CANARY))
    said = lines()
    assert CANARY not in said
    assert "Cannot: ValueError" in said
    assert "No such file or directory" in said


def test_reasons_of_our_own_are_told(lines: Lines) -> None:
    OURS.error("Refused: %s", UriError("it is no URI"))
    assert "Refused: it is no URI" in lines()


def test_our_errors_are_told_with_the_types_of_their_causes(lines: Lines) -> None:
    driver = OperationalError(f"SELECT {CANARY}", {"dsn": CANARY}, Exception(CANARY))
    OURS.error("Down: %s", raised(StoreUnavailable("Look at the server."), driver))
    said = lines()
    assert CANARY not in said
    assert "Down: Look at the server. (OperationalError)" in said


@pytest.mark.parametrize(
    "name", ["sqlalchemy.engine", "urllib3.connectionpool", "botocore.auth", "alembic", "asyncio"]
)
def test_libraries(lines: Lines, name: str) -> None:
    logger = logging.getLogger(name)
    logger.debug("headers: %s", {"Authorization": CANARY})
    logger.info("parameters (%r)", CANARY)
    assert lines() == ""
    logger.warning("Retrying after %r", CANARY)
    logger.error(f"finished with {CANARY}")  # as libraries do
    logger.error("%s", CANARY)
    logger.exception("boom", exc_info=raised(RuntimeError(CANARY)))
    said = lines()
    assert CANARY not in said
    assert "Retrying after %r" in said
    assert "test_logs.py:" in said
    assert "RuntimeError" in said


def test_a_library_that_sets_its_level_itself(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("sqlalchemy.engine.Engine")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        configure_logging(LoggingSettings("debug", "text"))
        logger.info("SELECT %s", CANARY)
        assert capsys.readouterr().err == ""
    finally:
        logger.setLevel(before)


def test_granian_is_heard_but_not_the_exceptions_it_prints(lines: Lines) -> None:
    logging.getLogger("_granian").error("Unexpected exit from worker-1")
    text = f"Application callable raised an exception\nTraceback: ...\nValueError: {CANARY}"
    logging.getLogger("_granian").error(text)
    said = lines()
    assert CANARY not in said
    assert "Unexpected exit from worker-1" in said
    assert "Application callable raised an exception" in said


def test_a_message_that_does_not_fit_its_arguments(lines: Lines) -> None:
    OURS.error("%d things", CANARY)
    OURS.error("%s", CANARY, CANARY)
    said = lines()
    assert CANARY not in said
    assert "%d things" in said


def test_long_messages_are_cut(entry: Callable[[], dict[str, Any]]) -> None:
    OURS.error("x" * 100_000)
    assert len(entry()["message"]) < MAX_MESSAGE + 50


def test_a_message_stays_on_its_line(lines: Lines) -> None:
    OURS.error("a\nERROR forged\r\x1b[31m \u2028 \ud800")
    assert len(lines().splitlines()) == 1


def test_warnings_are_messages_of_a_library(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning(f"do not {CANARY}", UserWarning, "x.py", 1)
    assert CANARY not in lines()


def test_errors_that_nobody_handles(lines: Lines) -> None:
    log_unhandled()
    error = raised(RuntimeError(CANARY))

    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    sys.excepthook(RuntimeError, error, error.__traceback__)
    said = lines()
    assert CANARY not in said
    assert said.count("RuntimeError") == 2
    assert "test_logs.py:" in said
