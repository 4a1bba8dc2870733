"""Structured logs on stderr."""

from __future__ import annotations

import logging.config

from kmsjwks.config import LoggingSettings


def configure_logging(settings: LoggingSettings, *, unsafe: bool = False) -> None:
    """One handler for the process: JSON lines, or text for a terminal.

    ``unsafe`` marks every line: those of an installation in which verifiers may lose must not be
    taken for a safe one's.
    """
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "fmt": "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                    "static_fields": {"unsafe": True} if unsafe else {},
                },
                "text": {
                    "format": f"{'UNSAFE ' if unsafe else ''}"
                    "%(asctime)s %(levelname)s %(name)s: %(message)s"
                },
            },
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": settings.format}
            },
            "root": {"level": settings.level.upper(), "handlers": ["stderr"]},
            "loggers": {"alembic": {"level": "WARNING"}},
        }
    )
