"""Structured logs on stderr."""

from __future__ import annotations

import logging.config

from pythonjsonlogger.json import JsonFormatter

from kmsjwks.cli.logsafety import safe_record
from kmsjwks.config import LoggingSettings

# At lower levels libraries log requests, headers, statements and their parameters.
_LIBRARIES = "WARNING"


class SafeJson(JsonFormatter):
    """JSON lines of safe records."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(safe_record(record))


class SafeText(logging.Formatter):
    """Lines of safe records for a terminal; a traceback is indented below its line."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(safe_record(record)).replace("\n", "\n  ")


def configure_logging(settings: LoggingSettings, *, unsafe: bool = False) -> None:
    """One handler for the process: JSON lines, or text for a terminal. The level is that of our
    own messages; libraries' are heard from WARNING on.

    ``unsafe`` marks every line: those of an installation in which verifiers may lose must not be
    taken for a safe one's.
    """
    level = settings.level.upper()
    logging.raiseExceptions = False  # logging would print the arguments of what it cannot write
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": SafeJson,
                    "fmt": "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                    "static_fields": {"unsafe": True} if unsafe else {},
                },
                "text": {
                    "()": SafeText,
                    "format": f"{'UNSAFE ' if unsafe else ''}"
                    "%(asctime)s %(levelname)s %(name)s: %(message)s",
                },
            },
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": settings.format}
            },
            "root": {
                "level": max(level, _LIBRARIES, key=logging.getLevelName),
                "handlers": ["stderr"],
            },
            "loggers": {"kmsjwks": {"level": level}, **_quiet()},
        }
    )
    logging.captureWarnings(True)


def _quiet() -> dict[str, dict[str, str]]:
    """Loggers of libraries that somebody has set to a lower level."""
    names = [
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        and not name.startswith("kmsjwks")
        and logging.NOTSET < logger.level < logging.WARNING
    ]
    return {name: {"level": _LIBRARIES} for name in names}
