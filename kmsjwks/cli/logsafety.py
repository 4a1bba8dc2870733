"""From a log record to one that is safe to write: known fields, no texts of libraries."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

FIELDS = frozenset(
    {"request_id", "principal", "client", "keyset", "kid", "backend", "issuer", "code", "unsafe"}
)
"""What ``extra`` may add to a record."""

MAX_MESSAGE = 2000  # characters
_MAX_FIELD = 200  # characters
_MAX_PLACES = 40
_OURS = "kmsjwks"
# Its own messages are of one line; what follows is an exception with its text.
_FIRST_LINE = "_granian"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def safe_record(record: logging.LogRecord) -> logging.LogRecord:
    """A copy with a finished message, without arguments, exception texts and unknown fields.

    Our own messages are written as they are, but for exceptions among their arguments that are
    not ours: of these only the type is. Of a library's message only the template is written, and
    only where it has arguments, because otherwise it may have been finished with values.
    """
    safe = logging.LogRecord(
        record.name, record.levelno, record.pathname, record.lineno, "%s", None, None
    )
    for name in ("created", "msecs", "process", "processName", "thread", "threadName"):
        setattr(safe, name, getattr(record, name))
    safe.msg = _cut(_CONTROL.sub(_escaped, _message(record)), MAX_MESSAGE)
    if record.exc_info and isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
        safe.exc_text = where_raised(record.exc_info[1])
    for name in FIELDS & record.__dict__.keys():
        value = record.__dict__[name]
        if isinstance(value, str):
            value = _cut(_CONTROL.sub(_escaped, value), _MAX_FIELD)
        if isinstance(value, str | int | float):
            setattr(safe, name, value)
    return safe


def _message(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] == _OURS:
        return _our_message(record)
    template = record.msg if isinstance(record.msg, str) else ""
    if record.name.partition(".")[0] == _FIRST_LINE:
        return template.partition("\n")[0]
    if record.args and template.strip() not in ("%s", "%r"):
        return template
    return f"a message of {record.name} is left out ({record.filename}:{record.lineno})"


def _our_message(record: logging.LogRecord) -> str:
    template = record.msg if isinstance(record.msg, str) else _plain(record.msg)
    arguments = record.args
    try:
        if isinstance(arguments, dict):
            return str(template % {name: _plain(one) for name, one in arguments.items()})
        if arguments:
            return str(template % tuple(map(_plain, arguments)))
    except (TypeError, ValueError, KeyError):
        return str(template)
    return str(template)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException) and type(value).__module__.partition(".")[0] == _OURS:
        return f"{value}{_causes(value)}"
    if isinstance(value, BaseException):
        return _kind(value)
    return value


def _causes(error: BaseException) -> str:
    kinds, seen = [], {id(error)}
    cause = error.__cause__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        kinds.append(_kind(cause))
        cause = cause.__cause__
    return f" ({', from '.join(kinds)})" if kinds else ""


def _kind(error: BaseException) -> str:
    """The type, and the codes that are no values: errno, SQLSTATE, SQLite's."""
    code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None)
    if code is None and isinstance(error, OSError):
        code = error.strerror
    name = type(error).__name__
    return f"{name}: {code}" if isinstance(code, str) else name


def where_raised(error: BaseException) -> str:
    """A traceback without values: for the error and what caused it, types, files and lines."""
    lines: list[str] = []
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        lines.append(_kind(found) if not lines else f"from {_kind(found)}")
        for place in traceback.extract_tb(found.__traceback__, -_MAX_PLACES):
            lines.append(f"  {place.filename}:{place.lineno} in {place.name}")
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return "\n".join(lines)


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def log_unhandled() -> None:
    """Exceptions that nobody handles are logged; Python would print their texts."""
    log = logging.getLogger(__name__)

    def of_process(
        _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
    ) -> None:
        log.critical("An error that nobody handles ends the process.", exc_info=error)

    def of_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
            log.error("An error that nobody handles ends a thread.", exc_info=arguments.exc_value)

    def unraisable(arguments: sys.UnraisableHookArgs) -> None:
        log.error("An error that cannot be raised.", exc_info=arguments.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = of_process, of_thread, unraisable
